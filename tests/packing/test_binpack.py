"""Bin packing against first-fit-decreasing item by item, the true optimum on tiny inputs, and floors on the fill."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.packing import binpack
from worldloom.packing.binpack import lower_bound, plan


def bins_of(lengths, planned):
    return [[int(lengths[i]) for i in group] for group in np.split(planned.order, planned.offsets[1:-1])]


def assert_valid(lengths, capacity, planned):
    assert planned.order.dtype == planned.offsets.dtype == np.int64
    assert sorted(planned.order.tolist()) == list(range(len(lengths)))
    assert planned.offsets[0] == 0 and planned.offsets[-1] == len(lengths)
    if len(lengths):
        assert all(0 < sum(group) <= capacity for group in bins_of(lengths, planned))
        assert planned.bins == len(bins_of(lengths, planned))


def first_fit_decreasing(lengths, capacity):
    rooms = []
    for length in sorted(lengths, reverse=True):
        for i, room in enumerate(rooms):
            if length <= room:
                rooms[i] -= length
                break
        else:
            rooms.append(capacity - length)
    return len(rooms)


def optimum(lengths, capacity):
    """Try every way to put one item after the other into a bin that is open, or into a new one."""
    ways = {()}
    for length in lengths:
        ways = {
            tuple(sorted((*rooms[:i], room - length, *rooms[i + 1 :])))
            for rooms in ways
            for i, room in enumerate((*rooms, capacity))
            if room >= length
        }
    return min(map(len, ways))


@st.composite
def problems(draw, most=150):
    """Draw lengths that are often alike, so that few fit in a bin and all three planners have something to do."""
    capacity = draw(st.sampled_from([1, 2, 7, 24, 100, 1024, 32768, 1 << 20]))
    low = draw(st.integers(1, capacity))
    high = draw(st.integers(low, min(capacity, low * 4)))
    short = st.integers(1, max(1, capacity // 20))
    length = st.one_of(st.integers(low, high), st.integers(low, high), short)
    return np.array(draw(st.lists(length, max_size=most)), np.int64), capacity


tiny = st.integers(1, 24).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=7), st.just(capacity))
)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_every_item_is_in_one_bin_and_no_bin_is_too_full(problem):
    lengths, capacity = problem
    planned = plan(lengths, capacity)
    assert_valid(lengths, capacity, planned)
    assert lower_bound(lengths, capacity) <= planned.bins <= first_fit_decreasing(lengths.tolist(), capacity)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_every_planner_alone_is_valid_and_the_first_is_first_fit_decreasing(problem):
    lengths, capacity = problem
    order = binpack._stable_argsort(lengths)
    sizes, counts = binpack._histogram(lengths[order])
    plans = [
        binpack._assemble(patterns, order) for patterns in binpack._candidates(sizes, counts, capacity, 0) if patterns
    ]
    for planned in plans:
        assert_valid(lengths, capacity, planned)
    assert not plans or plans[0].bins == first_fit_decreasing(lengths.tolist(), capacity)


@settings(max_examples=300, deadline=None)
@given(tiny)
def test_the_lower_bound_is_no_more_than_the_optimum_and_a_plan_no_less(problem):
    lengths, capacity = problem
    best = optimum(lengths, capacity)
    assert lower_bound(np.array(lengths, int), capacity) <= best <= plan(np.array(lengths, int), capacity).bins


@settings(max_examples=150, deadline=None)
@given(tiny.filter(lambda problem: min(problem[0], default=0) > problem[1] // binpack.FEW))
def test_the_linear_program_uses_up_the_demand_in_no_more_bins_than_the_optimum(problem):
    lengths, capacity = np.array(problem[0]), problem[1]
    sizes, counts = binpack._histogram(np.sort(lengths))
    ends, table = binpack._merged_classes(sizes, 0, capacity)
    assert ends.tolist() == list(range(len(sizes)))
    amounts, columns = binpack._solve(sizes, counts, capacity, table, 0)
    used = np.zeros(len(sizes))
    for amount, column in zip(amounts, columns, strict=True):
        assert amount >= 0 and sum(sizes[c - 1] for c in column) <= capacity
        for c, n in Counter(column).items():
            used[c - 1] += amount * n
    np.testing.assert_allclose(used, counts, atol=1e-6)
    assert lengths.sum() / capacity - 1e-6 <= amounts.sum() <= optimum(problem[0], capacity) + 1e-6


def test_the_linear_program_finds_the_known_optimum():
    # Two of 4 and one of 2 fill a bin of 10, as do two of 5; three of 3 leave 1, two of 3 and one of 4 fill it.
    sizes, demand = np.array([3, 4, 5]), np.array([200, 100, 200])
    _, table = binpack._merged_classes(sizes, 0, 10)
    assert binpack._solve(sizes, demand, 10, table, 0)[0].sum() == pytest.approx(200)


def test_a_shorter_item_may_be_worth_more_than_a_longer_one():
    _, table = binpack._merged_classes(np.array([4, 5]), 0, 9)
    assert binpack._price(np.array([0, 0.6, 0.5]), table) == ([1, 1], pytest.approx(1.2))


def test_the_exchange_fills_the_bin_with_even_items():
    sizes = np.array([35, 50, 60, 200])
    ((first, times), *_) = binpack._greedy(binpack._Stock(sizes, np.array([1, 2, 1, 1])), 300, exchanged=2)
    assert (first, times) == ({4: 1, 2: 2}, 1)  # 200 + 50 + 50, not 200 + 60 + 35


def test_each_bound_holds_where_it_is_the_best():
    assert lower_bound(np.full(10, 1), 4) == 3  # the total
    assert lower_bound(np.full(9, 4), 10) == 5  # two fit
    assert lower_bound(np.array([3] * 9 + [1]), 8) == 5  # two of the nine fit, though three of the shortest do
    assert lower_bound(np.array([6, 6, 6, 1]), 10) == 3  # above half
    assert lower_bound(np.array([7, 7, 4, 4, 4]), 10) == 4  # L2: 7 and 4 do not go together


@given(st.lists(st.integers(0, 2**40), max_size=50))
def test_the_radix_sort_is_the_stable_sort(values):
    values = np.array(values, np.int64)
    assert binpack._stable_argsort(values).tolist() == np.argsort(values, kind="stable").tolist()


def test_no_items_no_bins():
    for nothing in (np.array([], np.int64), np.array([])):
        planned = plan(nothing, 1024)
        assert (planned.order.tolist(), planned.offsets.tolist(), planned.bins) == ([], [0], 0)
        assert lower_bound(nothing, 1024) == 0


def test_full_items_keep_a_bin_each():
    assert plan(np.array([1024, 1, 1024, 1023]), 1024).bins == 3


def images(rng, n):
    return 265 + np.clip(rng.lognormal(np.log(45), 0.6, n), 5, 140).astype(np.int64), 1024


def pairs(rng, n):
    return rng.integers(270, 401, n), 1024


def videos(rng, n):
    return 257 * rng.integers(3, 31, n) + rng.integers(10, 61, n), 8192


def chats(rng, n):
    return np.clip(rng.lognormal(np.log(600), 1, n), 8, 32768).astype(np.int64), 32768


def mixture(rng, n):
    kinds = np.split(rng.permutation(n), (n * np.array([0.02, 0.1, 0.3])).astype(int))
    lengths = np.full(n, 32768)
    lengths[kinds[1]] = rng.integers(2, 32768, len(kinds[1]))
    lengths[kinds[2]] = videos(rng, len(kinds[2]))[0]
    lengths[kinds[3]] = pairs(rng, len(kinds[3]))[0]
    return lengths, 32768


def tight(rng, n):
    """Draw lengths of which three fit together on the average exactly: only the linear program manages."""
    return rng.integers(280, 404, n), 1024


def with_short(rng, n):
    """Draw pairs and a tenth of short items: the linear program must leave those to fill the rest."""
    return np.where(rng.random(n) < 0.1, rng.integers(5, 100, n), rng.integers(270, 401, n)), 1024


def many_to_a_bin(rng, n):
    """Draw images for longer bins, where only the exchange helps."""
    return images(rng, n)[0], 4096


@pytest.mark.parametrize(
    ("draw", "floor"),
    [
        (images, 0.998),
        (pairs, 0.99),
        (videos, 0.99),
        (chats, 0.99),
        (mixture, 0.99),
        (tight, 0.99),
        (with_short, 0.99),
        (many_to_a_bin, 0.995),
    ],
)
def test_the_fill_is_near_what_the_lower_bound_allows(draw, floor):
    lengths, capacity = draw(np.random.default_rng(0), 50_000)
    planned = plan(lengths, capacity)
    assert_valid(lengths, capacity, planned)
    assert lower_bound(lengths, capacity) / planned.bins >= floor


@pytest.mark.parametrize("draw", [pairs, tight, mixture])
def test_the_plan_depends_on_the_values_alone(draw):
    lengths, capacity = draw(np.random.default_rng(1), 2_000)
    first = plan(lengths, capacity)
    for same in (lengths.copy(), lengths.astype(np.uint16), lengths.astype(np.int32)[::-1][::-1]):
        again = plan(same, capacity)
        assert np.array_equal(first.order, again.order) and np.array_equal(first.offsets, again.offsets)


def test_planning_leaves_the_lengths_alone():
    lengths = np.array([5, 3, 9])
    lengths.setflags(write=False)
    plan(lengths, 10)
    assert lengths.tolist() == [5, 3, 9]


@pytest.mark.parametrize(
    ("lengths", "capacity", "words"),
    [
        ([5, 1025, 9], 1024, "Length 1025 of item 1 .* from 1 to the capacity 1024"),
        ([5, 7, 0], 1024, "Length 0 of item 2 .* from 1 to the capacity 1024"),
        ([-3], 1024, "Length -3 of item 0 "),
        ([5.0], 1024, "integers in one dimension, not float64"),
        ([[5]], 1024, r"integers in one dimension, not int64 of shape \(1, 1\)"),
        ([], 0, "capacity of a bin is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_packed_is_named(lengths, capacity, words):
    for call in (plan, lower_bound):
        with pytest.raises(UserError, match=words):
            call(np.array(lengths), capacity)
