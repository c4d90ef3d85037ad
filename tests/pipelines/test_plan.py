"""Samples for plans: how far each record leads, in every form of source, and an end within a part."""

import bz2
import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worldloom.cli import main
from worldloom.pipelines.plan import plan_source
from worldloom.pipelines.reading.listing import list_parts
from worldloom.pipelines.sampling import marked, sample, spread
from worldloom.recipe import Recipe
from worldloom.tokenizers.codebook import Codebook

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
RECORDS = 200
DRAW = np.random.default_rng(0)
TEXTS = [" ".join(map(str, DRAW.integers(0, 99999, 300))) + "\nÆ" for _ in range(RECORDS)]
ROWS = [{"url": f"http://a.example/{i}/{DRAW.integers(0, 1 << 62)}", "caption": f"a fox, {i}"} for i in range(RECORDS)]


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(DRAW.integers(0, 256, (32, 32, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


PICTURES = [picture() for _ in range(RECORDS)]


def tar(path: Path, *suffixes: str) -> None:
    with tarfile.open(path, "w") as archive:
        for i in range(RECORDS):
            for suffix in suffixes:
                data = PICTURES[i] if suffix == "png" else (TEXTS if len(suffixes) == 1 else ["a fox"] * RECORDS)[i]
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                content = data if isinstance(data, bytes) else data.encode()
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, str]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["url", "caption"])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def columns(path: Path, **values: object) -> None:
    pq.write_table(pa.table(values), path, row_group_size=50, compression="none")


BOOKS = [{"text": text, "title": f"No. {i}"} for i, text in enumerate(TEXTS)]
FORMS: dict[tuple[str, str], Callable[[Path], object]] = {
    ("books", "a.jsonl"): lambda path: path.write_bytes(lines(BOOKS)),
    ("books", "a.jsonl.gz"): lambda path: path.write_bytes(gzip.compress(lines(BOOKS))),
    ("books", "a.tar"): lambda path: tar(path, "txt"),
    ("books", "a.parquet"): lambda path: columns(path, text=TEXTS),
    ("image-text", "a.tar"): lambda path: tar(path, "png", "txt"),
    ("image-text", "a.parquet"): lambda path: columns(path, image=PICTURES, caption=["a fox"] * RECORDS),
    ("image-text", "a.csv"): lambda path: path.write_bytes(table(ROWS)),
    ("image-text", "a.csv.bz2"): lambda path: path.write_bytes(bz2.compress(table(ROWS))),
    ("image-text", "a.jsonl"): lambda path: path.write_bytes(lines(ROWS)),
    ("video-text", "a.jsonl.gz"): lambda path: path.write_bytes(gzip.compress(lines(ROWS))),
}  # fmt: skip


def recipe(folder: Path, model: Path, kind: str, name: str, **more: object) -> Recipe:
    FORMS[kind, name](folder / name)
    Codebook(np.unique(DRAW.integers(0, 256, (30, 16, 16, 3), np.uint8), axis=0), 32).save(str(folder / "c.npz"))
    source = {"name": "s", "kind": kind, "path": str(folder / name), **more}
    vision = {"kind": "codebook", "path": str(folder / "c.npz")}
    return Recipe.model_validate({"vocabulary": {"text": str(model), "vision": vision}, "sources": [source]})


@pytest.mark.parametrize(("kind", "name"), FORMS)
@pytest.mark.parametrize("many", [False, True])
def test_each_record_leads_about_as_far_as_its_share_of_the_bytes(
    tmp_path: Path, small_model: Path, kind: str, name: str, many: bool
) -> None:
    """Records of about the same size, in one part and in many; the end is exact."""
    unit_bytes = (1 << 15 if kind == "books" else 1 << 21) if many else 1 << 40
    [source] = recipe(tmp_path, small_model, kind, name, unit_bytes=unit_bytes).sources
    parts = list(list_parts(source))
    total = sum(size for _, size in parts)
    places = [place for _, place in sample(source, parts, tmp_path)]
    assert len(places) == RECORDS and places == sorted(places)
    assert places[-1] == total > places[-2]
    for share in (0.25, 0.5, 0.75):
        assert places[int(share * RECORDS) - 1] == pytest.approx(share * total, rel=0.2)


@pytest.mark.parametrize(
    ("kind", "name"), [("books", "a.jsonl"), ("books", "a.tar"), ("image-text", "a.tar"), ("image-text", "a.parquet")]
)
def test_a_plan_ends_within_a_part(tmp_path: Path, small_model: Path, kind: str, name: str) -> None:
    made = recipe(tmp_path, small_model, kind, name)
    few, first = plan_source(made, made.sources[0], 0.0)
    whole, all_ = plan_source(made, made.sources[0], 1e9)
    assert (whole.sampled, whole.records, whole.kept, len(all_.examples)) == (1.0, RECORDS, RECORDS, RECORDS)
    assert whole.tokens == sum(e.length for e in all_.examples)
    assert 0 < few.sampled < 0.02 and len(first.examples) == 1
    assert first.examples[0] == all_.examples[0]
    assert few.records == few.kept == pytest.approx(RECORDS, rel=0.2)
    assert few.tokens == pytest.approx(whole.tokens, rel=0.25)


def test_what_is_estimated_too_large_stays_below_what_is_to_come(tmp_path: Path, small_model: Path) -> None:
    [source] = recipe(tmp_path, small_model, "books", "a.jsonl").sources
    [(part, size)] = list_parts(source)
    places = [place for _, place in sample(source, [(part._replace(size=1), size)], tmp_path)]
    assert all(np.diff(places) > 0) and places[-1] == size


def test_parts_without_records_count_as_read(tmp_path: Path, small_model: Path) -> None:
    """One line goes through five parts, of which the first reads it."""
    made = recipe(tmp_path, small_model, "books", "a.jsonl", unit_bytes=1000)
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "a fox " * 800}]))
    plan, _ = plan_source(made, made.sources[0], 1e9)
    assert (plan.parts, plan.records, plan.sampled) == (5, 1, 1.0)
    plan, _ = plan_source(made, made.sources[0], 0.0)
    assert (plan.parts, plan.records) == (5, 5)  # as far as one part tells


def test_parts_are_taken_from_all_over_and_each_once() -> None:
    for count in (0, 1, 63, 64, 65, 128, 1000):
        order = list(spread(list(range(count))))
        assert sorted(order) == list(range(count))
        if count >= 128:
            first = order[:64]
            assert max(np.diff(first)) == min(np.diff(first)) == count // 64


def test_the_last_of_items_is_marked() -> None:
    assert list(marked("")) == [] and list(marked("a")) == [("a", True)]
    assert list(marked("abc")) == [("a", False), ("b", False), ("c", True)]


def test_a_chat_stage_of_lwm_is_planned(
    real_data: Path, llama_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sequences, fill, bytes and shares of both sets, and what the mixture wants of each."""
    words = (real_data / "books" / "alice.txt").read_text().split()
    rows = [{"id": str(n), "data": [" ".join(words[n : n + 9]), " ".join(words[n : n + 300])]} for n in range(400)]
    (tmp_path / "ultra.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Path(__file__).parents[2] / "recipes" / "lwm" / "text-chat-128k.yaml"
    books = real_data / "books" / "pride-and-prejudice.txt"
    given = {"vocabulary.text": llama_model, "sources.ultrachat.path": tmp_path / "ultra.jsonl"}
    given |= {"sources.book-qa.path": books}
    sets = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    assert main(["plan", str(recipe), "--json", *sets]) == 0
    packs = json.loads(capsys.readouterr().out)["packs"]
    assert [p["mixture"] for p in packs.values()] == [0.7, 0.3]
    assert sum(p["share"] for p in packs.values()) == pytest.approx(1)
    for plan in packs.values():
        assert plan["bytes"] == 2 * 131072 * plan["sequences"] > 0
        assert plan["fill"] == pytest.approx(plan["tokens"] / (131072 * plan["sequences"]), rel=1e-6)
