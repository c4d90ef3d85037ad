"""What a benchmark reports, and how two things are timed fairly."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

RUNS = 5


@dataclass(frozen=True)
class Measure:
    """One ratio and the floor that it must reach; an upper bound is reported inverted."""

    name: str
    ratio: float
    floor: float

    def __str__(self) -> str:
        return f"{self.name} {self.ratio:.3f} {self.floor:.3f} {'ok' if self.ratio >= self.floor else 'short'}"


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speedup(ours: Callable[[], object], peer: Callable[[], object], runs: int = RUNS) -> float:
    """Return how many times faster `ours` is than `peer`: the median over interleaved pairs, the first uncounted."""
    ours(), peer()
    return statistics.median(seconds(peer) / seconds(ours) for _ in range(runs))
