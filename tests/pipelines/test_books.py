"""Books: what is decided on a record before and after it is tokenized."""

import gzip
import hashlib
import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worldloom.errors import UserError
from worldloom.packing.report import Reject, read_rejects, read_report
from worldloom.packing.row import Row, decode_runs, row_examples
from worldloom.pipelines.books import content_hash, examine, list_parts
from worldloom.pipelines.build import describe_examples
from worldloom.pipelines.deny import with_deny_lists
from worldloom.pipelines.job import finish, run_in_memory
from worldloom.pipelines.models import text_tokenizer
from worldloom.pipelines.reading.documents import TextDocument
from worldloom.pipelines.tokenize import TokenizeJob, key_facts, read_unit, tokenize
from worldloom.recipe import Recipe

CAP = 10_000


def recipe_of(path: Path | str, model: Path | str = "none.model", duplicates: str = "exact", **source: Any) -> Recipe:
    section = {"name": "s", "kind": "books", "path": str(path), "record_bytes": CAP, **source}
    data = {"vocabulary": {"text": str(model)}, "sources": [section], "duplicates": duplicates}
    return Recipe.model_validate(data)


def run(path: Path, model: Path, **source: Any) -> dict[str, Row | Reject]:
    """Tokenize all of a source, by record id."""
    outcomes = tokenize_all(recipe_of(path, model, **source))
    found = {o.record if isinstance(o, Reject) else o.segments[0].record: o for o in outcomes}
    assert len(found) == len(outcomes)
    return found


def tokenize_all(recipe: Recipe) -> list[Row | Reject]:
    recipe = with_deny_lists(recipe)
    (books,), units = recipe.sources, TokenizeJob(recipe, "memory://unused").units("s")
    denied = frozenset(books.deny)
    return [row for u in units for row in tokenize(recipe, books, read_unit(books, u), denied, Path("unused"))]


def reasons(found: dict[str, Row | Reject]) -> dict[str, str]:
    return {
        record: f"{o.stage} {o.status} {o.reason}" if isinstance(o, Reject) else "kept" for record, o in found.items()
    }


def lines(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


def write_bad_corpus(tmp_path: Path) -> dict[str, str]:
    """Write one file of each kind of badness, and some good ones; return what is to be said of each record."""
    (tmp_path / "good.txt").write_text("The fox said good morning.")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfA book")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b" \r\n\t")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "utf16.txt").write_bytes("text".encode("utf-16"))
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (tmp_path / "large.txt").write_bytes(b"x" * (CAP + 1))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(100))[:-3])
    (tmp_path / "lines.jsonl").write_bytes(b'{"text": "\\ud800"}\n{"text": "x"}\n{"text": "cu')
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "2.parquet")
    (tmp_path / "3.parquet").write_bytes(b"PAR1")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\n.txt")).write_bytes(b"\xe9")
    return {
        "\\udce9\n.txt": "read failed not UTF-8",
        "1.parquet#0": "kept",
        "2.parquet#columns": "read failed no such column",
        "3.parquet#damaged": "read failed damaged file",
        "good.txt": "kept",
        "bom.txt": "kept",
        "empty.txt": "filter dropped empty",
        "blank.txt": "filter dropped empty",
        "nul.txt": "read failed NUL byte",
        "utf16.txt": "read failed not UTF-8",
        "latin.txt": "read failed not UTF-8",
        "large.txt": "read failed too large",
        "cut.txt.gz#damaged": "read failed damaged file",
        "lines.jsonl@0": "read failed not Unicode",
        "lines.jsonl@19": "kept",
        "lines.jsonl@33": "read failed not JSON",
    }


def test_every_kind_of_bad_file_is_told_by_its_reason(tmp_path: Path, small_model: Path) -> None:
    expected = write_bad_corpus(tmp_path)
    assert reasons(run(tmp_path, small_model)) == expected


def test_the_job_counts_and_lists_every_bad_record(tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "in").mkdir()
    expected = write_bad_corpus(tmp_path / "in")
    job = TokenizeJob(recipe_of(tmp_path / "in", small_model, unit_bytes=300), str(tmp_path / "out"))
    run_in_memory(job)
    with pytest.raises(UserError, match=r"of 16 records failed, .* and limits\.failed allows 2"):
        finish(job, describe_examples(job), 0.02)
    ledger = finish(job, describe_examples(job), 1.0)["ledger"]
    counts = Counter("kept" if reason == "kept" else reason.split()[1] for reason in expected.values())
    assert {name: ledger[name] for name in ("kept", "dropped", "failed")} == counts
    assert ledger["read"] == len(expected) == 16
    listed: dict[str, str] = {}
    for unit in job.units("s"):
        report = read_report(job.folder, unit.name)
        assert report is not None
        listed |= {r.record: f"{r.stage} {r.status} {r.reason}" for r in read_rejects(job.folder, report)}
    assert listed == {record: reason for record, reason in expected.items() if reason != "kept"}


def test_an_example_is_bos_text_eos(tmp_path: Path, small_model: Path) -> None:
    text = "Good morning,\n said the fox.  \u00e9"
    (tmp_path / "a.txt").write_bytes(text.encode())
    row = run(tmp_path, small_model)["a.txt"]
    assert isinstance(row, Row)
    tokenizer = text_tokenizer(str(small_model))
    np.testing.assert_array_equal(row.tokens, [1, *tokenizer.encode(text), 2])
    assert decode_runs(row.trained).tolist() == [False] + [True] * (len(row.tokens) - 1)
    assert row.exact == hashlib.blake2b(text.encode(), digest_size=16).digest() == content_hash(text)
    assert (len(row.near), row.segments[0].task, row.segments[0].source) == (0, "text", "s")


def test_an_example_keeps_its_url(tmp_path: Path, small_model: Path) -> None:
    rows = [{"text": "with", "URL": "https://a/b?c=\u00e9\ud800"}, {"text": "without", "url": ""}]
    kept = list(run(lines(tmp_path / "a.jsonl", *rows), small_model).values())
    (example,) = row_examples(kept[0])
    ((start, end, kind, ref),) = example.spans
    assert (start, end, kind) == (1, len(example.tokens) - 1, "document")
    assert json.loads(ref) == {"url": "https://a/b?c=\u00e9\\ud800"}
    assert row_examples(kept[1])[0].spans == ()


def test_lengths_are_judged_in_tokens_without_bos_and_eos(tmp_path: Path, small_model: Path) -> None:
    count = len(text_tokenizer(str(small_model)).encode("Good morning, said the fox."))
    (tmp_path / "a.txt").write_text("Good morning, said the fox.")
    for low, high, expected in [
        (count, count + 1, "kept"),
        (count + 1, None, "filter dropped below min_tokens"),
        (None, count, "filter dropped max_tokens or more"),
    ]:
        filters = {"min_tokens": low, "max_tokens": high}
        assert reasons(run(tmp_path, small_model, filters=filters)) == {"a.txt": expected}


def test_a_reject_carries_all_that_a_deny_list_may_name(tmp_path: Path, small_model: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "fox", "url": "https://x"}, {"text": " ", "url": "https://y"})
    found = run(path, small_model, filters={"min_tokens": 1000})
    names = [(o.url, o.exact) for o in found.values() if isinstance(o, Reject)]
    assert names == [("https://x", content_hash("fox").hex()), ("https://y", content_hash(" ").hex())]


def test_bands_share_no_text_and_miss_none(tmp_path: Path, small_model: Path) -> None:
    borders = [None, 3, 7, 8, 20, None]
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text("fox " * (i // 2 + 1))
    kept: list[str] = []
    for low, high in pairwise(borders):
        found = reasons(run(tmp_path, small_model, filters={"min_tokens": low, "max_tokens": high}))
        kept += [record for record, reason in found.items() if reason == "kept"]
    assert sorted(kept) == [f"{i:02}.txt" for i in range(40)]


def test_columns_must_be_equal_in_value(tmp_path: Path, small_model: Path) -> None:
    metas = [
        {"meta": {"set": "Books3"}},
        {"meta": {"set": "books3"}},
        {"meta": None},
        {},
        {"meta": {"set": ["Books3"]}},
    ]
    path = lines(tmp_path / "a.jsonl", *({"text": f"t{i}", "id": i, **meta} for i, meta in enumerate(metas)))
    found = run(path, small_model, columns={"id": "id"}, filters={"equals": {"meta.set": "Books3"}})
    assert reasons(found) == {"0": "kept", **dict.fromkeys("1234", "filter dropped meta.set differs")}
    found = run(path, small_model, columns={"id": "id"}, filters={"equals": {"id": 3, "text": "t3"}})
    assert [record for record, reason in reasons(found).items() if reason == "kept"] == ["3"]


def test_a_deep_value_is_told_in_short(tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "x", "n": ' + b"[" * 500 + b'"' + b"y" * 5000 + b'"' + b"]" * 500 + b"}"
    )
    (reject,) = run(tmp_path, small_model, filters={"equals": {"n": 1}}).values()
    assert isinstance(reject, Reject) and len(reject.error) < 200


def test_samples_are_nested_and_about_as_large_as_said(tmp_path: Path, small_model: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *({"text": "fox"} for _ in range(1000)))
    samples = {}
    for share in (0.0, 0.1, 0.5, 1.0):
        found = reasons(run(path, small_model, sample=share))
        samples[share] = {record for record, reason in found.items() if reason == "kept"}
        assert set(found.values()) <= {"kept", "filter dropped not in the sample"}
        assert abs(len(samples[share]) / 1000 - share) < 0.05
    assert samples[0.0] < samples[0.1] < samples[0.5] < samples[1.0]


def test_a_sample_depends_on_the_seed_and_not_on_the_place(tmp_path: Path) -> None:
    def chosen(seed: int, name: str = "s") -> list[bool]:
        source = recipe_of(tmp_path, sample=0.5, name=name).sources[0]
        documents = [TextDocument(f"r{i}", f"{seed} anywhere", "text") for i in range(100)]
        return [isinstance(examine(d, source, seed, frozenset()), Reject) for d in documents]

    assert chosen(0) == chosen(0) != chosen(1)
    assert chosen(0) != chosen(0, "other")


def test_records_are_denied_by_id_url_and_hash(tmp_path: Path, small_model: Path) -> None:
    rows = [{"text": f"t{i}", "url": f"https://x/{i}", "id": f"r{i}"} for i in range(5)]
    path = lines(tmp_path / "a.jsonl", *rows)
    entries = ["r0", "https://x/1", content_hash("t2").hex(), "t3", "r"]
    for deny in (entries, str(tmp_path / "deny.list")):
        (tmp_path / "deny.list").write_text("\ufeff" + "\r\n".join(entries) + "\n\n  # why\n", "utf-8")
        found = run(path, small_model, columns={"id": "id"}, deny=deny)
        assert reasons(found) == {
            **dict.fromkeys(["r0", "r1", "r2"], "filter dropped denied"),
            "r3": "kept",
            "r4": "kept",
        }
        assert [o.error for o in found.values() if isinstance(o, Reject)] == entries[:3]


def test_denying_goes_before_every_other_judgement(tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "nul.txt").write_bytes(b"\0")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    found = run(tmp_path, small_model, deny=["nul.txt", "bad.txt"], sample=0.0)
    assert {o.reason for o in found.values() if isinstance(o, Reject)} == {"denied"}
    assert {o.status for o in found.values() if isinstance(o, Reject)} == {"dropped"}


def test_a_deny_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deny.txt"
    recipe = recipe_of(tmp_path, deny=str(path))
    path.write_text("a\n")
    assert with_deny_lists(recipe).sources[0].deny == ["a"]
    path.write_text("b\na\nb\n")
    assert with_deny_lists(recipe).sources[0].deny == ["a", "b"]
    with pytest.raises(ValueError, match="must be read first"):
        TokenizeJob(recipe, "memory://unused")


@pytest.mark.parametrize(("content", "words"), [(None, "does not exist"), (b"\xff", "cannot be read")])
def test_a_deny_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "deny.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        with_deny_lists(recipe_of(tmp_path, deny=str(tmp_path / "deny.txt")))
    with pytest.raises(UserError, match="cannot be read"):
        with_deny_lists(recipe_of(tmp_path, deny=str(tmp_path)))


def test_names_of_any_bytes_can_be_stored(tmp_path: Path) -> None:
    source = recipe_of(tmp_path).sources[0]
    for found in (TextDocument("r", "w", "\ud800"), TextDocument("r", "w", "", {"url": "\ud800"})):
        reject = examine(found, source, 0, frozenset())
        assert isinstance(reject, Reject)
        pa.array([reject.record, reject.where, reject.error, reject.url])


def test_a_gutenberg_book_is_stripped_only_where_asked(tmp_path: Path, small_model: Path) -> None:
    head, tail = (
        "*** START OF THE PROJECT GUTENBERG EBOOK X ***\r\n",
        "*** END OF THE PROJECT GUTENBERG EBOOK X ***\r\n",
    )
    (tmp_path / "a.txt").write_bytes(f"{head}\r\nThe fox.\r\n\r\n{tail}".encode())
    (tmp_path / "b.txt").write_bytes(f"{head}\r\n\r\n{tail}".encode())
    (tmp_path / "c.txt").write_bytes(b"The fox.\r\n")
    tokenizer = text_tokenizer(str(small_model))
    stripped, whole = run(tmp_path, small_model, strip_gutenberg=True), run(tmp_path, small_model)
    assert reasons(stripped) == {"a.txt": "kept", "b.txt": "filter dropped empty", "c.txt": "kept"}
    assert list(stripped["a.txt"].tokens[1:-1]) == list(tokenizer.encode("The fox.\n"))
    assert list(stripped["c.txt"].tokens[1:-1]) == list(tokenizer.encode("The fox.\r\n"))
    assert set(reasons(whole).values()) == {"kept"}
    assert stripped["a.txt"].exact == content_hash("The fox.\n") != whole["a.txt"].exact


def test_near_hashes_are_made_only_where_asked(tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "a.txt").write_text("The fox.")
    recipe = recipe_of(tmp_path, small_model, duplicates="near")
    (row,) = tokenize_all(recipe)
    assert isinstance(row, Row) and len(row.near) == 14


def test_a_key_knows_what_rows_depend_on_and_nothing_else(tmp_path: Path) -> None:
    def facts(**more: Any) -> dict[str, object]:
        recipe = recipe_of(**{"path": tmp_path, **more})
        return key_facts(recipe, recipe.sources[0])

    same = [{"path": "/else"}, {"deny": ["a"]}, {"licence": "CC0"}, {"unit_bytes": 5}, {"model": "/other.model"}]
    assert all(facts(**more) == facts() for more in same)
    other: list[dict[str, Any]] = [
        {"sample": 0.5},
        {"columns": {"text": "body"}},
        {"filters": {"min_tokens": 3}},
        {"strip_gutenberg": True},
        {"duplicates": "near"},
        {"name": "t"},
    ]
    assert all(facts(**more) != facts() for more in other)


def test_the_size_of_units_changes_no_row(tmp_path: Path, small_model: Path) -> None:
    lines(tmp_path / "a.jsonl", *({"text": f"fox {i}"} for i in range(50)))
    pq.write_table(pa.table({"text": [f"cat {i}" for i in range(50)]}), tmp_path / "b.parquet", row_group_size=7)
    found = [run(tmp_path, small_model, unit_bytes=n) for n in (1, 100, 2**25)]
    assert len(found[0]) == 100
    for other in found[1:]:
        assert list(found[0]) == list(other)
        assert all((a.tokens == b.tokens).all() for a, b in zip(found[0].values(), other.values(), strict=True))


def test_real_books_lie_in_their_bands(real_data: Path, llama_model: Path) -> None:
    """Two of LWM's five bands: the larger books are tokenized where the recipes are tested."""
    bands = {"alice.txt": (10_000, 100_000), "pride-and-prejudice.txt": (100_000, 200_000)}
    tokenizer = text_tokenizer(str(llama_model))
    for name, (low, high) in bands.items():
        (part, _), *_ = list_parts(recipe_of(real_data / "books" / name).sources[0])
        assert part.id == name
        assert low <= len(tokenizer.encode((real_data / "books" / name).read_text("utf-8"))) < high
