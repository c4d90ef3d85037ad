"""The toy world on disk: real files that the sources read, with the pictures, clips and words of `world`.

That those are true is held by test_world.py.
"""

import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from worldloom.pipelines.captioned import read_part
from worldloom.pipelines.decoding.clips import ClipLimits, read_clip
from worldloom.pipelines.decoding.pictures import PictureLimits, decode_picture
from worldloom.pipelines.reading.listing import list_parts
from worldloom.pipelines.records import ImageText, VideoText
from worldloom.pipelines.toy.files import write_clips, write_images, write_questions, write_tar
from worldloom.pipelines.toy.world import caption, draw, questions, scene
from worldloom.sources import ImageTextSource, MediaSource, VideoTextSource

av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
SIZE = 64


def read(source: MediaSource) -> list[ImageText]:
    """Read all records of a source, none of which may be bad."""
    found = [record for part, _ in list_parts(source) for record in read_part(source, part)]
    assert all(isinstance(record, ImageText) for record in found), found
    return found  # type: ignore[return-value]


def images(path: object) -> ImageTextSource:
    return ImageTextSource(name="toy", kind="image-text", path=str(path))


def local(url: str) -> Path:
    return Path(url.removeprefix("file://"))


def test_images_are_a_folder_with_captions_that_the_source_reads(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "new" / "images", 12, seed=3, size=SIZE)
    assert [path.name for path in paths] == [f"{n:06d}.png" for n in range(12)]
    assert len(list(paths[0].parent.iterdir())) == 24
    records = read(images(paths[0].parent))
    assert [record.record for record in records] == [path.name for path in paths]
    for number, (path, record) in enumerate(zip(paths, records, strict=True)):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n") and local(record.media.path) == path
        assert np.array_equal(decode_picture(data, PictureLimits(SIZE)).frame, draw(scene(3, number), SIZE))
        assert record.text == caption(scene(3, number)) and path.with_suffix(".txt").read_text() == record.text + "\n"


@pytest.mark.parametrize(("form", "magic"), [("jpg", b"\xff\xd8\xff"), ("png", b"\x89PNG\r\n\x1a\n")])
def test_a_tar_is_as_img2dataset_writes_it_and_is_read(tmp_path: Path, form: str, magic: bytes) -> None:
    path = tmp_path / "new" / "00000.tar"
    write_tar(path, 6, seed=3, size=SIZE, form=form)
    with tarfile.open(path) as archive:
        names = archive.getnames()
    keys = [f"{n:09d}" for n in range(6)]
    assert names == [f"{key}.{suffix}" for key in keys for suffix in sorted((form, "json", "txt"))]
    records = read(images(path))
    assert [record.record for record in records] == [f"00000.tar/{key}" for key in keys]
    for number, record in enumerate(records):
        assert record.media.data.startswith(magic) and record.text == caption(scene(3, number))
        frame = decode_picture(record.media.data, PictureLimits(SIZE)).frame.astype(int)
        wrong = np.abs(frame - draw(scene(3, number), SIZE))
        assert wrong.mean() < 2 if form == "jpg" else not wrong.any()
        told = record.columns
        assert told["sha256"] == hashlib.sha256(record.media.data).hexdigest() and told["key"] == keys[number]
        assert told["caption"] == record.text and (told["width"], told["height"], told["status"]) == (64, 64, "success")
    again = tmp_path / "again.tar"
    write_tar(again, 6, seed=3, size=SIZE, form=form)
    assert again.read_bytes() == path.read_bytes()


def test_clips_are_webvid_s_pages_and_table_that_the_source_reads(tmp_path: Path) -> None:
    paths = write_clips(tmp_path / "new", 52, seed=3, size=16, seconds=1.0, rate=4)
    root = tmp_path / "new"
    assert paths[0] == root / "000001_000050" / "1000001.mp4" and paths[51] == root / "000051_000100" / "1000052.mp4"
    with (root / "webvid.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["videoid", "name", "page_idx", "page_dir", "duration", "contentUrl"]
    assert (rows[51]["page_idx"], rows[51]["duration"]) == ("1", "PT00H00M01S")
    table = VideoTextSource(name="toy", kind="video-text", path=str(root / "webvid.csv"), media_root=str(root))
    folders = VideoTextSource(name="toy", kind="video-text", path=[str(path) for path in paths])
    for source in (table, folders):
        records = read(source)
        assert [local(record.media.path) for record in records] == paths
        assert all(isinstance(record, VideoText) for record in records)
        assert [record.text for record in records] == [caption(scene(3, n, moving=True)) for n in range(52)]
    _, batches = read_clip(str(paths[51]), ClipLimits(size=16))
    assert np.abs(next(batches)[0].astype(int) - draw(scene(3, 51, moving=True), 16)).mean() < 12  # 16 pixels: coarse


def test_no_clips_are_no_table(tmp_path: Path) -> None:
    assert write_clips(tmp_path, 0) == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("clips", [False, True])
def test_questions_name_the_files_and_ask_what_the_world_asks(tmp_path: Path, clips: bool) -> None:
    if clips:
        paths = write_clips(tmp_path / "media", 3, seed=3, size=16, seconds=0.5, rate=4)
    else:
        paths = write_images(tmp_path / "media", 3, seed=3, size=16)
    kind = "video" if clips else "image"
    write_questions(tmp_path / "new" / "chats.jsonl", 3, seed=3, clips=clips, folder="media/")
    lines = (tmp_path / "new" / "chats.jsonl").read_text().split("\n")
    assert lines.pop() == "" and len(lines) == 3
    firsts = set()
    for number, line in enumerate(lines):
        chat = json.loads(line)
        assert list(chat) == ["id", "messages"] and chat["id"] == f"{kind}-{number:06d}"
        messages = chat["messages"]
        medium = messages[0]["content"].pop(0)
        assert medium["type"] == kind and tmp_path / medium[kind] == paths[number]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        texts = [part for message in messages for part in message["content"]]
        assert {part["type"] for part in texts} == {"text"}
        said = [part["text"] for part in texts]
        asked = [tuple(pair) for pair in questions(scene(3, number, moving=clips))]
        assert sorted(zip(said[::2], said[1::2], strict=True)) == sorted(asked)
        firsts.add(asked.index((said[0], said[1])))
    assert len(firsts) > 1, "each question is somewhere the first"


def test_questions_without_a_folder_name_the_file_alone(tmp_path: Path) -> None:
    write_questions(tmp_path / "chats.jsonl", 1)
    (line,) = io.StringIO((tmp_path / "chats.jsonl").read_text())
    assert json.loads(line)["messages"][0]["content"][0] == {"type": "image", "image": "000000.png"}
