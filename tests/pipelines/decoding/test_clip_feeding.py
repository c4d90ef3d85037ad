"""Which packets a decoder is given, against streams whose references are known."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.pipelines.decoding.clip_feeding import FEED, FRESH, HIDDEN, SHORT, SKIP, Packets, plan_feeding
from worldloom.pipelines.decoding.nal_units import CLEAN, SETS, SPARE


def stream(rng: random.Random, runs: int, length: int) -> tuple[Packets, list[set[int]]]:
    """Draw a stream of groups that begin clean: packets, and for each the packets that it refers to.

    Each group has a few leading pictures after its first one: shown before it, they refer to the group before.
    """
    shown, roles, refers = [], [], []
    for run in range(runs):
        clean, base = len(roles), 1000 * run
        shown.append(base)
        roles.append(CLEAN)
        refers.append(set())
        last, before = clean, clean - 1
        for lead in range(rng.choice([0, 0, 2]) if run else 0):
            shown.append(base - 10 + lead)
            roles.append(SPARE)
            refers.append({clean, *(i for i in [before] if not roles[i] & SPARE)})
        for i in range(rng.randrange(length)):
            spare = rng.random() < 0.5
            shown.append(base + 5 * i + 5)
            roles.append(SPARE if spare else 0)
            refers.append({last})
            last = last if spare else len(roles) - 1
    hidden = rng.choice([0, 0, 3])
    roles[:hidden] = [role | HIDDEN for role in roles[:hidden]]
    return Packets(np.array(shown, np.int64), np.array(roles, np.uint8)), refers


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 6), st.integers(1, 80), st.integers(1, 6))
def test_all_that_is_needed_is_fed_and_little_else(seed, runs, length, count):
    rng = random.Random(seed)
    packets, refers = stream(rng, runs, length)
    times = packets.times()
    if times is None or not len(times):
        return
    wanted = np.array(sorted(rng.sample(times.tolist(), min(count, len(times)))), np.int64)
    steps = plan_feeding(packets, wanted)
    place = {int(t): i for i, t in enumerate(packets.pts)}
    assert len(steps) == max(place[int(t)] for t in wanted) + 1
    assert set(steps.tolist()) <= {SKIP, FEED, FRESH}

    held: set[int] = set()  # what the decoder can refer to
    for i, step in enumerate(steps):
        if step == FRESH:
            held = set()
            assert packets.role[i] & CLEAN
        if step != SKIP:
            assert refers[i] <= held, "a packet was fed without what it refers to"
            assert not packets.role[i] & SPARE or packets.pts[i] in wanted, "a packet was fed for nothing"
            held.add(i)
    assert all(steps[place[int(t)]] != SKIP for t in wanted)


def group(count: int, first: int = 0, clean: int = CLEAN) -> Packets:
    """A clean packet, and others that each refer to the one before."""
    return Packets(np.arange(first, first + count) * 10, np.array([clean] + [0] * (count - 1), np.uint8))


def joined(*parts: Packets) -> Packets:
    return Packets(np.concatenate([p.pts for p in parts]), np.concatenate([p.role for p in parts]))


def test_whole_groups_are_skipped_where_the_gap_is_worth_it():
    packets = joined(*(group(40, 40 * i) for i in range(5)))
    steps = plan_feeding(packets, np.array([10, 1650]))
    assert np.flatnonzero(steps).tolist() == [0, 1, 160, 161, 162, 163, 164, 165]
    assert steps[160] == FRESH and (steps == FRESH).sum() == 1


def test_a_short_gap_is_decoded_through():
    packets = joined(group(SHORT), group(5, SHORT))
    assert (plan_feeding(packets, np.array([0, SHORT * 10])) == FEED).all()


def test_a_group_that_relies_on_parameter_sets_of_another_is_not_begun_afresh():
    sets = CLEAN | SETS
    silent = joined(group(40, 0, sets), group(40, 40), group(40, 80, sets))
    assert plan_feeding(silent, np.array([0, 410]))[40] == FEED
    assert plan_feeding(silent, np.array([0, 810]))[80] == FRESH


def test_streams_that_packets_do_not_tell():
    assert group(3).times().tolist() == [0, 10, 20]
    assert group(3, clean=0).times() is None
    assert Packets(np.array([10, 0, 20]), np.array([CLEAN, 0, 0], np.uint8)).times() is None
    assert Packets(np.array([0, 10, 10]), np.array([CLEAN, 0, 0], np.uint8)).times() is None
    assert Packets(np.array([], np.int64), np.array([], np.uint8)).times() is None
    hidden = Packets(np.array([0, 20, 10, 10]), np.array([CLEAN | HIDDEN, 0, HIDDEN, 0], np.uint8))
    assert hidden.times().tolist() == [10, 20]
