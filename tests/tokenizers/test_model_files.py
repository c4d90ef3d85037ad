"""Copies of models: fetched once, whole, by one at a time, anew where they changed, and not kept for ever."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from worldloom.errors import UserError
from worldloom.tokenizers import model_files
from worldloom.tokenizers.model_files import local_file

URL = "memory://models/a.model"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path / f"worldloom-models-{os.getuid()}"
    fsspec.filesystem("memory").store.clear()


def write(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(content)


def copies(place: Path) -> list[Path]:
    return sorted(p for p in place.iterdir() if not p.name.startswith("."))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_local_file_is_its_own(scheme: str, tmp_path: Path, place: Path) -> None:
    assert local_file(f"{scheme}{tmp_path}/x") == tmp_path / "x"
    assert not place.exists()


def test_another_is_fetched_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(URL, b"one")
    copy = local_file(URL)
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "get_file", None)
    assert local_file(URL) == copy and copy.read_bytes() == b"one"
    assert copy.name.endswith("-a.model") and copies(place) == [copy]
    assert place.stat().st_mode & 0o777 == 0o700


def test_one_that_was_written_anew_is_fetched_anew(place: Path) -> None:
    write(URL, b"one")
    first = local_file(URL)
    write(URL, b"two")
    assert local_file(URL).read_bytes() == b"two"
    assert first.read_bytes() == b"one"  # another process may be reading it


def test_a_missing_one_leaves_nothing(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        local_file(URL)
    assert not place.exists() or not copies(place)


def test_half_a_file_is_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.get_filesystem_class("memory")
    whole = memory.get_file

    def torn(self: Any, path: str, local: str, **options: Any) -> None:
        whole(self, path, local, **options)
        os.truncate(local, 2)

    write(URL, b"12345")
    monkeypatch.setattr(memory, "get_file", torn)
    with pytest.raises(OSError, match="2 of its 5 bytes arrived"):
        local_file(URL)
    assert copies(place) == []
    monkeypatch.setattr(memory, "get_file", whole)
    assert local_file(URL).read_bytes() == b"12345"  # over what was left of the first


def fetch(place: str, source: str, log: str) -> None:
    """Ask for a file in a process of its own, slowly, and note each fetch."""
    import tempfile

    tempfile.tempdir = place
    fetched = model_files._fetch

    def slow(*arguments: Any) -> None:
        with Path(log).open("a") as file:
            file.write("fetched\n")
        time.sleep(0.2)
        fetched(*arguments)

    model_files._fetch = slow  # type: ignore[assignment]
    assert local_file(f"simplecache::file://{source}").read_bytes() == b"model"


def test_processes_that_ask_at_once_fetch_it_once(tmp_path: Path, place: Path) -> None:
    (tmp_path / "m.model").write_bytes(b"model")
    arguments = (str(tmp_path), str(tmp_path / "m.model"), str(tmp_path / "log"))
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=fetch, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "fetched\n"
    assert len(copies(place)) == 1


def test_only_so_many_bytes_are_kept_and_what_is_used_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "MOST", 25)
    for number in range(4):
        write(f"memory://models/{number}", bytes([number]) * 10)
    kept = [local_file(f"memory://models/{number}") for number in range(3)]
    assert copies(place) == sorted(kept)  # too many, but each may be in use
    for age, copy in zip((9000, 8000, 7200), kept, strict=True):
        os.utime(copy, (time.time() - age,) * 2)
    local_file("memory://models/0")  # used again
    new = local_file("memory://models/3")
    assert copies(place) == sorted([kept[0], new])


@pytest.mark.parametrize("how", ["open", "link", "file"])
def test_a_folder_that_others_may_write_is_not_trusted(how: str, tmp_path: Path, place: Path) -> None:
    if how == "open":
        place.mkdir()
        place.chmod(0o777)
    elif how == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.touch()
    write(URL, b"one")
    with pytest.raises((UserError, FileExistsError)):
        local_file(URL)
