"""Turns by a clock of our own, and by torn files and killed holders."""

import asyncio
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldloom.pipelines.asking import rate
from worldloom.pipelines.asking.rate import Turns


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate.tempfile, "gettempdir", lambda: str(tmp_path))


def test_turns_are_evenly_spaced_and_idle_time_saves_none() -> None:
    clock = Clock()
    one, other = (Turns("http://a/v1", 60, clock) for _ in range(2))  # a second apart
    assert one.claim() == 0.0
    assert other.claim() == pytest.approx(1.0) and one.claim() == pytest.approx(1.0)
    clock.now += 1.25  # woke late
    assert other.claim() == 0.0
    assert one.claim() == pytest.approx(0.75)  # the next turn is not late for that
    clock.now += 100
    assert one.claim() == 0.0 and other.claim() == pytest.approx(1.0)
    assert Turns("http://b/v1", 60, clock).claim() == 0.0  # another server


@given(naps=st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_no_time_holds_more_turns_than_it_may(naps: list[float]) -> None:
    """Claims at any times: n turns in a row take n - 2 intervals at the least."""
    clock = Clock()
    turns, taken = Turns(f"http://{hash(tuple(naps))}", 60, clock), []
    for nap in naps:
        clock.now += nap
        if not turns.claim():
            taken.append(clock.now)
    for i, first in enumerate(taken):
        for n, last in enumerate(taken[i:], 1):
            assert last - first >= n - 2 - 1e-6
    assert taken[0] == 1000 + naps[0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"torn",
        b"\xff" * 16,  # not numbers
        b"x" * 100,
        struct.pack("<dd", 9e9, 9e9 + 1),  # of a clock that has begun anew since
        struct.pack("<dd", 999.0, 5000.0),  # no turn is that far off
        struct.pack("<dd", float("inf"), float("inf")),
    ],
)
def test_a_strange_file_holds_nobody_up(tmp_path: Path, content: bytes) -> None:
    clock = Clock()
    turns = Turns("http://a/v1", 60, clock)
    turns.claim()
    [path] = tmp_path.glob("worldloom-rate-*")
    path.write_bytes(content)
    assert turns.claim() == 0.0 and turns.claim() == pytest.approx(1.0)


def test_a_clock_that_begins_anew(tmp_path: Path) -> None:
    clock = Clock()
    turns = Turns("http://a/v1", 60, clock)
    assert turns.claim() == 0.0
    clock.now = 3.0
    assert turns.claim() == 0.0 and turns.claim() == pytest.approx(1.0)


def test_a_killed_holder_holds_nobody_up(tmp_path: Path) -> None:
    turns = Turns("http://a/v1", 60)
    turns.claim()
    [path] = tmp_path.glob("worldloom-rate-*")
    hold = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{hold}; time.sleep(60)", str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"1\n"
        process.kill()
    assert 0 < turns.claim() <= 1


def test_many_wait_for_one_turn_after_another() -> None:
    turns, times = Turns("http://a/v1", 60 / 0.02), []

    async def one() -> None:
        await turns.take()
        times.append(time.monotonic())

    async def all_of_them() -> None:
        await asyncio.wait_for(asyncio.gather(*(one() for _ in range(10))), 30)

    asyncio.run(all_of_them())
    assert times == sorted(times) and times[-1] - times[0] >= 8 * 0.02
