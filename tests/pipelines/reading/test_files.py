"""Source files: what a path names, ids relative to the root, and what opens."""

import bz2
import gzip
import os
from pathlib import Path

import fsspec
import pytest
import zstandard
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from worldloom.errors import UserError
from worldloom.pipelines.reading.files import codec_of, form_of, hidden, list_files, open_plain, open_raw

COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "zst": zstandard.ZstdCompressor(write_checksum=True).compress}


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def ids(*patterns: object) -> list[str]:
    return [file.id for file in list_files([str(p) for p in patterns])]


@pytest.mark.parametrize(
    ("name", "form", "codec"),
    [
        ("a.txt", "txt", ""),
        ("A.TXT.GZ", "txt", "gzip"),
        ("a.b.jsonl.zst", "jsonl", "zstd"),
        ("a.ndjson.bz2", "jsonl", "bz2"),
        ("a.parquet", "parquet", ""),
        ("a.tar.gz", "tar", "gzip"),
        ("a.tgz", "tar", "gzip"),
        ("a.CSV.gz", "csv", "gzip"),
        ("a.tsv", "tsv", ""),
        ("a.b.JPEG", "picture", ""),
        ("a.jpg.gz", "", "gzip"),
        ("a.webm", "clip", ""),
        ("a.gz", "", "gzip"),
        ("a.json", "json", ""),
        ("a.yaml", "", ""),
        ("txt", "", ""),
    ],
)
def test_the_suffix_tells_form_and_codec(name: str, form: str, codec: str) -> None:
    assert (form_of(f"/some.txt/{name}"), codec_of(f"/some.txt/{name}")) == (form, codec)


def test_ids_are_relative_to_the_root(tmp_path: Path) -> None:
    put(tmp_path, "a/x.txt", "a/b/y.jsonl", "a/b/z.txt.gz", "a/note.md", "c/w.parquet")
    assert ids(tmp_path / "a") == ["b/y.jsonl", "b/z.txt.gz", "x.txt"]
    assert ids(f"{tmp_path}/a/") == ["b/y.jsonl", "b/z.txt.gz", "x.txt"]
    assert ids(tmp_path / "a/x.txt") == ["x.txt"]
    assert ids(tmp_path / "a/*/*") == ["b/y.jsonl", "b/z.txt.gz"]
    assert ids(tmp_path / "a/**/*.txt") == ["x.txt"]
    assert ids(tmp_path / "a", tmp_path / "c") == ["a/b/y.jsonl", "a/b/z.txt.gz", "a/x.txt", "c/w.parquet"]


def test_forms_that_are_not_asked_for_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "b.csv", "c.jpg", "d.mp4")
    assert ids(tmp_path) == ["a.txt"]
    assert [file.id for file in list_files([str(tmp_path)], {"picture", "csv"})] == ["b.csv", "c.jpg"]
    with pytest.raises(UserError, match=r"d\.mp4 matches no file of a known form \(\.csv\)"):
        list_files([str(tmp_path / "d.mp4")], {"csv"})


def test_the_ids_are_the_same_wherever_the_files_lie(tmp_path: Path, memory_root: str) -> None:
    put(tmp_path, "a/x.txt", "b/y.txt")
    fs = fsspec.filesystem("memory")
    fs.put(f"{tmp_path}/", memory_root, recursive=True)
    for patterns in (["a", "b"], ["*/*.txt"], ["a/x.txt", "b"]):
        local = [f"{tmp_path}/{p}" for p in patterns]
        assert ids(*local) == ids(*[f"{memory_root}/{p}" for p in patterns]) == ["a/x.txt", "b/y.txt"]


@pytest.fixture
def memory_root(request: pytest.FixtureRequest) -> str:
    return f"memory://{request.node.name}"


def test_a_file_named_twice_is_taken_once(tmp_path: Path) -> None:
    put(tmp_path, "a/x.txt", "a/y.txt")
    assert ids(tmp_path / "a", tmp_path / "a", tmp_path / "a/*.txt", tmp_path / "a/x.txt") == ["x.txt", "y.txt"]


def test_hidden_files_and_folders_are_passed_over_unless_named(tmp_path: Path) -> None:
    put(tmp_path, ".h/r/x.txt", ".h/r/.y.txt", ".h/r/_z.txt", ".h/r/.git/w.txt", ".h/r/_tmp/v.txt", ".h/r/s/u.txt")
    assert ids(tmp_path / ".h/r") == ids(tmp_path / ".h/r/**") == ["s/u.txt", "x.txt"]
    assert ids(tmp_path / ".h/r/_z.txt") == ["_z.txt"]
    assert hidden("a/.b/c", "txt") and not hidden("a.b/c_d", "txt")


def test_names_of_cameras_and_videos_may_begin_with_an_underscore(tmp_path: Path) -> None:
    put(
        tmp_path, "r/_DSC0001.jpg", "r/_raw/1.png", "r/_aBcDeFgHiJ.mp4", "r/.thumb.jpg", "r/.git/1.png", "r/_meta.jsonl"
    )
    found = list_files([str(tmp_path / "r")], ("picture", "clip", "jsonl"))
    assert [file.id for file in found] == ["_DSC0001.jpg", "_aBcDeFgHiJ.mp4", "_raw/1.png"]


def test_a_pipe_is_no_file_to_wait_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="a pipe"):
        open_raw(str(tmp_path / "a.txt"))


def test_links_to_files_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    put(tmp_path, "blobs/0a1b", "r/x.txt")
    (tmp_path / "r/book.txt").symlink_to("../blobs/0a1b")
    (tmp_path / "r/loop").symlink_to(tmp_path / "r")
    (tmp_path / "r/folder.txt").symlink_to(tmp_path / "blobs")
    (tmp_path / "r/self.txt").symlink_to("self.txt")
    (tmp_path / "r/gone.txt").symlink_to("nowhere.txt")
    found = {file.id: file for file in list_files([str(tmp_path / "r")])}
    assert list(found) == ["book.txt", "gone.txt", "self.txt", "x.txt"]  # the broken ones become rejects when read
    assert found["book.txt"].size == len("blobs/0a1b")
    with open_raw(found["book.txt"].url) as file:
        assert file.read() == b"blobs/0a1b"
    before = found["book.txt"].version
    os.utime(tmp_path / "blobs/0a1b", (1, 1))
    assert list_files([str(tmp_path / "r")])[0].version != before
    (tmp_path / "link").symlink_to(tmp_path / "r")
    assert "x.txt" in ids(tmp_path / "link")


@pytest.mark.parametrize(
    "name", ["a b.txt", "a?.txt", "b[1].txt", "c::d.txt", "e#f.txt", "%20.txt", "i\nj.txt", "é.txt"]
)
def test_any_file_name_can_be_listed_and_opened(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    assert ids(tmp_path) == [name]
    with open_raw(list_files([str(tmp_path)])[0].url) as file:
        assert file.read().decode() == name
    if "::" not in name:  # in a path it is a chain of file systems
        assert ids(tmp_path / name) == [name]


def test_a_name_that_is_no_unicode_is_listed_and_opened(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.txt")).write_text("x")
    (file,) = list_files([str(tmp_path)])
    with open_raw(file.url) as opened:
        assert opened.read() == b"x"


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["none"], "none matches no file of a known form"),
        (["*.txt", "*.jsonl"], "jsonl matches no file"),
        (["sub"], "sub matches no file"),
        (["note.md"], "note.md matches no file"),
        (["x.txt", "memory://m/y.txt"], "memory://m/y.txt lies on another file system"),
        (["nosuch://m/y.txt"], "cannot be opened: Protocol not known"),
    ],
)
def test_paths_at_fault_are_refused(tmp_path: Path, patterns: list[str], words: str) -> None:
    put(tmp_path, "x.txt", "note.md", "sub/note.md")
    fsspec.filesystem("memory").pipe("/m/y.txt", b"y")
    with pytest.raises(UserError, match=words):
        ids(*[p if "://" in p else tmp_path / p for p in patterns])


def test_a_place_that_cannot_be_listed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: RangeSystem, path: str) -> bool:
        raise PermissionError(13, "Permission denied", path)

    fsspec.register_implementation("ranges", RangeSystem, clobber=True)
    monkeypatch.setattr(RangeSystem, "isfile", refuse)
    with pytest.raises(UserError, match=r"ranges://b/x\.txt cannot be listed: .*Permission denied"):
        ids("ranges://b/x.txt")


def test_pipes_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    put(tmp_path, "x.txt")
    assert ids(tmp_path) == ["x.txt"]
    with pytest.raises(UserError, match="matches no file"):
        ids(tmp_path / "pipe.txt")


def test_size_and_version_tell_contents_apart(tmp_path: Path) -> None:
    put(tmp_path, "x.txt")
    (before,) = list_files([str(tmp_path)])
    assert before == list_files([str(tmp_path)])[0]
    os.utime(tmp_path / "x.txt", (1, 1))
    (after,) = list_files([str(tmp_path)])
    assert (before.size, before.version != after.version) == (5, True)


def drain(path: Path) -> bytes:
    with open_plain(f"file://{path}") as file:
        return b"".join(iter(lambda: file.read(10_000), b""))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compression_is_undone_and_damage_never_passes(tmp_path: Path, suffix: str) -> None:
    data = os.urandom(30_000) + b"again " * 10_000
    packed, path = COMPRESS[suffix](data), tmp_path / f"x.txt.{suffix}"
    path.write_bytes(packed)
    assert drain(path) == data
    path.write_bytes(packed + packed)
    assert drain(path) == data + data
    middle = len(packed) // 2
    flipped = packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :]
    cuts = [packed[:n] for n in (0, 1, 5, middle, len(packed) - 8, len(packed) - 1)]
    for bad in (*cuts, flipped, packed + packed[:middle], packed + b"more", b"plain text, not compressed"):
        path.write_bytes(bad)
        with pytest.raises(OSError):
            drain(path)


def test_files_are_closed(tmp_path: Path) -> None:
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"x" * 100))
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("SKIPPED: this system does not list open files in /proc")
    before = len(list(handles.iterdir()))
    for _ in range(20):
        assert drain(tmp_path / "x.txt.gz") == b"x" * 100
    assert len(list(handles.iterdir())) <= before + 1


class RangeFile(AbstractBufferedFile):
    """A file as object stores have it: its `readline` takes no length."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return RangeSystem.files[self.path][start:end]


class RangeSystem(AbstractFileSystem):
    protocol = "ranges"
    files: dict[str, bytes] = {}  # noqa: RUF012  # shared on purpose

    def info(self, path: str, **_: object) -> dict[str, object]:
        return {"name": path, "size": len(self.files[path]), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **options: object) -> RangeFile:
        return RangeFile(self, path, mode, block_size=7, cache_options={}, size=len(self.files[path]))


def test_lines_are_read_up_to_a_length_from_an_object_store() -> None:
    fsspec.register_implementation("ranges", RangeSystem, clobber=True)
    RangeSystem.files["b/x.jsonl"] = b"abcdefgh\nij\n" * 3
    with open_raw("ranges://b/x.jsonl") as file:
        assert [file.readline(5) for _ in range(4)] == [b"abcde", b"fgh\n", b"ij\n", b"abcde"]
        file.seek(9)
        assert file.readline() == b"ij\n"
