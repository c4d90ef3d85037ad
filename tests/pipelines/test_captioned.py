"""Pictures and clips with captions: every form, every missing piece, every path that leads astray."""

import gzip
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
from worldloom.pipelines.captioned import Found, named_versions, read_part, seconds
from worldloom.pipelines.media import Unfit
from worldloom.pipelines.reading.listing import list_parts
from worldloom.pipelines.records import BadRecord, ImageText, VideoText
from worldloom.sources import ImageTextSource, VideoTextSource

KINDS = {"image-text": ImageTextSource, "video-text": VideoTextSource}
ABOUT = {"url": "http://x/1.jpg", "caption": "from the sidecar", "status": "success", "width": 256}


def read(path: Path | str, kind: str = "image-text", **more: Any) -> list[Found]:
    source = KINDS[kind].model_validate({"name": "s", "kind": kind, "path": str(path), **more})
    return [found for part, _ in list_parts(source) for found in read_part(source, part)]


def brief(found: list[Found]) -> list[tuple[str, str]]:
    """Name each record with its caption, or its reason in brackets."""
    return [(f.record, f"({f.reason})" if isinstance(f, BadRecord) else f.text) for f in found]


def told(found: list[Found]) -> list[str]:
    return [text for _, text in brief(found)]


def places(found: list[Found]) -> list[str]:
    """Say where each record's media are, or its reason in brackets."""
    return [f"({f.reason})" if isinstance(f, BadRecord) else f.media.path or f.media.link for f in found]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


# --- tars


def test_a_shard_of_img2dataset_is_read(tmp_path: Path) -> None:
    sidecar = json.dumps(ABOUT).encode()
    write_tar(
        tmp_path / "0.tar", {"1.jpg": b"p", "1.json": sidecar, "1.txt": b"a cat\r\n", "2.png": b"q", "2.json": sidecar}
    )
    one, two = read(tmp_path)
    where = f"file://{tmp_path}/0.tar key "
    assert isinstance(one, ImageText) and isinstance(two, ImageText)
    assert (one.record, one.where, one.text, one.media.data, one.columns) == (
        "0.tar/1",
        where + "1",
        "a cat",
        b"p",
        ABOUT,
    )
    assert (two.record, two.text, two.media.data) == ("0.tar/2", "from the sidecar", b"q")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"jpg": b"p", "txt": b"c"}, "c"),
        ({"jpg": b"p", "txt": b""}, ""),
        ({"jpg": b"p", "txt": b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe\n"}, "Grüße"),
        ({"jpg": b"p", "json": b'{"text": "t"}'}, "t"),
        ({"jpg": b"p", "json": b'{"caption": "c", "n": NaN}'}, "c"),
        ({"jpg": b"p"}, "(no caption)"),
        ({"jpg": b"p", "json": b"{}"}, "(no caption)"),
        ({"jpg": b"p", "json": b'{"caption": null}'}, "(no caption)"),
        ({"jpg": b"p", "json": b'{"caption": ["a", "b"]}'}, "(no caption)"),
        ({"jpg": b"p", "json": b'{"caption": "\\ud800"}'}, "(not Unicode)"),
        ({"jpg": b"p", "json": b'{"caption": "a\\u0000b"}'}, "(NUL byte)"),
        ({"jpg": b"p", "txt": b"a\0b"}, "(NUL byte)"),
        ({"jpg": b"p", "txt": b"Gr\xfc\xdfe"}, "(not UTF-8)"),
        ({"jpg": b"p", "txt": b"c", "json": b"{"}, "(not JSON)"),
        ({"jpg": b"p", "txt": b"c", "json": b"[" * 99_999}, "(not JSON)"),
        ({"jpg": b"p", "txt": b"c", "json": b"[1]"}, "(no row)"),
        ({"jpg": b"p", "txt": b"c", "json": b"\xff"}, "(not UTF-8)"),
        ({"jpg": b"p", "txt": b"c" * 2**20}, "c" * 2**20),
        ({"jpg": b"p", "txt": b"c" * (2**20 + 1)}, "(too large)"),
        ({"jpg": b"p" * 5000, "txt": b"c"}, "(too large)"),
        ({"txt": b"c"}, "(no picture)"),
        ({"mp4": b"p", "txt": b"c"}, "(no picture)"),
        ({"json": b'{"status": "failed_to_download", "error_message": "HTTP Error 404"}'}, "(no picture)"),
        ({"jpg": b"p", "gif": b"q", "txt": b"c"}, "(two pictures)"),
        ({"cls": b"7"}, "(no sample)"),
    ],
)
def test_a_key_with_a_piece_missing_fails_alone(tmp_path: Path, members: dict[str, bytes], expected: str) -> None:
    good = {"jpg": b"p", "txt": b"good"}
    written = {f"{key}.{s}": data for key, m in (("a", good), ("b", members), ("c", good)) for s, data in m.items()}
    write_tar(tmp_path / "0.tar", written)
    assert brief(read(tmp_path, record_bytes=4999)) == [("0.tar/a", "good"), ("0.tar/b", expected), ("0.tar/c", "good")]


def test_a_picture_that_was_not_fetched_says_why(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"1.json": b'{"status": "failed_to_download", "error_message": "HTTP Error 404"}'})
    (found,) = read(tmp_path)
    assert isinstance(found, BadRecord) and found.error == "failed_to_download: HTTP Error 404"
    assert found.status == "failed"


def test_columns_name_what_a_sidecar_holds(tmp_path: Path) -> None:
    about = {"alt": "alternative", "meta": {"key": 7}, "begin": "00:00:02.5", "until": 4}
    write_tar(tmp_path / "0.tar", {"1.mp4": b"p", "1.txt": b"c", "1.json": json.dumps(about).encode()})
    columns = {"caption": "alt", "id": "meta.key", "start": "begin", "end": "until"}
    (found,) = read(tmp_path, "video-text", columns=columns)
    assert isinstance(found, VideoText)
    assert (found.record, found.text, found.start, found.end) == ("7", "alternative", 2.5, 4.0)
    Path(found.media.path).unlink()
    (plain,) = read(tmp_path, "video-text")
    assert isinstance(plain, VideoText) and (plain.text, plain.start) == ("c", None)
    Path(plain.media.path).unlink()
    (bad,) = read(tmp_path, columns={"id": "alternative"})
    assert told([bad]) == ["(no picture)"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_archive_of_nothing_is_a_reject(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix else bytes
    write_tar(tmp_path / "none.tar", {})
    (tmp_path / f"a.tar{suffix}").write_bytes(pack((tmp_path / "none.tar").read_bytes()))
    (tmp_path / f"b.tar{suffix}").write_bytes(pack(b""))
    (tmp_path / f"c.tar{suffix}").write_bytes(pack(b"PK\5\6" + bytes(18)))
    (tmp_path / f"d.tar{suffix}").write_bytes(b"")
    (tmp_path / "none.tar").unlink()
    assert told(read(tmp_path)) == ["(empty)", "(damaged file)", "(damaged file)", "(damaged file)"]


def test_the_clips_of_a_cut_tar_are_handed_out_or_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "held"))
    members = {f"{k}.{s}": d for k in "abc" for s, d in (("mp4", b"x" * 3000), ("txt", b"c"))}
    write_tar(tmp_path / "0.tar", {**members, "d.mp4": b"y"})
    good = read(tmp_path, "video-text")
    assert told(good) == ["c", "c", "c", "(no caption)"]
    assert sorted(f.media.path for f in good if isinstance(f, VideoText)) == sorted(
        map(str, (tmp_path / "held").iterdir())
    )
    data = (tmp_path / "0.tar").read_bytes()
    for place in range(0, 12 * 1024, 700):
        for path in (tmp_path / "held").iterdir():
            path.unlink()
        (tmp_path / "0.tar").write_bytes(data[:place])
        found = read(tmp_path, "video-text")
        assert told(found) == ["c"] * (len(found) - 1) + ["(damaged file)"]
        assert len(list((tmp_path / "held").iterdir())) == len(found) - 1


def test_a_reader_that_stops_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "held"))
    write_tar(tmp_path / "0.tar", {f"{k}.{s}": b"c" for k in "abc" for s in ("txt", "mp4")})
    source = VideoTextSource(name="s", kind="video-text", path=str(tmp_path))
    ((part, _),) = list_parts(source)
    records = read_part(source, part)
    first = next(records)
    records.close()  # type: ignore[attr-defined]
    assert isinstance(first, VideoText)
    assert [str(path) for path in (tmp_path / "held").iterdir()] == [first.media.path]


# --- tables


def test_the_columns_of_laion_and_coyo_are_known(tmp_path: Path) -> None:
    laion = {
        "SAMPLE_ID": 1,
        "URL": "http://x/1",
        "TEXT": "l",
        "HEIGHT": 300,
        "WIDTH": 400,
        "similarity": 0.3,
        "punsafe": 0.1,
    }
    coyo = {
        "id": 2,
        "url": "http://x/2",
        "text": "c",
        "width": 9,
        "watermark_score": 0.1,
        "clip_similarity_vitb32": 0.2,
    }
    for name, row in (("coyo", coyo), ("laion", laion)):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
    found = read(tmp_path)
    assert brief(found) == [("coyo.parquet#0", "c"), ("laion.parquet#0", "l")]
    assert places(found) == ["http://x/2", "http://x/1"]
    assert isinstance(found[1], ImageText) and found[1].columns == {"URL": "http://x/1", "TEXT": "l"}
    filters = {"at_least": {"similarity": 0.2}, "at_most": {"punsafe": 0.5}, "equals": {"WIDTH": 400}}
    (kept,) = read(tmp_path / "laion.parquet", filters=filters)
    assert isinstance(kept, ImageText)
    assert kept.columns == {"URL": "http://x/1", "TEXT": "l", "WIDTH": 400, "similarity": 0.3, "punsafe": 0.1}


def test_links_are_passed_on_as_they_are(tmp_path: Path) -> None:
    links: list[Any] = [" http://x/\u00e9?a=1#b ", "file:///etc/passwd", "no link", "\ud800", None, "", 7, ["http://x"]]
    write_jsonl(tmp_path / "a.jsonl", [{"caption": "c", "url": link} for link in links] + [{"caption": "c"}])
    assert places(read(tmp_path)) == [*links[:4], *["(no URL)"] * 5]


def test_captions_of_rows_are_strings(tmp_path: Path) -> None:
    captions: list[Any] = ["c", "", None, 7, ["c"], "a\0b", "\ud800"]
    write_jsonl(tmp_path / "a.jsonl", [{"caption": c, "url": "u"} for c in captions])
    expected = ["c", "", "(no caption)", "(no caption)", "(no caption)", "(NUL byte)", "(not Unicode)"]
    assert told(read(tmp_path)) == expected


def webvid(path: Path) -> None:
    path.write_text(
        "videoid,name,page_idx,page_dir,duration,contentUrl\n"
        '1,"A horse, grazing",7,01_50,PT00H00M17S,https://v/1.mp4\n'
        "2,Clouds,7,51_99,PT00H00M07S,https://v/2.mp4\n"
        "3,Rain,7,51_99,PT00H00M07S,https://v/3.mp4\n"
    )


def test_clips_of_webvid_come_by_url_or_from_a_folder(tmp_path: Path) -> None:
    webvid(tmp_path / "webvid.csv")
    found = read(tmp_path, "video-text")
    assert told(found) == ["A horse, grazing", "Clouds", "Rain"]
    assert places(found) == [f"https://v/{i}.mp4" for i in (1, 2, 3)]
    (tmp_path / "clips/01_50").mkdir(parents=True)
    (tmp_path / "clips/01_50/1.mp4").touch()
    (tmp_path / "clips/2.mp4").touch()
    root, near = f"file://{tmp_path}/clips", str(tmp_path / "clips")
    beside = read(tmp_path / "webvid.csv", "video-text", media_root=near)
    assert places(beside) == [f"{root}/01_50/1.mp4", f"{root}/2.mp4", "(no such file)"]
    named = read(tmp_path / "webvid.csv", "video-text", media_root=near, media="{videoid}-{page_dir}.mp4")
    assert places(named) == [f"{root}/1-01_50.mp4", f"{root}/2-51_99.mp4", f"{root}/3-51_99.mp4"]


def test_clips_of_internvid_are_cut_from_files_beside_the_table(tmp_path: Path) -> None:
    row = {"YoutubeID": "jNQXAC9IVRw", "Caption": "an elephant", "Aesthetic_Score": 4.3, "UMT_Score": 0.4}
    times = [("00:00:01.500", "00:00:11.111"), ("61", 75.5), ("00:10:00", "00:09:59"), (None, "1"), ("1:2:3:4", "9")]
    write_jsonl(tmp_path / "a.jsonl", [{**row, "Start_timestamp": a, "End_timestamp": b} for a, b in times])
    one, two, *bad = read(tmp_path, "video-text")
    assert isinstance(one, VideoText) and isinstance(two, VideoText)
    assert (one.start, one.end, one.text) == (1.5, 11.111, "an elephant")
    assert one.media.path == f"file://{tmp_path}/jNQXAC9IVRw.mp4" and not one.media.temporary
    assert one.columns["UMT_Score"] == 0.4
    assert (two.start, two.end) == (61.0, 75.5)
    assert told(bad) == ["(bad times)"] * 3
    (tmp_path / "a.jsonl").write_text(json.dumps({**row, "YoutubeID": None}))
    assert told(read(tmp_path, "video-text")) == ["(no path)"]


def test_clips_that_are_cut_already_are_not_cut_again(tmp_path: Path) -> None:
    row = {
        "YoutubeID": "a",
        "Caption": "c",
        "Start_timestamp": "1.5",
        "End_timestamp": "3",
        "file": "a.mp4",
        "url": "u",
    }
    write_jsonl(tmp_path / "a.jsonl", [{**row, "file": "a.mp4", "url": "u"}])

    def times(**more: Any) -> tuple[str, float | None, float | None]:
        (found,) = read(tmp_path, "video-text", **more)
        assert isinstance(found, VideoText)
        return found.media.path.rpartition("/")[2], found.start, found.end

    assert times(media="{YoutubeID}_{Start_timestamp}.mp4") == ("a_1.5.mp4", None, None)
    with pytest.raises(UserError, match="the times Start_timestamp and End_timestamp, by which the files may be cut"):
        times()
    said = {"start": "Start_timestamp", "end": "End_timestamp"}
    assert times(columns={"start": "", "end": ""}) == ("a.mp4", None, None)
    assert times(columns=said) == ("a.mp4", 1.5, 3)
    assert times(columns={"url": "url"}) == ("", 1.5, 3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1:02:03.5", 3723.5), ("2:03", 123), ("0.25", 0.25), (7, 7), (0.5, 0.5), (" 1 ", 1), ("12.", 12)],
)
def test_times_are_seconds_or_a_clock_s(value: object, expected: float) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        -1,
        "nan",
        float("inf"),
        float("nan"),
        10**400,
        "9" * 5000,
        "9" * 5000 + ":1",
        True,
        None,
        "1e3",
        "1:2:3:4",
        "\uff11",
    ],
)
def test_other_times_are_refused(value: object) -> None:
    with pytest.raises(Unfit, match="bad times"):
        seconds(value)


def test_a_nested_column_of_media_leaves_its_neighbours(tmp_path: Path) -> None:
    row = {"meta": {"image": {"bytes": b"p", "path": None}, "score": 5.0}, "caption": "c", "other": {"image": 1}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    more = {
        "columns": {"media": "meta.image"},
        "filters": {"at_least": {"meta.score": 1}, "equals": {"other.image": 1}},
    }
    (found,) = read(tmp_path, **more)
    assert isinstance(found, ImageText) and found.media.data == b"p"
    assert found.columns == {"caption": "c", "meta": {"score": 5.0}, "other": {"image": 1}}


def test_the_files_that_a_table_names_are_part_of_what_a_unit_depends_on(tmp_path: Path) -> None:
    rows = [{"file": f"in/{i}.jpg", "caption": "c"} for i in range(4)]
    for name in ("0", "1", "2", "other"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{name}.jpg").write_bytes(b"p")
    write_jsonl(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")

    def versions(path: Path, **more: Any) -> list[str]:
        source = ImageTextSource.model_validate({"name": "s", "kind": "image-text", "path": str(path), **more})
        return [named_versions(source, part) for part, _ in list_parts(source)]

    def changed(before: list[str], after: list[str]) -> list[bool]:
        return [old != new for old, new in zip(before, after, strict=True)]

    for name in ("a.jsonl", "b.parquet"):
        table, picture, late = tmp_path / name, tmp_path / "in/0.jpg", tmp_path / "in/3.jpg"
        before = versions(table, unit_bytes=2**17)
        assert len(set(before)) == len(before) > 1
        (tmp_path / "in/other.jpg").write_bytes(b"another")
        assert versions(table, unit_bytes=2**17) == before
        picture.write_bytes(b"new")
        replaced = versions(table, unit_bytes=2**17)
        picture.unlink()
        gone = versions(table, unit_bytes=2**17)
        first = [True, *[False] * (len(before) - 1)]
        assert changed(before, replaced) == changed(replaced, gone) == changed(before, gone) == first
        late.write_bytes(b"late")
        assert changed(gone, versions(table, unit_bytes=2**17)) == first[::-1]
        late.unlink()
        picture.write_bytes(b"p")
    write_jsonl(tmp_path / "c.jsonl", [{"url": "http://x/1.jpg", "caption": "c"}])
    pq.write_table(pa.table({"image": [b"p"], "caption": ["c"]}), tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    for name in ("c.jsonl", "d.parquet", "e.parquet"):
        assert versions(tmp_path / name) == [""]


def test_files_on_object_stores_are_told_apart() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/named/a.csv": b"caption,file\nc,1.jpg\n", "/named/1.jpg": b"p"})
    source = ImageTextSource(name="s", kind="image-text", path="memory://named/a.csv")
    ((part, _),) = list_parts(source)
    before = named_versions(source, part)
    fs.pipe("/named/1.jpg", b"pp")
    assert named_versions(source, part) != before != ""


def test_paths_of_rows_stay_below_their_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (tmp_path / "outside.jpg").touch()
    (root / "link.jpg").symlink_to("../outside.jpg")
    (root / "up").symlink_to("..")
    (root / "inner.jpg").symlink_to("in/1.jpg")
    good = ["in/1.jpg", "a b?.jpg", "no-suffix", "inner.jpg", f"{root}/in/1.jpg"]
    bad = ["../outside.jpg", "in/../../outside.jpg", "/etc/passwd", "http://x/1.jpg", "file:///etc/passwd", "link.jpg"]
    bad += ["up/outside.jpg", "up/root/../outside.jpg", "a\0b.jpg", "\ud800.jpg", "simplecache::http://x/1.jpg"]
    none: list[Any] = [None, "", 7, ["x"], {}, {"path": None}]
    write_jsonl(root / "a.jsonl", [{"caption": "c", "file_name": name} for name in [*good, *bad, *none]])
    found = places(read(root))
    assert found[:4] == [f"file://{root}/{name}" for name in good[:4]]
    assert found[4] == f"file://{root}/in/1.jpg"
    assert found[5:] == ["(path outside)"] * len(bad) + ["(no picture)"] * len(none)


def test_templates_take_columns_and_nothing_else(tmp_path: Path) -> None:
    ids: list[Any] = ["1", 2, "../3", "a/b", "{url.__class__}", "", None, True, 1.5, ["x"]]
    write_jsonl(tmp_path / "a.jsonl", [{"caption": "c", "meta": {"id": i}, "url": "u"} for i in ids])
    found = places(read(tmp_path, media="{meta.id}.jpg"))
    named = [place.removeprefix(f"file://{tmp_path}/") for place in found[:5]]
    assert named == ["1.jpg", "2.jpg", "(path outside)", "a/b.jpg", "{url.__class__}.jpg"]
    assert found[5:] == ["(no path)"] * 5


def test_tables_on_object_stores_name_files_there() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/captioned/a.csv", b"caption,file\nc,in/1.jpg\nc,/in/1.jpg\nc,../x.jpg\n")
    expected = ["memory:///captioned/in/1.jpg", "(path outside)", "(path outside)"]
    assert places(read("memory://captioned")) == expected
    fs.pipe("/elsewhere/in/1.jpg", b"p")
    found = places(read("memory://captioned", media_root="memory://elsewhere"))
    assert found[0] == "memory:///elsewhere/in/1.jpg"


def test_rows_of_the_other_kind_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "captions.tsv").write_text("file\tcaption\nimages/a.png\tpicture\nvideos/b.mp4\tclip\n")
    assert told(read(tmp_path / "captions.tsv")) == ["picture", "(not a picture)"]
    found = read(tmp_path / "captions.tsv", "video-text")
    assert told(found) == ["(not a clip)", "clip"]
    assert isinstance(found[0], BadRecord) and found[0].status == "dropped"


def test_bytes_in_a_column_are_the_picture(tmp_path: Path) -> None:
    values = [b"p", b"", None, b"x" * 1001, b"q"]
    pq.write_table(pa.table({"caption": list("abcde"), "jpg": values, "url": ["u"] * 5}), tmp_path / "a.parquet")
    found = read(tmp_path, record_bytes=1000)
    assert told(found) == ["a", "(no picture)", "(no picture)", "(too large)", "e"]
    assert isinstance(found[4], ImageText) and found[4].media.data == b"q"
    assert found[4].columns == {"caption": "e", "url": "u"}
    assert places(read(tmp_path, columns={"url": "url"})) == ["u"] * 5


# --- folders


def test_a_folder_of_pictures_with_captions_beside_them(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "c.webp", "d.jpg", "sub/e.x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"p" * (5001 if name == "d.jpg" else 1))
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "a.json").write_text('{"url": "u", "caption": "no"}')
    (tmp_path / "b.json").write_text('{"caption": "b cat"}')
    (tmp_path / "d.txt").write_text("d")
    (tmp_path / "sub/e.x.txt").write_text("e cat")
    found = read(tmp_path, record_bytes=5000)
    expected = ["a cat", "b cat", "(no caption)", "(too large)", "e cat"]
    assert brief(found) == list(zip(["a.jpg", "b.png", "c.webp", "d.jpg", "sub/e.x.jpg"], expected, strict=True))
    assert isinstance(found[0], ImageText)
    assert found[0].media.path == f"file://{tmp_path}/a.jpg" and found[0].columns["url"] == "u"
    (tmp_path / "a.txt").write_text("x" * (2**20 + 1))
    assert told(read(tmp_path / "a.jpg")) == ["(too large)"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_an_image_folder_s_metadata_name_its_pictures(tmp_path: Path, form: str) -> None:
    (tmp_path / "train").mkdir()
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (tmp_path / "train" / name).touch()
    rows = [{"file_name": f"{i}.jpg", "text": f"cat {i}"} for i in (2, 1)]
    if form == "csv":
        (tmp_path / "train/metadata.csv").write_text("file_name,text\n2.jpg,cat 2\n1.jpg,cat 1\n")
    elif form == "jsonl":
        write_jsonl(tmp_path / "train/metadata.jsonl", rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train/metadata.parquet")
    found = read(tmp_path)
    assert told(found) == ["cat 2", "cat 1"]
    assert places(found) == [f"file://{tmp_path}/train/{i}.jpg" for i in (2, 1)]


# --- Hugging Face


def test_datasets_with_pictures_and_clips_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (tmp_path / "held").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "held"))
    rows = [
        {"image": {"bytes": b"p", "path": "x.png"}, "text": "a"},
        {"image": None, "text": "b"},
    ]
    made = datasets.Dataset.from_list([*rows, {"image": {"bytes": b"q", "path": "y.png"}, "text": None}])
    made.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    found = read(tmp_path / "saved")
    assert brief(found) == [
        ("saved.train#0", "a"),
        ("saved.train#1", "(no picture)"),
        ("saved.train#2", "(no caption)"),
    ]
    assert isinstance(found[0], ImageText) and found[0].media.data == b"p" and found[0].columns == {"text": "a"}
    clips = datasets.Dataset.from_list([{"video": {"bytes": b"v", "path": "x.mp4"}, "caption": "a"}])
    clips.cast_column("video", datasets.Video()).save_to_disk(tmp_path / "clips")
    (clip,) = read(tmp_path / "clips", "video-text")
    assert isinstance(clip, VideoText) and clip.media.temporary and Path(clip.media.path).read_bytes() == b"v"
    Path(clip.media.path).unlink()
    assert told(read(tmp_path / "clips", "video-text", record_bytes=1, columns={"start": "caption"})) == ["(bad times)"]
    assert not list((tmp_path / "held").iterdir())


def test_a_named_dataset_of_pictures_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "named").mkdir()
    rows = [
        {"image": {"bytes": b"p", "path": None}, "caption": "a"},
        {"image": {"bytes": None, "path": "/etc/passwd"}, "caption": "b"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "named/train.parquet")
    source = ImageTextSource(name="s", kind="image-text", dataset=str(tmp_path / "named"))
    found = [f for part, _ in list_parts(source) for f in read_part(source, part)]
    assert told(found) == ["a", "(path outside)"]


# --- trouble


def test_names_that_are_no_unicode_are_escaped(tmp_path: Path) -> None:
    raw = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.jpg")
    Path(raw).touch()
    Path(raw[:-3] + "txt").write_text("c")
    (found,) = read(tmp_path)
    assert (found.record, told([found])) == ("\\udce9.jpg", ["c"])
    found.where.encode()
    write_tar(tmp_path / "0.tar", {"\udce9.jpg": b"p" * 99, "\udce9.txt": b"c"})
    (bad,) = read(tmp_path / "0.tar", record_bytes=98)
    assert isinstance(bad, BadRecord) and bad.reason == "too large"
    (bad.record + bad.where + bad.error).encode()


def test_storage_in_trouble_fails_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "0.tar", {"1.mp4": b"p" * 10_000, "1.txt": b"c"})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(OSError, match="No space left"):
        read(tmp_path, "video-text")


# --- the real ones


def test_the_real_captions_name_every_picture_and_clip(real_data: Path) -> None:
    pictures, clips = read(real_data / "captions.tsv"), read(real_data / "captions.tsv", "video-text")
    assert sum(isinstance(f, ImageText) for f in pictures) == len(list((real_data / "images").iterdir())) == 13
    assert sum(isinstance(f, ImageText) for f in clips) == len(list((real_data / "videos").iterdir())) == 6
    for found in [*pictures, *clips]:
        if isinstance(found, ImageText):
            with fsspec.open(found.media.path) as file:
                assert file.read(1)


def test_the_real_rows_of_laion_and_webvid_are_read(real_data: Path) -> None:
    found = read(real_data / "tables" / "laion-1000.parquet", unit_bytes=2**24)
    assert len({f.record for f in found}) == 1000
    assert all(isinstance(f, ImageText) and f.media.link.startswith("http") for f in found)
    clips = read(real_data / "tables" / "webvid.csv", "video-text")
    assert len(clips) == 20 and all(isinstance(f, VideoText) and f.media.link.endswith(".mp4") for f in clips)
