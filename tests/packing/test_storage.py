"""The three ways in which a file appears: once, in the place of what was read, or at once."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from worldloom.packing.storage import TEMPORARY, Folder
from worldloom.tests.engines.servers import BUCKET, both

RACERS = 8
TRIALS = {"local": 20, "file": 20, "memory": 20, "gs": 5, "s3": 2}


@pytest.fixture(scope="module")
def stores() -> Iterator[None]:
    with both():
        yield


@pytest.fixture(params=["local", "memory", "file", "gs", "s3"])
def folder(request, tmp_path) -> Folder:
    if request.param in ("gs", "s3"):
        request.getfixturevalue("stores")
    place = uuid.uuid4().hex
    urls = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{place}"}
    urls |= {scheme: f"{scheme}://{BUCKET}/{place}" for scheme in ("gs", "s3")}
    made = Folder(urls[request.param])
    made.make("part")
    return made


@pytest.fixture
def trials(request) -> int:
    """How often a race is run."""
    return TRIALS[request.node.callspec.params["folder"]]


def race(act: Callable[[int], bool]) -> list[bool]:
    """Let threads act at the same moment."""
    start = Barrier(RACERS)

    def run(i: int) -> bool:
        start.wait()
        return act(i)

    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(run, range(RACERS)))


def test_a_file_is_created_by_one_of_those_that_race(folder, trials):
    for trial in range(trials):
        name = f"part/{trial}"
        won = race(lambda i, name=name: folder.create(name, b"%d" % i))
        assert won.count(True) == 1
        assert folder.read(name) == b"%d" % won.index(True)
    assert sorted(folder.names("part")) == sorted(map(str, range(trials)))


def test_a_file_once_created_stays(folder):
    assert folder.create("part/x", b"1") and not folder.create("part/x", b"2")
    assert folder.read("part/x") == b"1" and list(folder.names("part")) == ["x"]


def test_a_file_is_replaced_only_where_it_is_the_one_that_was_read(folder):
    folder.create("part/x", b"old")
    assert not folder.replace("part/x", b"other", b"new") and folder.read("part/x") == b"old"
    assert folder.replace("part/x", b"old", b"new") and folder.read("part/x") == b"new"
    assert not folder.replace("part/missing", b"old", b"new") and folder.read("part/missing") is None
    assert sorted(folder.names("part")) == ["x"]


def test_a_file_is_replaced_by_one_of_those_that_race(folder, trials):
    for trial in range(trials):
        folder.create(f"{trial}", b"old")
        won = race(lambda i, trial=trial: folder.replace(f"{trial}", b"old", b"%d" % i))
        assert won.count(True) == 1 and folder.read(f"{trial}") == b"%d" % won.index(True)
    assert not [name for name in folder.names() if name.startswith(TEMPORARY)]


def test_a_file_is_overwritten_whatever_it_held(folder):
    folder.overwrite("part/x", b"1")
    folder.overwrite("part/x", b"22")
    assert folder.read("part/x") == b"22" and list(folder.names("part")) == ["x"]


def test_a_file_is_never_seen_half_written(folder, trials):
    contents = {bytes([i]) * 200_000 for i in range(3)}
    folder.overwrite("x", b"\0" * 200_000)

    def act(i: int) -> bool:
        if i < 3:
            folder.overwrite("x", bytes([i]) * 200_000)
            return True
        return folder.read("x") in contents

    for _ in range(trials // 2):
        assert all(race(act))


def test_a_finished_file_is_adopted(folder):
    draft = folder.scratch("part/x")
    draft.write_bytes(b"rows")
    assert list(folder.names("part")) in ([], [draft.name])
    folder.adopt(draft, "part/x")
    assert folder.read("part/x") == b"rows" and not draft.exists() and list(folder.names("part")) == ["x"]


def test_only_files_have_names_and_a_missing_folder_has_none(folder):
    folder.create("part/x", b"")
    folder.create("y", b"")
    assert list(folder.names()) == ["y"] and list(folder.names("missing")) == []


def test_a_file_is_removed_and_none_there_is_as_good(folder):
    folder.create("part/x", b"1")
    folder.remove("part/x")
    folder.remove("part/x")
    assert folder.read("part/x") is None and not folder.exists("part/x")
    assert folder.exists() or not folder.local  # elsewhere a folder is there with its files


def test_a_folder_in_a_folder(folder):
    sub = folder.sub("part")
    sub.create("x", b"1")
    assert folder.read("part/x") == b"1" and sub == folder.sub("part") and sub.path("x") == folder.path("part/x")


def test_where_it_is(tmp_path):
    assert Folder(str(tmp_path)).local and Folder(f"file://{tmp_path}").local and not Folder("memory://a").local
    assert Folder(f"file://{tmp_path}/a/").path("b") == str(Path(tmp_path, "a", "b"))
