"""Which frames of a clip are kept: so many a second of presentation time, and within a budget (design §8).

Times are whole numbers in the stream's own time base, and every comparison is exact.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from ...packing.thin import uniform

Sampling = Literal["window", "uniform"]


def count_ticks(first: int, last: int, time_base: Fraction, rate: int) -> int:
    """Return how many k there are with first + k / rate <= last: at least one where last >= first."""
    return rate * time_base.numerator * (last - first) // time_base.denominator + 1


def choose_ticks(total: int, budget: int, sampling: Sampling, draw: float) -> list[int]:
    """Return the ticks that are kept, ascending: all, where the budget allows it.

    `window` keeps consecutive ones from a start that `draw` in [0, 1) places. `uniform` keeps the first, the last and
    evenly many between them: LWM's linspace, cut to whole numbers (reference: `reference/lwm.md` §4).
    """
    if total <= budget:
        return list(range(total))
    if sampling == "window":
        start = int(Fraction(draw) * (total - budget + 1))
        return list(range(start, start + budget))
    return uniform(budget, total).tolist()


def frames_at(times: np.ndarray, ticks: Sequence[int], time_base: Fraction, rate: int) -> np.ndarray:
    """Return for each tick k the index of the last frame with time - first time <= k / rate.

    Args:
      times: int64[frames], ascending, in units of `time_base`.
    """
    first, unit = int(times[0]), rate * time_base.numerator
    limits = np.array([first + k * time_base.denominator // unit for k in ticks], np.int64)
    return np.searchsorted(times, limits, side="right") - 1


def frames_between(times: np.ndarray, start: float | None, end: float | None, time_base: Fraction) -> slice:
    """Return which frames lie in [start, end), seconds after the first; a bound of None leaves that side open.

    A bound is taken for the decimal number that it prints as, so that 5.1 is 51/10.
    """
    left = 0 if start is None else int(np.searchsorted(times, _ceiling(start, int(times[0]), time_base)))
    right = len(times) if end is None else int(np.searchsorted(times, _ceiling(end, int(times[0]), time_base)))
    return slice(left, right)


def _ceiling(seconds: float, first: int, time_base: Fraction) -> int:
    """Return the first time that is at least `seconds` after `first`, or the largest that int64 holds."""
    return min(first + math.ceil(Fraction(str(seconds)) / time_base), np.iinfo(np.int64).max)
