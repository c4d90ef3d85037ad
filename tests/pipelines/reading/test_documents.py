"""Text documents: every form of file, whole and broken, each record once."""

import bz2
import gc
import gzip
import io
import json
import os
import random
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.pipelines.books import list_parts, texts
from worldloom.pipelines.reading.archive import members
from worldloom.pipelines.reading.documents import BadRecord, Found, TextDocument, read_part
from worldloom.sources import BooksSource

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def source(path: Path | str | list[str], **more: Any) -> BooksSource:
    return BooksSource.model_validate(
        {"name": "s", "kind": "books", "path": path if isinstance(path, list) else str(path), **more}
    )


def read(path: Path | str | list[str], cap: int = 2**20, **more: Any) -> list[Found]:
    made = source(path, record_bytes=cap, **more)
    return [found for part, _ in list_parts(made) for found in read_part(made, part)]


def brief(found: list[Found]) -> list[tuple[str, str]]:
    """Name each record with its text, or its reason in brackets."""
    return [(f.record, f.text if isinstance(f, TextDocument) else f"({f.reason})") for f in found]


def lines_of(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# --- .txt


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("Grüße, 世界 🌍\r\n".encode(), "Grüße, 世界 🌍\r\n"),
        (b"\xef\xbb\xbfmarked", "marked"),
        (b"", ""),
        (b"a\x00b", "a\x00b"),  # judged by examine
        ("Grüße".encode("latin-1"), "(not UTF-8)"),
        ("text".encode("utf-16"), "(not UTF-8)"),
        (b"\xed\xa0\x80", "(not UTF-8)"),
        (b"x" * 100, "x" * 100),
        (b"x" * 101, "(too large)"),
        (b"\xff" * 101, "(too large)"),
    ],
)
def test_a_text_file_is_one_record(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "b.txt").write_bytes(data)
    assert brief(read(tmp_path, cap=100)) == [("b.txt", expected)]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_a_cut_or_damaged_text_never_passes(tmp_path: Path, suffix: str) -> None:
    packed = COMPRESS[suffix](random.Random(0).randbytes(5000).hex().encode())
    for data in (b"", packed[:-1], packed[: len(packed) // 2], packed + b"x"):
        (tmp_path / f"b.txt{suffix}").write_bytes(data)
        assert brief(read(tmp_path)) == [(f"b.txt{suffix}#damaged", "(damaged file)")]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("bomb.txt.gz", None, "(too large)"),
        ("bomb.jsonl.gz", None, "(too large)"),
        ("bomb.tar.gz", tarfile.REGTYPE, "(too large)"),
        ("names.tar.gz", tarfile.XHDTYPE, "(damaged file)"),
    ],
)
def test_a_bomb_costs_no_more_memory_than_a_record_may(
    tmp_path: Path, name: str, kind: bytes | None, expected: str
) -> None:
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        if kind:
            header = tarfile.TarInfo("bomb.txt")
            header.size, header.type = 2**27, kind
            file.write(header.tobuf())
        for _ in range(2**7):
            file.write(b" " * 2**20)
    tracemalloc.start()
    try:
        assert brief(read(tmp_path, cap=2**20))[0][1] == expected
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_a_file_that_goes_away_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (part, _) = next(list_parts(source(tmp_path)))
    (tmp_path / "a.txt").unlink()
    assert brief(list(read_part(source(tmp_path), part))) == [("a.txt#damaged", "(damaged file)")]


def test_names_that_are_no_unicode_are_escaped(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\n[red].txt")).write_text("x")
    (found,) = read(tmp_path)
    assert found.record == "\\udce9\n[red].txt"
    assert found.where.encode().decode().endswith("/\\udce9\n[red].txt")


# --- JSONL


def test_rows_are_named_by_their_first_byte(tmp_path: Path) -> None:
    first, rest = lines_of({"text": "a"}), b'\n \t\n{"text": "b"}\r\n{"text": "last"}'
    (tmp_path / "a.jsonl").write_bytes(first + rest)
    places = [0, len(first) + 4, len(first) + 4 + 15]
    expected = list(zip([f"a.jsonl@{p}" for p in places], ["a", "b", "last"], strict=True))
    assert brief(read(tmp_path)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "cut o', "(not JSON)"),
        (b"[1]", "(no row)"),
        (b"12", "(no row)"),
        (b'{"txt": "x"}', "(no text)"),
        (b'{"text": null}', "(no text)"),
        (b'{"text": ["x"]}', "(no text)"),
        (b'{"text": "\xe9"}', "(not UTF-8)"),
        ('{"text": "x"}'.encode("utf-16-be"), "(not JSON)"),
        (b"[" * 50_000, "(not JSON)"),
        (b'{"text": "x", "deep": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "(not JSON)"),
        (b'{"text": "x", "number": ' + b"1" * 5000 + b"}", "(not JSON)"),
        (b'{"text": "a"} {"text": "b"}', "(not JSON)"),
        (b'{"text": "x", "n": NaN}', "x"),
        (b'{"text": "\\ud83c\\udf0d"}', "🌍"),
        (b'\xef\xbb\xbf{"text": "marked"}', "marked"),
        ('{"text": "a\u2028b\u0085c"}'.encode(), "a\u2028b\u0085c"),
    ],
)
def test_a_bad_line_fails_alone(tmp_path: Path, line: bytes, expected: str) -> None:
    good = lines_of({"text": "good"})
    (tmp_path / "a.jsonl").write_bytes(good + line + b"\n" + good)
    assert [text for _, text in brief(read(tmp_path))] == ["good", expected, "good"]


def test_the_reject_says_that_the_file_ends_in_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines_of({"text": "a"}) + b'{"text": "b')
    (_, bad) = read(tmp_path)
    assert isinstance(bad, BadRecord) and "the file ends inside this line" in bad.error


def test_half_a_surrogate_pair_is_seen_by_examine(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud800"}\n{"text": "x", "id": "\\udc00"}\n')
    assert [text for _, text in brief(read(tmp_path))] == ["\ud800", "x"]
    assert brief(read(tmp_path, columns={"id": "id"}))[1] == ("\\udc00", "x")


def test_an_empty_file_of_lines_is_a_record_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "c.jsonl").write_bytes(b"\n")
    assert brief(read(tmp_path)) == [("a.jsonl", "(empty)"), ("b.jsonl.gz", "(empty)")]


def test_ids_come_from_a_column(tmp_path: Path) -> None:
    names: list[Any] = ["a", 7, "a", "", None, True, 1.5, ["x"], {"deep": "d"}]
    (tmp_path / "a.jsonl").write_bytes(lines_of(*({"text": "t", "id": name} for name in names)))
    found = brief(read(tmp_path, columns={"id": "id"}))
    assert [f[0] for f in found[:3]] == ["a", "7", "a"]
    assert [f[1] for f in found] == ["t"] * 3 + ["(no id)"] * 6
    assert brief(read(tmp_path, columns={"id": "id.deep"}))[-1] == ("d", "t")


def test_columns_lead_into_nested_ones(tmp_path: Path) -> None:
    rows = [{"a": {"b": "nested"}}, {"a.b": "flat", "a": {"b": "nested"}}, {"a": "none"}, {"a": {"b": {"c": 1}}}]
    (tmp_path / "a.jsonl").write_bytes(lines_of(*rows))
    assert [t for _, t in brief(read(tmp_path, columns={"text": "a.b"}))] == [
        "nested",
        "flat",
        "(no text)",
        "(no text)",
    ]


def test_a_line_over_the_cap_is_skipped_to_its_end(tmp_path: Path) -> None:
    for size in (80, 81, 82, 5000):
        long = lines_of({"text": "x" * (size - 13)})
        assert len(long) == size
        (tmp_path / "a.jsonl").write_bytes(long + lines_of({"text": "y"}) + long[:-1])
        expected = ["(too large)"] * (size > 81) or ["x" * (size - 13)]
        assert [t for _, t in brief(read(tmp_path, cap=80))] == [*expected, "y", *expected]


def by_lines(data: bytes, cap: int) -> Iterator[tuple[str, str]]:
    """Read JSON lines the plain way."""
    offset = 0
    for line in data.split(b"\n"):
        if len(line) > cap:
            yield f"a.jsonl@{offset}", "(too large)"
        elif line.strip():
            try:
                row = json.loads(line)
                yield f"a.jsonl@{offset}", row["text"] if isinstance(row, dict) else "(no row)"
            except ValueError:
                yield f"a.jsonl@{offset}", "(not JSON)"
        offset += len(line) + 1


LINE = st.one_of(
    st.text("ab\u00e9\u2028", max_size=8).map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode()),
    st.sampled_from([b"", b" ", b"\r", b'{"text": ', b"7", b'{"text": "%s"}' % (b"long " * 20)]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINE, max_size=12), st.integers(1, 70), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_ranges_of_any_size_read_every_line_once(
    tmp_path: Path, lines: list[bytes], unit_bytes: int, end: bytes, last: bool
) -> None:
    data = end.join(lines) + (end if last else b"")
    (tmp_path / "a.jsonl").write_bytes(data)
    expected = list(by_lines(data, 60)) or [("a.jsonl", "(empty)")] * (not data)
    assert brief(read(tmp_path, cap=60, unit_bytes=unit_bytes)) == expected


def test_the_last_byte_may_be_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"7\n" * 10 + b"7")
    for unit_bytes in range(1, 25):
        assert [f.record for f in read(tmp_path, unit_bytes=unit_bytes)] == [f"a.jsonl@{2 * i}" for i in range(11)]


def test_a_line_of_many_ranges_is_not_read_by_each_to_its_end(tmp_path: Path) -> None:
    class Counted(io.BytesIO):
        taken = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            Counted.taken += len(line)
            return line

    data = b'{"text": "' + b"x" * 4_000_000 + b'"}\n' + lines_of({"text": "y"})
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldloom.pipelines.reading.tables.open_plain", lambda _: Counted(data))
        found = brief(read(tmp_path, cap=1000, unit_bytes=20_000))
    assert found == [("a.jsonl@0", "(too large)"), (f"a.jsonl@{len(data) - 14}", "y")]
    assert Counted.taken < 2 * len(data) + 2**17  # each range once to find its first line; all would be 400 MB


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_what_stands_before_a_cut_is_kept_and_the_cut_is_told(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": random.Random(i).randbytes(400).hex()} for i in range(2000)]
    packed = COMPRESS[suffix](lines_of(*rows))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed)
    assert [t for _, t in brief(read(tmp_path, unit_bytes=1000))] == [r["text"] for r in rows]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed[:-9])
    found = [t for _, t in brief(read(tmp_path))]
    assert found[-1] == "(damaged file)"
    assert found[:-1] == [r["text"] for r in rows][: len(found) - 1]


# --- parquet


def write_parquet(path: Path, rows: list[dict[str, Any]] | pa.Table, group: int = 10) -> None:
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path, row_group_size=group)


@pytest.mark.parametrize("unit_bytes", [1, 2000, 2**25])
def test_row_groups_are_read_once_each(tmp_path: Path, unit_bytes: int) -> None:
    rows = [{"text": f"{i} " * 20, "n": i} for i in range(95)]
    write_parquet(tmp_path / "a.parquet", rows)
    made = source(tmp_path, unit_bytes=unit_bytes)
    assert len(list(list_parts(made))) == {1: 10, 2000: 4, 2**25: 1}[unit_bytes]
    assert brief(read(tmp_path, unit_bytes=unit_bytes)) == [(f"a.parquet#{i}", r["text"]) for i, r in enumerate(rows)]


def test_columns_of_parquet_lead_into_nested_ones(tmp_path: Path) -> None:
    rows = [{"doc": {"body": f"t{i}", "key": i}, "meta": {"pile_set_name": "Books3"}, "URL": f"u{i}"} for i in range(3)]
    write_parquet(tmp_path / "a.parquet", rows)
    columns = {"text": "doc.body", "id": "doc.key"}
    found = read(tmp_path, columns=columns, filters={"equals": {"meta.pile_set_name": "Books3"}})
    assert brief(found) == [("0", "t0"), ("1", "t1"), ("2", "t2")]
    assert all(isinstance(f, TextDocument) and set(f.columns) == {"doc", "meta", "URL"} for f in found)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"columns": {"text": "body"}}, "no column body; it has text, n, meta, meta.set"),
        ({"columns": {"id": "key"}}, "no column key"),
        ({"filters": {"equals": {"m": 1}}}, "no column m;"),
        ({"filters": {"equals": {"meta.name": "x"}}}, r"no column meta.name;"),
        ({"filters": {"equals": {"n.set": "x"}}}, r"no column n.set;"),
    ],
)
def test_a_column_that_the_first_file_lacks_is_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    write_parquet(tmp_path / "a.parquet", [{"text": "a", "n": 1, "meta": {"set": "x"}}])
    with pytest.raises(UserError, match=words):
        read(tmp_path, **more)


def test_a_later_file_without_the_column_is_a_reject(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"text": "a"}])
    write_parquet(tmp_path / "b.parquet", [{"body": "b"}])
    assert brief(read(tmp_path)) == [("a.parquet#0", "a"), ("b.parquet#columns", "(no such column)")]


def test_rows_of_parquet_fail_alone(tmp_path: Path) -> None:
    texts = pa.array(["a", None, "x" * 41, "é" * 20, "é" * 21])
    write_parquet(tmp_path / "a.parquet", pa.table({"text": texts}))
    assert [t for _, t in brief(read(tmp_path, cap=40))] == ["a", "(no text)", "(too large)", "é" * 20, "(too large)"]
    ends, letters = pa.py_buffer(np.array([0, 3, 6], np.int32)), pa.py_buffer(b"caf\xe9ok")
    latin = pa.Array.from_buffers(pa.string(), 2, [None, ends, letters])
    write_parquet(tmp_path / "a.parquet", pa.table({"text": latin}))
    assert [t for _, t in brief(read(tmp_path))] == ["caf", "(not UTF-8)"]
    moments = pa.array([1], pa.timestamp("ns"))
    write_parquet(tmp_path / "a.parquet", pa.table({"text": ["a"], "at": moments}))
    assert brief(read(tmp_path, filters={"equals": {"at": 1}}))[0][0] == "a.parquet#0"


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_kind_of_string_column_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    write_parquet(tmp_path / "a.parquet", pa.table({"text": pa.array(["a", "b", "a"]).cast(kind)}))
    assert [t for _, t in brief(read(tmp_path))] == ["a", "b", "a"]


def test_damaged_parquet_is_a_reject_wherever_it_is_damaged(tmp_path: Path) -> None:
    rows = [{"text": random.Random(i).randbytes(20).hex()} for i in range(100)]
    write_parquet(tmp_path / "a.parquet", rows)
    data = (tmp_path / "a.parquet").read_bytes()
    rng = random.Random(1)
    for case in [b"", data[:-4], data[: len(data) // 2], data[:-20] + data[-19:], b"PAR1" + data[8:]]:
        (tmp_path / "a.parquet").write_bytes(case)
        assert brief(read(tmp_path, unit_bytes=100))[-1] == ("a.parquet#damaged", "(damaged file)")
    for _ in range(150):
        place = rng.choice([rng.randrange(len(data)), rng.randrange(len(data) - 400, len(data))])
        (tmp_path / "a.parquet").write_bytes(data[:place] + rng.randbytes(1) + data[place + 1 :])
        try:
            read(tmp_path, unit_bytes=1000)
        except UserError as error:
            assert "no column" in str(error)  # the name of the column was hit


# --- tar


def tar_of(members: list[tuple[str, bytes | str]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """Make an archive; a member that is a string is a link there."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


BOOKS = [(f"books/{i}.txt", random.Random(i).randbytes(700).hex().encode()) for i in range(30)]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_the_texts_of_a_tar_are_read(tmp_path: Path, suffix: str, form: int) -> None:
    (tmp_path / f"a.tar{suffix}").write_bytes(COMPRESS[suffix](tar_of(BOOKS, form)))
    assert brief(read(tmp_path)) == [(f"a.tar{suffix}/{name}", text.decode()) for name, text in BOOKS]


def test_members_that_are_no_texts_are_told(tmp_path: Path) -> None:
    written: list[tuple[str, bytes | str]] = [
        ("/etc/x.txt", b"absolute"),
        ("a/../../x.txt", b"outside"),
        ("link.txt", "/etc/passwd"),
        ("cover.jpg", b"\xff"),
        ("./._book.txt", b"\0"),
        ("./book.TXT", b"a book"),
        ("big.txt", b"x" * 101),
        ("latin.txt", b"\xe9"),
        ("n\u00e9\n" + "long/" * 40 + "name.txt", b"deep"),
        ("book.txt", b"one"),
        ("book.txt", b"another"),
    ]
    (tmp_path / "a.tar").write_bytes(tar_of(written))
    found = read(tmp_path, cap=100)
    assert [f.record for f in found] == [f"a.tar/{name}" for name, _ in written]
    expected = ["(no plain member)"] * 3 + ["(no text member)"] * 2
    expected += ["a book", "(too large)", "(not UTF-8)", "deep", "one", "another"]
    assert [t for _, t in brief(found)] == expected
    assert {f.status for f in found if isinstance(f, BadRecord) and f.reason == "no text member"} == {"dropped"}


def test_a_member_name_that_is_no_unicode_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([("\udce9.txt", b"x")], tarfile.USTAR_FORMAT))
    assert brief(read(tmp_path)) == [("a.tar/\\udce9.txt", "x")]


def test_an_archive_cut_anywhere_never_passes(tmp_path: Path) -> None:
    data = tar_of(BOOKS[:4])
    end = len(data.rstrip(b"\0"))
    places = [*range(0, end + 512, 512), 1, 511, 513, 700, end - 1]
    for place in places:
        (tmp_path / "a.tar").write_bytes(data[:place])
        found = brief(read(tmp_path))
        if place < -(-end // 512) * 512 + 512:  # not even one of the zero blocks at the end
            assert found.pop() == ("a.tar#damaged", "(damaged file)")
        assert found == [(f"a.tar/{name}", text.decode()) for name, text in BOOKS[: len(found)]]


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    data = bytearray(tar_of(BOOKS[:4]))
    block = -(-len(BOOKS[0][1]) // 512) * 512 + 512
    data[block + 20] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    assert [t for _, t in brief(read(tmp_path))] == [BOOKS[0][1].decode(), "(damaged file)"]


def test_more_behind_the_end_of_an_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(BOOKS[:1]) + tar_of(BOOKS[1:2]))
    assert [t for _, t in brief(read(tmp_path))] == [BOOKS[0][1].decode(), "(damaged file)"]


def test_an_archive_of_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([]))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar_of([])))
    assert brief(read(tmp_path)) == [("a.tar", "(empty)"), ("b.tar.gz", "(empty)")]


def test_a_header_that_claims_too_much_or_too_little_is_refused(tmp_path: Path) -> None:
    for kind, size in ((tarfile.XHDTYPE, 2**40), (tarfile.GNUTYPE_LONGNAME, 2**33), (tarfile.REGTYPE, -1)):
        header = tarfile.TarInfo("x.txt")
        header.type, header.size = kind, size
        (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
        assert brief(read(tmp_path))[-1] == ("a.tar#damaged", "(damaged file)")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_a_compressed_archive_that_is_cut_never_passes(tmp_path: Path, suffix: str) -> None:
    packed = COMPRESS[suffix](tar_of(BOOKS))
    for place in (0, 10, len(packed) // 2, len(packed) - 6, len(packed) - 1):
        (tmp_path / f"a.tar{suffix}").write_bytes(packed[:place])
        assert brief(read(tmp_path))[-1] == (f"a.tar{suffix}#damaged", "(damaged file)")


def count_headers() -> int:
    gc.collect()
    return sum(type(o) is tarfile.TarInfo for o in gc.get_objects())


def test_members_that_were_read_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([(f"{i}.txt", b"x") for i in range(200)]))
    before = count_headers()
    with (tmp_path / "a.tar").open("rb") as stream:
        for number, _ in enumerate(members(stream), 1):
            assert number % 50 or count_headers() - before < 10


def test_archives_with_any_byte_changed_end(tmp_path: Path) -> None:
    data, rng = tar_of([("a" * 150 + ".txt", b"one"), ("b.txt", b"two")], tarfile.PAX_FORMAT), random.Random(2)
    for _ in range(300):
        place = rng.randrange(len(data.rstrip(b"\0")))
        (tmp_path / "a.tar").write_bytes(data[:place] + rng.randbytes(1) + data[place + 1 :])
        assert len(read(tmp_path)) <= 4


# --- Hugging Face


def rows_of(*texts: str) -> Any:
    import datasets

    return datasets.Dataset.from_list([{"text": t, "n": i, "meta": {"set": "x"}} for i, t in enumerate(texts)])


def test_a_saved_dataset_is_read_in_ranges(tmp_path: Path) -> None:
    rows_of(*(f"text {i}" for i in range(200))).save_to_disk(tmp_path / "saved")
    expected = [(f"saved.train#{i}", f"text {i}") for i in range(200)]
    for unit_bytes in (1, 1500, 2**25):
        assert brief(read(tmp_path / "saved", unit_bytes=unit_bytes)) == expected
    assert brief(read(tmp_path / "saved", columns={"id": "n"}, cap=6))[98:101] == [
        ("98", "(too large)"),
        ("99", "(too large)"),
        ("100", "(too large)"),
    ]


def test_a_dict_of_splits_is_read_by_split(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": rows_of("a"), "test": rows_of("b", "c")}).save_to_disk(tmp_path / "saved")
    assert brief(read(tmp_path / "saved")) == [("saved.train#0", "a")]
    assert brief(read(tmp_path / "saved", split="test")) == [("saved.test#0", "b"), ("saved.test#1", "c")]
    with pytest.raises(UserError, match="no split dev; it has train, test"):
        read(tmp_path / "saved", split="dev")


def test_a_dataset_is_refused_where_it_cannot_be_read(tmp_path: Path) -> None:
    rows_of("a").save_to_disk(tmp_path / "saved")
    for more in ({"columns": {"text": "body"}}, {"filters": {"equals": {"meta.name": "x"}}}):
        with pytest.raises(UserError, match=r"the dataset has no column .*; it has text, n, meta, meta\.set: set"):
            read(tmp_path / "saved", **more)
    (tmp_path / "saved/state.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be opened"):
        read(tmp_path / "saved")


def test_a_named_dataset_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "named"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines_of({"text": "a"}, {"text": "b"}))
    made = BooksSource(name="s", kind="books", dataset=str(folder))
    found = [f for part, _ in list_parts(made) for f in read_part(made, part)]
    assert [t for _, t in brief(found)] == ["a", "b"]
    for wrong in ({"split": "dev"}, {"dataset": str(tmp_path / "none")}):
        with pytest.raises(UserError, match="cannot be opened"):
            list(list_parts(made.model_copy(update=wrong)))


# --- all together


def test_every_form_is_read_by_url(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/forms/a.txt", b"a")
    fs.pipe("/forms/b.jsonl.gz", gzip.compress(lines_of({"text": "b"})))
    write_parquet(tmp_path / "c.parquet", [{"text": "c"}])
    fs.put_file(str(tmp_path / "c.parquet"), "/forms/c.parquet")
    fs.pipe("/forms/d.tar", tar_of([("e.txt", b"e")]))
    names = ["a.txt", "b.jsonl.gz@0", "c.parquet#0", "d.tar/e.txt"]
    assert brief(read("memory://forms")) == list(zip(names, "abce", strict=True))


def test_texts_for_a_tokenizer_are_all_or_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_bytes(lines_of({"text": "b"}))
    assert list(texts([str(tmp_path)])) == ["a", "b"]
    (tmp_path / "c.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"c\.txt: not UTF-8"):
        list(texts([str(tmp_path)]))


@pytest.mark.parametrize(
    ("values", "kind"), [([1, 2], "int64"), ([b"a"], "binary"), ([["a"]], "list<element: string>")]
)
def test_a_column_of_another_type_is_refused(tmp_path: Path, values: list[Any], kind: str) -> None:
    """Before the start where the first table has it; in a later one it is a reject."""
    write_parquet(tmp_path / "b.parquet", pa.table({"text": pa.array(values)}))
    with pytest.raises(UserError, match=f"a column text of type {kind}, where text is needed: set columns"):
        read(tmp_path)
    write_parquet(tmp_path / "a.parquet", pa.table({"text": ["a"]}))
    assert [t for _, t in brief(read(tmp_path))] == ["a", "(no such column)"]
