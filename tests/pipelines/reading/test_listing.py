"""What parts a source of pictures or clips has: forms, what belongs together, what a unit costs."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worldloom.errors import UserError
from worldloom.pipelines.reading.listing import list_parts
from worldloom.sources import BooksSource, ImageTextSource, VideoTextSource

KINDS = {"books": BooksSource, "image-text": ImageTextSource, "video-text": VideoTextSource}


def parts(kind: str, path: Path | str | list[str], **more: Any) -> list[tuple[str, int, int, int]]:
    """List a source's parts: id, start, end and bytes to read."""
    made = KINDS[kind](name="s", kind=kind, path=path if isinstance(path, list) else str(path), **more)
    return [(part.id, part.start, part.end, size) for part, size in list_parts(made)]


def ids(kind: str, path: Path | str | list[str], **more: Any) -> list[str]:
    return [name for name, *_ in parts(kind, path, **more)]


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"url": ["u"], "caption": ["c"], "text": ["t"]}), path)
        else:
            path.write_text("caption,url\n" if path.suffix == ".csv" else "x")


def test_each_kind_reads_its_own_forms(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "b.jsonl", "c.parquet", "d.tar", "e.csv", "f.md", "x.json", "h.jpg.gz")
    put(tmp_path / "media", "g.JPG", "h.webp", "i.mp4", "j.MKV", "k.txt")
    assert ids("books", tmp_path) == ["a.txt", "b.jsonl", "c.parquet", "d.tar", "media/k.txt"]
    for kind in ("image-text", "video-text"):
        assert ids(kind, tmp_path) == ["b.jsonl", "c.parquet", "d.tar", "e.csv"]
    assert ids("image-text", tmp_path / "media") == ["g.JPG", "h.webp"]
    assert ids("video-text", tmp_path / "media") == ["i.mp4", "j.MKV"]
    assert ids("video-text", tmp_path / "media/i.mp4") == ["i.mp4"]
    with pytest.raises(UserError, match=r"i\.mp4 matches no file of a known form \(.*\.jpg"):
        ids("image-text", tmp_path / "media/i.mp4")


def test_what_img2dataset_writes_beside_its_tars_is_no_source(tmp_path: Path) -> None:
    """The table of a shard names the same pictures, and the URLs that they came from."""
    put(tmp_path, "00000.tar", "00000.parquet", "00000_stats.json", "00001.tar.gz", "00001.parquet", "00002.parquet")
    assert ids("image-text", tmp_path) == ["00000.tar", "00001.tar.gz", "00002.parquet"]
    assert ids("image-text", tmp_path / "00000.parquet") == ["00000.parquet"]
    put(tmp_path / "files", "00000/1.jpg", "00000/1.txt", "00001/1.jpg")
    index = pa.table({"url": ["u"], "caption": ["c"], "key": ["1"], "status": ["success"]})
    for name in ("00000.parquet", "00001.parquet"):
        pq.write_table(index, tmp_path / "files" / name)
    assert ids("image-text", tmp_path / "files") == ["00000/1.jpg", "00001/1.jpg"]


def test_a_table_beside_a_folder_of_its_name_is_a_source(tmp_path: Path) -> None:
    """Only img2dataset's own is passed over."""
    put(tmp_path, "train/1.jpg", "train.parquet")
    assert ids("image-text", tmp_path) == ["train.parquet"]


def test_a_media_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "x")
    for root in ("none", "x"):
        with pytest.raises(UserError, match=rf"source s: media_root .*/{root} is no folder"):
            ids("image-text", tmp_path / "a.csv", media_root=str(tmp_path / root))


def test_a_table_speaks_for_the_pictures_below_its_folder(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/deep/2.jpg", "b/3.jpg", "4.jpg")
    (tmp_path / "a/metadata.jsonl").write_text(json.dumps({"file_name": "1.jpg", "text": "x"}))
    assert ids("image-text", tmp_path) == ["4.jpg", "a/metadata.jsonl", "b/3.jpg"]


@pytest.mark.parametrize("root", ["local", "memory://test_listing_captions"])
def test_a_new_caption_makes_a_new_version(tmp_path: Path, root: str) -> None:
    root = str(tmp_path) if root == "local" else root
    fs, path = fsspec.url_to_fs(root)
    fs.pipe({f"{path}/a.jpg": b"x", f"{path}/b.jpg": b"x", f"{path}/b.txt": b"one"})

    def versions() -> list[str]:
        made = ImageTextSource(name="s", kind="image-text", path=root)
        return [part.version for part, _ in list_parts(made)]

    before = versions()
    assert versions() == before
    fs.pipe(f"{path}/a.json", b"{}")
    added = versions()
    assert added[0] != before[0] and added[1] == before[1]
    fs.pipe(f"{path}/b.txt", b"three")
    assert versions()[0] == added[0] and versions()[1] != added[1]


@pytest.mark.parametrize(("kind", "cost"), [("image-text", 2**16), ("video-text", 2**22)])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_a_row_that_names_a_file_costs_what_fetching_it_does(tmp_path: Path, kind: str, cost: int, form: str) -> None:
    rows = [{"caption": f"caption {i:05d}", "url": f"http://example.org/{i:05d}"} for i in range(2000)]
    path, tab = tmp_path / f"a.{form}", "\t" if form == "tsv" else ","
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(f"caption{tab}url\n" + "".join(f"{r['caption']}{tab}{r['url']}\n" for r in rows))
    found = parts(kind, path, unit_bytes=100 * cost)
    assert len(found) in (20, 21)
    assert sum(size for *_, size in found) == pytest.approx(2000 * cost, rel=0.02)


def test_a_table_that_holds_its_pictures_costs_their_bytes(tmp_path: Path) -> None:
    rows = [{"caption": "c", "image": {"bytes": os.urandom(5000), "path": None}} for _ in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=10)
    found = parts("image-text", tmp_path, unit_bytes=120_000)
    assert [(low, high) for _, low, high, _ in found] == [(i, i + 20) for i in range(0, 100, 20)]
    assert sum(size for *_, size in found) == pytest.approx(100 * 5000, rel=0.2)


def test_files_cost_their_bytes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x.jpg"), io.BytesIO())
    (tmp_path / "b.jpg").write_bytes(b"x" * 700)
    size = (tmp_path / "a.tar").stat().st_size
    assert parts("image-text", tmp_path) == [("a.tar", 0, -1, size), ("b.jpg", 0, -1, 700)]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"columns": {"caption": "alt"}}, "no column alt; it has url, caption, text"),
        ({"columns": {"media": "image"}}, "no column image"),
        ({"columns": {"url": "link"}}, "no column link"),
        ({"media": "{folder}/{url}.jpg"}, "no column folder"),
        ({"filters": {"at_least": {"aesthetic": 5}}}, "no column aesthetic"),
        ({"filters": {"at_most": {"pwatermark": 0.5}}}, "no column pwatermark"),
        ({"filters": {"equals": {"NSFW": "UNLIKELY"}}}, "no column NSFW"),
    ],
)
def test_a_column_that_the_first_table_lacks_is_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    put(tmp_path, "a.parquet")
    with pytest.raises(UserError, match=words):
        parts("image-text", tmp_path, **more)


def test_a_column_that_the_beginning_of_a_jsonl_file_lacks_is_refused(tmp_path: Path) -> None:
    rows = ["not JSON", "[]", '{"url": "u", "meta": {"text": "c"}}', '{"url": "v", "also": 1}', "{" + '"a":{' * 50]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"the beginning of .*a\.jsonl has no column that .* captions .* also: set"):
        parts("image-text", tmp_path)
    with pytest.raises(UserError, match=r"no column meta\.name; it has url, meta, meta\.text, also: set"):
        parts("image-text", tmp_path, columns={"caption": "meta.name"})
    with pytest.raises(UserError, match="no column text; it has"):
        parts("books", tmp_path)
    scored = {"columns": {"caption": "meta.text"}, "filters": {"at_least": {"score": 0.5}}}
    assert parts("image-text", tmp_path, **scored), "a later row may have the score"


def test_a_jsonl_file_without_rows_at_its_beginning_is_for_the_job(tmp_path: Path) -> None:
    for name, data in {"a": b"", "b": b"\xff\n[1]\n", "c": b"{" + b'"a":{' * 100_000}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_bytes(data)
        assert parts("image-text", tmp_path / name)


def test_a_damaged_table_is_no_fault_of_the_recipe_s(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "b.csv.gz").write_bytes(b"none")
    assert parts("image-text", tmp_path) == [("a.parquet", 0, -1, 4), ("b.csv.gz", 0, -1, 4)]


@pytest.mark.parametrize("media", ["clips/all.mp4", "{}", "{a}}", "{a{b}}", "{a.mp4"])
def test_a_template_names_columns_in_braces(media: str) -> None:
    with pytest.raises(ValueError, match="name at least one column, each in braces"):
        VideoTextSource(name="s", kind="video-text", path="x", media=media)


def test_a_saved_dataset_is_cut_by_what_its_rows_cost(tmp_path: Path) -> None:
    import datasets

    urls = datasets.Dataset.from_list([{"url": f"u{i}", "caption": "c"} for i in range(10)])
    urls.save_to_disk(tmp_path / "urls")
    assert [p[1:3] for p in parts("image-text", tmp_path / "urls", unit_bytes=5 * 2**16 + 500)] == [(0, 5), (5, 10)]
    held = datasets.Dataset.from_list([{"image": {"bytes": b"x" * 1000, "path": None}, "caption": "c"}] * 10)
    held.save_to_disk(tmp_path / "held")
    assert [p[1:3] for p in parts("image-text", tmp_path / "held", unit_bytes=5200)] == [(0, 5), (5, 10)]
    with pytest.raises(UserError, match="the dataset has no column set; it has url, caption: set"):
        parts("video-text", tmp_path / "urls", columns={"url": "url"}, filters={"equals": {"set": 1}})
