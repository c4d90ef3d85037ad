"""A disk that fills up: one sentence, and nothing of what was being written is left."""

import errno
import gc
import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from worldloom.errors import RunFailed
from worldloom.packing.example import TEXT, Draft
from worldloom.packing.ledger import FAILED, KEPT
from worldloom.packing.manifest import INDEX, write_index
from worldloom.packing.report import REJECTS, SHARDS, UNITS, Reject, UnitWriter, read_report
from worldloom.packing.row import sequence_row
from worldloom.packing.shard import Kind, ShardWriter
from worldloom.packing.storage import Folder, room
from worldloom.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=300, bos=1, eos=2, text_digest="t")
KIND = Kind("sequences", 4096)
FULL = "no space is left for .*free some, or choose another --out or TMPDIR, and call the same command again"


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path) -> Folder:
    made = Folder(str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}")
    made.make(UNITS, SHARDS, REJECTS)
    return made


@contextmanager
def files_of(most: int) -> Iterator[None]:
    """Let no file grow beyond some bytes: the kernel refuses the write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Folder) -> list[str]:
    return [f"{part}/{name}" for part in ("", UNITS, SHARDS, REJECTS) for name in folder.names(part)]


def write(folder: Folder, rejects: int = 60) -> bool:
    """Write a unit with a shard of some 8 KB and, of 60 rejects, about as many bytes of those."""
    draw = np.random.default_rng(0)
    with UnitWriter(folder, "u-0", VOCABULARY, KIND) as writer:
        draft = Draft(VOCABULARY)
        draft.add(draw.integers(3, 300, 4000), trained=True)
        writer.add(sequence_row([draft.example(TEXT, "books", "b")], KIND.length, VOCABULARY))
        writer.ledger.count(KEPT)
        writer.ledger.read, writer.ledger.tokens_read = 1 + rejects, 4000
        for i in range(rejects):
            writer.reject(Reject("books", f"b/{i}", "read", FAILED, "not UTF-8", draw.bytes(100).hex()))
        return writer.commit("books", key="k")


@pytest.mark.parametrize("most", [10, 3000, 9000])
def test_a_unit_is_not_done_and_leaves_no_draft(folder, most, tmp_path, monkeypatch):
    """The room ends in the shard's head, in its rows, or in the rejects, by when the shard is there, and not named."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with files_of(most), pytest.raises(RunFailed, match=FULL):
        write(folder, rejects=300 if most == 9000 else 60)
    gc.collect()  # what Arrow would write as it goes would be an error here
    assert [name for name in names(folder) if not name.startswith(f"{SHARDS}/u-0-")] == []
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []
    assert read_report(folder, "u-0") is None and write(folder) and read_report(folder, "u-0")


def test_a_full_disk_found_by_arrow_is_told_too(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    folder.make(UNITS, SHARDS, REJECTS)

    def no_room(self: ShardWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "close", no_room)
    with pytest.raises(RunFailed, match=f"{tmp_path} or for temporary files in "):
        write(folder)
    assert names(folder) == []


def test_a_report_is_whole_or_not_there(tmp_path):
    folder = Folder(str(tmp_path))
    with files_of(100):
        for act in (lambda: folder.create("x", b"1" * 200), lambda: folder.overwrite("x", b"1" * 200)):
            with pytest.raises(RunFailed, match=FULL):
                act()
            assert list(folder.names()) == []
        folder.create("x", b"1")
        with pytest.raises(RunFailed, match=FULL):
            folder.replace("x", b"1", b"2" * 200)
    assert list(folder.names()) == ["x"] and folder.read("x") == b"1"


def test_an_index_is_whole_or_not_there(tmp_path):
    folder = Folder(str(tmp_path))
    folder.make(UNITS, SHARDS, REJECTS)
    write(folder)
    report = read_report(folder, "u-0")
    with files_of(1000), pytest.raises(RunFailed, match=FULL):
        write_index(folder, [report])
    gc.collect()
    assert list(folder.names()) == []
    write_index(folder, [report])
    assert list(folder.names()) == [INDEX]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), room(Folder(str(tmp_path))):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(OSError, match="strange"), UnitWriter(Folder("memory://y"), "u", VOCABULARY, KIND):
        raise OSError(errno.EIO, "strange")
    with pytest.raises(KeyError), UnitWriter(Folder("memory://y"), "u", VOCABULARY, KIND):
        raise KeyError("x")


def test_what_is_adopted_is_there_only_after_the_block(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with folder.adopted("x") as draft:
        draft.write_bytes(b"rows")
        assert not folder.exists("x")
    assert folder.read("x") == b"rows" and not Path(draft).exists()
    with pytest.raises(KeyError), folder.adopted("y") as draft:
        draft.write_bytes(b"ro")
        raise KeyError("x")
    assert not folder.exists("y") and not Path(draft).exists()
