"""Bin packing: lengths planned a second, and the fill against what the proven lower bound allows."""

import statistics
import sys
from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
from worldloom.packing.binpack import lower_bound, plan

from benchmarks.measure import RUNS, Measure, seconds

ITEMS = 1_000_000
SPEED = 3e6  # lengths a second, item indices assigned


def measures() -> Iterator[Measure]:
    """Yield for five mixes the speed over 3 M lengths/s, and the fill over the one that the bound allows."""
    for name, (lengths, capacity) in mixes(np.random.default_rng(0)).items():
        bound, bins = lower_bound(lengths, capacity), plan(lengths, capacity).bins
        rate = ITEMS / statistics.median(seconds(lambda x=lengths, c=capacity: plan(x, c)) for _ in range(RUNS))
        full = lengths.sum() / capacity
        print(f"{name}: fill {full / bins:.4f} of {full / bound:.4f}, {rate / 1e6:.2f} M lengths/s", file=sys.stderr)
        if name == "images":
            show_peer(lengths, capacity)
        yield Measure(f"packing-{name}-speed", rate / SPEED, 1)
        yield Measure(f"packing-{name}-fill", bound / bins, 0.998 if name == "images" else 0.99)


def mixes(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, int]]:
    """Draw captioned images, even pairs, video clips, chats, and windows of books among clips and pairs."""
    images = np.clip(rng.lognormal(np.log(45), 0.6, ITEMS), 5, 140).astype(np.int64) + 265
    pairs = rng.integers(270, 401, ITEMS)
    videos = 257 * rng.integers(3, 31, ITEMS) + rng.integers(10, 61, ITEMS)
    chats = np.clip(rng.lognormal(np.log(600), 1, ITEMS), 8, 32768).astype(np.int64)
    kind = rng.random(ITEMS)
    remainders = rng.integers(2, 32768, ITEMS)
    mixed = np.select([kind < 0.02, kind < 0.1, kind < 0.3], [32768, remainders, videos], pairs)
    return {
        "images": (images, 1024),
        "pairs": (pairs, 1024),
        "videos": (videos, 8192),
        "chats": (chats, 32768),
        "mixed": (mixed, 32768),
    }


def show_peer(lengths: np.ndarray, capacity: int) -> None:
    """Print speed and fill of plain best-fit-decreasing in the same minute."""
    bins: list[int] = []
    time = seconds(lambda: bins.extend(best_fit_decreasing(lengths, capacity)))
    fill = lengths.sum() / capacity / (max(bins) + 1)
    print(f"best-fit-decreasing: fill {fill:.4f}, {len(lengths) / time / 1e6:.2f} M lengths/s", file=sys.stderr)


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> list[int]:
    """Return each item's bin, the longest items first, each put where the least room is left."""
    bin_of, rooms, open_bins, opened = [0] * len(lengths), [], {}, 0
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        at = bisect_left(rooms, length)
        if at == len(rooms):
            room, chosen, opened = capacity, opened, opened + 1
        else:
            room = rooms[at]
            chosen = open_bins[room].pop()
            if not open_bins[room]:
                del rooms[at]
        bin_of[item] = chosen
        if not open_bins.setdefault(room - length, []):
            insort(rooms, room - length)
        open_bins[room - length].append(chosen)
    return bin_of
