"""A unit is committed once, whole, and with a ledger that adds up; or not at all."""

import uuid
from dataclasses import replace

import numpy as np
import pytest
from worldloom.packing import report as reports
from worldloom.packing.dataset import Dataset
from worldloom.packing.example import TEXT, Draft
from worldloom.packing.ledger import DROPPED, FAILED, KEPT
from worldloom.packing.report import (
    REJECTS,
    SHARDS,
    UNITS,
    Reject,
    Report,
    UnitWriter,
    finished_units,
    read_rejects,
    read_report,
    report_name,
)
from worldloom.packing.row import Row, payload, sequence_row
from worldloom.packing.shard import Kind, Shard
from worldloom.packing.storage import Folder
from worldloom.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=300, bos=1, eos=2, text_digest="t")
KIND = Kind("sequences", 16)
BAD = Reject("books", "b/1", "read", FAILED, "not UTF-8", "byte 0xff at 7", "b/1.txt:7", "00ff", "a://b")
SHORT = Reject("books", "b/2", "filter", DROPPED, "too short")


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path) -> Folder:
    made = Folder(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}")
    made.make(UNITS, SHARDS, REJECTS)
    return made


def row(seed: int) -> Row:
    draft = Draft(VOCABULARY)
    draft.add(np.random.default_rng(seed).integers(3, 300, 9), trained=True)
    return sequence_row([draft.example(TEXT, "books", f"b/{seed}")], 16, VOCABULARY)


def write(folder: Folder, seed: int = 0, rejects: tuple[Reject, ...] = (BAD, SHORT)) -> UnitWriter:
    """Open a unit and put a row and rejects into it."""
    writer = UnitWriter(folder, "u-0", VOCABULARY, KIND)
    writer.add(row(seed))
    writer.ledger.read += 1
    writer.ledger.count(KEPT)
    for reject in rejects:
        writer.reject(reject)
        writer.ledger.read += 1
    writer.ledger.tokens_read = 9
    return writer


def files(folder: Folder) -> list[str]:
    return sorted(f"{part}/{name}" for part in (UNITS, SHARDS, REJECTS) for name in folder.names(part))


def test_a_committed_unit_is_read_back(folder):
    with write(folder) as writer:
        assert read_report(folder, "u-0") is None
        assert writer.commit("books", key="k", deny="d")
    report = read_report(folder, "u-0")
    assert report and (report.unit, report.source, report.key, report.deny) == ("u-0", "books", "k", "d")
    assert (report.ledger.read, report.ledger.kept, report.ledger.dropped, report.ledger.failed) == (3, 1, 1, 1)
    assert report.ledger.reasons == {"failed: not UTF-8": 1, "dropped: too short": 1}
    assert report.ledger.tasks == {TEXT: {"examples": 1, "tokens": 9, "trained": 8}}
    assert Report.from_bytes(report.to_bytes()) == report
    assert files(folder) == sorted([report.shard.path, report.rejects.path, report_name("u-0")])
    assert list(finished_units(folder)) == ["u-0"]
    (read,) = Shard(folder, report.shard.path).rows()
    assert payload(read) == payload(row(0)) and (report.shard.rows, report.shard.tokens) == (1, 9)
    for info in (report.shard, report.rejects):
        assert info.content in info.path and info.bytes == len(folder.read(info.path))


def test_of_two_writers_the_first_report_stays(folder):
    with write(folder, 0) as first, write(folder, 1) as second:
        assert first.commit("books", key="k")
        kept = folder.read(report_name("u-0"))
        assert not second.commit("books", key="k")
    assert folder.read(report_name("u-0")) == kept
    (read,) = Shard(folder, read_report(folder, "u-0").shard.path).rows()
    assert payload(read) == payload(row(0))


def test_a_unit_run_twice_writes_the_same_files(folder):
    with write(folder) as writer:
        assert writer.commit("books", key="k")
    before = {name: folder.read(name) for name in files(folder)}
    with write(folder) as writer:
        assert not writer.commit("books", key="k")
    assert {name: folder.read(name) for name in files(folder)} == before


def test_a_stale_report_is_replaced_only_if_it_is_still_the_one_read(folder):
    with write(folder, 0) as writer:
        writer.commit("books", key="old")
    stale = folder.read(report_name("u-0"))
    with write(folder, 1) as writer:
        assert not writer.commit("books", key="new", stale=b"another")
    assert read_report(folder, "u-0").key == "old"
    with write(folder, 1) as writer:
        assert writer.commit("books", key="new", stale=stale)
    assert read_report(folder, "u-0").key == "new"


@pytest.mark.parametrize("rejects", [(), (BAD,)])
def test_a_killed_writer_leaves_nothing(folder, rejects):
    with pytest.raises(KeyboardInterrupt), write(folder, rejects=rejects) as writer:
        drafts = list(writer._drafts)
        raise KeyboardInterrupt
    assert files(folder) == [] and not any(draft.exists() for draft in drafts)


def test_a_writer_that_does_not_commit_leaves_nothing(folder):
    with write(folder):
        pass
    assert files(folder) == []


@pytest.mark.parametrize("name", ["read", "kept", "dropped", "tokens_read", "tokens_dropped"])
def test_an_unbalanced_ledger_is_refused(folder, name):
    """A record or token that a reader lost, or a row that was not written, cannot be committed."""
    with pytest.raises(ValueError, match="does not add up"), write(folder) as writer:
        setattr(writer.ledger, name, getattr(writer.ledger, name) + 1)
        writer.commit("books", key="k")
    assert files(folder) == []


def test_a_report_that_cannot_be_read_is_a_unit_not_done(folder):
    for damage in (b"", b"{", b"[]", b'{"unit": "u-0"}', b"\xff"):
        folder.overwrite(report_name("u-0"), damage)
        assert read_report(folder, "u-0") is None
    with write(folder) as writer:
        assert writer.commit("books", key="k", stale=b"\xff")
    assert read_report(folder, "u-0") is not None


def test_a_unit_without_rejects_has_no_file_of_them(folder):
    with write(folder, rejects=()) as writer:
        writer.commit("books", key="k")
    report = read_report(folder, "u-0")
    assert report.rejects is None and list(read_rejects(folder, report)) == []


def test_rejects_are_read_as_they_were_written(folder, monkeypatch):
    monkeypatch.setattr(reports, "REJECTS_AT_ONCE", 3)
    written = tuple(replace(BAD, record=f"b/{i}", error="é\x00\n" * i) for i in range(8))
    with write(folder, rejects=written) as writer:
        writer.commit("books", key="k")
    report = read_report(folder, "u-0")
    assert tuple(read_rejects(folder, report)) == written and report.rejects.rows == 8


def test_a_directory_of_units_without_a_manifest_is_not_complete(folder):
    with write(folder) as writer:
        writer.commit("books", key="k")
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        Dataset(folder.url)
