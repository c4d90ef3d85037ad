"""The permutation against its definition: every number once, and no pattern that simple statistics see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.training.permutation import make_key, permute

SEEDS = st.integers(0, 2**63)


@pytest.mark.parametrize("n", [*range(1, 130), 1023, 1024, 1025, 4099])
def test_every_number_comes_once(n):
    for epoch in range(3):
        assert sorted(permute(np.arange(n), n, make_key(0, "books", epoch))) == list(range(n))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(10**9, 2**62), seed=SEEDS, low=st.integers(0, 10**8))
def test_large_permutations_repeat_nothing(n, seed, low):
    places = np.concatenate((np.arange(low, low + 500), np.arange(n - 500, n)))
    numbers = permute(places, n, make_key(seed, "books", 0))
    assert numbers.dtype == np.int64 and numbers.min() >= 0 and numbers.max() < n
    assert len(set(numbers.tolist())) == 1000


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 10**6), seed=SEEDS, data=st.data())
def test_an_entry_does_not_depend_on_its_company(n, seed, data):
    place, key = data.draw(st.integers(0, n - 1)), make_key(seed, "x", 7)
    window = np.arange(place, min(n, place + 50))
    assert permute(np.array([place]), n, key)[0] == permute(window, n, key)[0]


def test_golden_values():
    """These orders are part of every run's identity: a change of them changes what old runs resume with."""
    assert permute(np.arange(10), 10, make_key(0, "books", 0)).tolist() == [6, 5, 0, 4, 8, 3, 1, 9, 7, 2]
    assert permute(np.arange(5), 10**9, make_key(42, "chats", 3)).tolist() == [
        847868261,
        647154349,
        18659319,
        422783156,
        435614632,
    ]


@pytest.mark.parametrize("change", [(1, "books", 0), (0, "book", 0), (0, "books", 1)])
def test_seed_name_and_epoch_each_change_the_order(change):
    n = 10_000
    a = permute(np.arange(n), n, make_key(0, "books", 0))
    b = permute(np.arange(n), n, make_key(*change))
    assert np.count_nonzero(a == b) < 10  # one is expected of two unrelated orders
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.04  # four standard deviations


def test_an_order_looks_random():
    n = 10_000
    order = permute(np.arange(n), n, make_key(5, "books", 0))
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.04
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.04
    # Numbers from each tenth of the set are spread over all tenths of the order: chi² with 81 degrees of freedom.
    table = np.histogram2d(np.arange(n), order, 10)[0]
    assert ((table - 100) ** 2 / 100).sum() < 81 + 5 * np.sqrt(2 * 81)
    # So are the steps from one number to the next.
    steps = np.histogram(np.diff(order) % n, 20, (0, n))[0]
    assert ((steps - n / 20) ** 2 / (n / 20)).sum() < 19 + 5 * np.sqrt(2 * 19)


def test_each_number_comes_first_equally_often_over_the_epochs():
    n, epochs = 11, 2200
    firsts = [int(permute(np.zeros(1, np.int64), n, make_key(0, "x", e))[0]) for e in range(epochs)]
    counts = np.bincount(firsts, minlength=n)
    assert ((counts - epochs / n) ** 2 / (epochs / n)).sum() < 10 + 5 * np.sqrt(2 * 10)


@pytest.mark.parametrize("place", [-1, 10])
def test_a_place_outside_is_refused(place):
    with pytest.raises(ValueError, match=r"\[0, 10\)"):
        permute(np.array([place]), 10, make_key(0, "x", 0))
