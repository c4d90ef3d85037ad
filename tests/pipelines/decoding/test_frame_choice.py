"""Which frames are kept, against the rule written out with fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from worldloom.pipelines.decoding.frame_choice import choose_ticks, count_ticks, frames_at, frames_between

TIME_BASES = st.builds(Fraction, st.integers(1, 1001), st.sampled_from([1, 4, 25, 1000, 11456, 12800, 30000, 90000]))
TIMES = st.builds(
    lambda first, steps: (first + np.concatenate([[0], np.cumsum(steps)])).astype(np.int64),
    st.integers(-(10**9), 10**9),
    st.lists(st.integers(0, 40000), max_size=12),
)


def last_frames(times: np.ndarray, time_base: Fraction, rate: int) -> list[int]:
    """Return for k = 0, 1, … the last frame with time - first time <= k / rate, while k / rate <= the last time."""
    seconds = [(int(t) - int(times[0])) * time_base for t in times]
    found, k = [], 0
    while Fraction(k, rate) <= seconds[-1] and k < 300:
        found.append(max(i for i, s in enumerate(seconds) if s <= Fraction(k, rate)))
        k += 1
    return found


@settings(max_examples=100, deadline=None)
@given(TIMES, TIME_BASES, st.integers(1, 8))
@example(np.array([0, 250, 500]), Fraction(1, 1000), 4)
@example(np.array([0, 249, 499, 751]), Fraction(1, 1000), 4)
def test_each_tick_has_the_last_frame_that_is_not_later(times, time_base, rate):
    expected = last_frames(times, time_base, rate)
    total = count_ticks(int(times[0]), int(times[-1]), time_base, rate)
    assert min(total, 300) == len(expected)
    assert frames_at(times, range(len(expected)), time_base, rate).tolist() == expected


def test_times_need_not_fit_floating_point():
    """One tick of 1/90000 s before k = 1, ten thousand years on."""
    first = 2**60 + 1
    times = np.array([first, first + 22499, first + 22500], np.int64)
    assert frames_at(times[:2], [0], Fraction(1, 90000), 4).tolist() == [0]
    assert count_ticks(first, first + 22499, Fraction(1, 90000), 4) == 1
    assert count_ticks(first, first + 22500, Fraction(1, 90000), 4) == 2
    assert frames_at(times, [0, 1], Fraction(1, 90000), 4).tolist() == [0, 2]


@given(st.integers(1, 50), st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_a_window_is_consecutive_and_inside(total, budget, draw):
    ticks = choose_ticks(total, budget, "window", draw)
    assert len(ticks) == min(total, budget)
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))
    assert ticks[0] == (0 if total <= budget else int(Fraction(draw) * (total - budget + 1)))
    assert ticks[-1] < total


def test_every_place_of_a_window_is_drawn_equally_often():
    starts = [choose_ticks(13, 10, "window", i / 400)[0] for i in range(400)]
    assert [starts.count(s) for s in range(5)] == [100, 100, 100, 100, 0]


@given(st.integers(1, 5000), st.integers(1, 500))
def test_uniform_is_the_linspace_of_lwm(total, budget):
    ticks = choose_ticks(total, budget, "uniform", 0.7)
    if total <= budget:
        assert ticks == list(range(total))
    else:
        exact = [Fraction(i * (total - 1), max(budget - 1, 1)) for i in range(budget)]
        assert ticks == [int(x) for x in exact]


@pytest.mark.parametrize(("total", "budget", "expected"), [(10, 4, [0, 3, 6, 9]), (10, 3, [0, 4, 9]), (10, 1, [0])])
def test_uniform_by_hand(total, budget, expected):
    assert choose_ticks(total, budget, "uniform", 0.5) == expected


@settings(max_examples=100, deadline=None)
@given(TIMES, TIME_BASES, st.none() | st.integers(-10, 4000), st.none() | st.integers(-10, 4000))
def test_a_range_is_half_open(times, time_base, start, end):
    low, high = (None if s is None else s / 10 for s in (start, end))
    seconds = [(int(t) - int(times[0])) * time_base for t in times]
    expected = [
        int(t)
        for t, s in zip(times, seconds, strict=True)
        if (start is None or s >= Fraction(start, 10)) and (end is None or s < Fraction(end, 10))
    ]
    assert times[frames_between(times, low, high, time_base)].tolist() == expected


def test_a_range_may_be_absurd():
    times = np.array([0, 10, 20], np.int64)
    assert times[frames_between(times, 1e300, None, Fraction(1, 1000))].tolist() == []
    assert times[frames_between(times, -1e300, 1e300, Fraction(1, 1000))].tolist() == [0, 10, 20]
