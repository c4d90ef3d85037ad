"""Who has an allocator of its own: a job's worker process, and no other.

The sign is independent of how it is set: a block far above malloc's usual limit, freed and asked for again, takes new
pages of the kernel where it was given back, and none where it stayed.
"""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from worldloom.tokenizers.allocator import own_allocator

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="SKIPPED: the C library is not glibc, whose malloc alone can be set"
)

PROBE = """
import ctypes, resource, sys, threading

SIZE = 2**26
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]


def touch():
    block = libc.malloc(ctypes.c_size_t(SIZE))
    ctypes.memset(block, 1, SIZE)
    libc.free(block)


def stays():
    touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    touch()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < SIZE // 2**22  # half as many as huge pages


def both():
    '''Does memory stay for the main thread, and for another, as those in which a network runs?'''
    found = [stays()]
    thread = threading.Thread(target=lambda: found.append(stays()))
    thread.start()
    thread.join()
    return found
"""


def run(tmp_path: Path, code: str) -> str:
    """Run the probe and then code, as a script whose worker processes can import it; returns what it printed."""
    body = "".join(f"    {line}\n" for line in code.splitlines())
    (tmp_path / "script.py").write_text(f"{PROBE}\n\nif __name__ == '__main__':\n{body}")
    command = [sys.executable, str(tmp_path / "script.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_memory_stays_where_it_is_asked_for(tmp_path: Path) -> None:
    code = "from worldloom.tokenizers.allocator import own_allocator\nprint(own_allocator(), *both())"
    assert run(tmp_path, code) == "True True True"


def test_an_import_changes_nothing(tmp_path: Path) -> None:
    code = "import worldloom.tokenizers.vision, worldloom.pipelines.local_workers\nprint(*both())"
    assert run(tmp_path, code) == "False False"


def test_a_jobs_worker_has_it_and_its_submitter_has_not(tmp_path: Path) -> None:
    code = (
        "from worldloom.pipelines.local_workers import LocalWorkers\n"
        "workers = LocalWorkers(1)\n"
        "found = [*workers.submit(both), *workers.drain()]\n"
        "workers.close()\n"
        "print(*found, both())"
    )
    assert run(tmp_path, code) == "[True, True] [False, False]"


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: object) -> None:
        raise AssertionError("a C library was loaded")

    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", load)
    assert own_allocator() is False
