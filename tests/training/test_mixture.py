"""Mixtures against counting one row after the other; each set's rows against those that it would give alone."""

from collections import Counter
from fractions import Fraction
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.packing.weights import Rule
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training.loader import Loader, stream_rows
from worldloom.training.mixture import (
    PERIOD,
    By,
    Mixture,
    count_rows,
    deal,
    make_schedule,
    normalise,
    open_mixture,
    read_share,
)

ARRAYS = ("tokens", "targets", "positions", "segments", "weights")
LISTS = {  # as a user writes them, and what they mean
    "chat and book questions": ([7, 3], ["7/10", "3/10"]),
    "as fractions": ([0.7, 0.3], ["7/10", "3/10"]),
    "images, clips and text": ([0.70, 0.16, 0.14], ["70/100", "16/100", "14/100"]),
    "LWM-8K": ([42, "42", 16], ["42/100", "42/100", "16/100"]),
    "four tasks": ([0.25, "1/4", 0.25, "25e-2"], ["1/4"] * 4),
    "thirds": (["1/3", "2/3"], ["1/3", "2/3"]),
    "largest first is not enough": ([1, 1, 1, 1, 4, 4], ["1/12"] * 4 + ["1/3"] * 2),
    "one": ([5], ["1"]),
    "rare": ([1, 2, 997], ["1/1000", "2/1000", "997/1000"]),
    "many": ([1, 2, 3, 5, 7, 11, 13, 17], [f"{n}/59" for n in (1, 2, 3, 5, 7, 11, 13, 17)]),
}


def worst(sets: list[int], shares: list[Fraction], step: int = 1) -> Fraction:
    """Count rows one after the other, and return how far any set is ever from its share after a multiple of `step`."""
    counts, distance = [0] * len(shares), Fraction(0)
    for n, number in enumerate(sets, 1):
        counts[number] += 1
        if n % step == 0:
            distance = max(distance, *(abs(count - n * share) for count, share in zip(counts, shares, strict=True)))
    return distance


# ---- the schedule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize(("written", "meant"), LISTS.values(), ids=list(LISTS))
def test_after_each_of_1000_batches_every_set_is_within_a_row_of_its_share(written, meant, rows):
    schedule = make_schedule(count_rows(normalise([read_share(share) for share in written])))
    taken = [number for t in range(1000) for number in schedule.take(t * rows, rows)[0].tolist()]
    assert len(taken) == 1000 * rows
    assert worst(taken, [Fraction(share) for share in meant], rows) < 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_every_prefix_of_a_period_is_within_a_row_of_every_share(counts):
    order = deal(counts).tolist()
    assert Counter(order) == Counter(dict(enumerate(counts)))
    assert worst(order, [Fraction(count, sum(counts)) for count in counts]) < 1


def compositions(total: int) -> list[list[int]]:
    return [[]] if not total else [[n, *rest] for n in range(1, total + 1) for rest in compositions(total - n)]


def test_every_small_period_keeps_the_bound():
    for counts in compositions(9):
        assert worst(deal(counts).tolist(), [Fraction(count, 9) for count in counts]) < 1, counts


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=5), first=st.integers(0, 90), number=st.integers(1, 40))
def test_any_part_of_the_stream_is_known_without_what_went_before(counts, first, number):
    schedule, order = make_schedule(counts), deal(counts).tolist()
    whole = [order[n % len(order)] for n in range(first + number)]
    before = Counter(whole[:first])
    turns = []
    for chosen in whole[first:]:
        turns.append(before[chosen])
        before[chosen] += 1
    got = schedule.take(first, number)
    assert (got[0].tolist(), got[1].tolist()) == (whole[first:], turns)
    far = 10**15 * len(order)
    later = schedule.take(first + far, number)
    assert later[0].tolist() == whole[first:]
    assert later[1].tolist() == [turn + 10**15 * counts[i] for turn, i in zip(turns, whole[first:], strict=True)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=8))
def test_shares_are_exact_where_a_period_holds_them_and_else_off_by_less_than_a_row_of_it(parts):
    shares = normalise([Fraction(part) for part in parts])
    counts = count_rows(shares)
    period = sum(counts)
    assert period <= PERIOD
    off = [abs(Fraction(count, period) - share) for count, share in zip(counts, shares, strict=True)]
    assert max(off) < Fraction(1, PERIOD) if period == PERIOD else not any(off)


@pytest.mark.parametrize("given", [0, -1, "0/3", "1/0", "x", "", float("nan"), float("inf"), True, None, [1]])
def test_what_is_no_share_is_refused(given):
    with pytest.raises(UserError, match=r"write a number above 0, for example 0.7, 7 or 7/10"):
        read_share(given)


def test_fractions_that_do_not_add_up_are_refused_rather_than_stretched():
    with pytest.raises(UserError, match=r"add up to 7/10 \+ 1/5 = 9/10: make them add up to 1"):
        normalise([Fraction("0.7"), Fraction("0.2")])


# ---- the stream of rows -----------------------------------------------------------------------------------------


@pytest.fixture
def sets(toy_dataset, tmp_path):
    """Three data sets of different sizes."""
    return [toy_dataset(rows=rows, url=str(tmp_path / f"set-{rows}")) for rows in (13, 5, 8)]


@pytest.fixture
def mixture(sets) -> Mixture:
    return Mixture(dict(zip(sets, ["0.70", "0.16", "0.14"], strict=True)))


def same(a, b) -> bool:
    return a.examples == b.examples and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ARRAYS)


def test_every_row_is_a_whole_row_of_the_set_that_the_plan_names(sets, mixture):
    loader = Loader(mixture, 9, seed=2)
    for t in range(4):
        plan = loader.plan(t)
        batch = loader.load(plan)
        rows = [sets[s].row(r) for s, r in zip(plan.sets.tolist(), plan.rows.tolist(), strict=True)]
        assert batch.tokens.tolist() == [row.tokens.tolist() for row in rows]
        assert plan.examples == sum(len(row.segments) for row in rows)
        assert loader.sets(t).tolist() == plan.sets.tolist()


def test_the_sets_take_turns_as_the_schedule_says(mixture):
    loader = Loader(mixture, 4, seed=2)
    taken = np.concatenate([loader.plan(t).sets for t in range(100)]).tolist()
    assert worst(taken, [Fraction(70, 100), Fraction(16, 100), Fraction(14, 100)]) < 1


def test_each_set_gives_the_rows_that_it_would_give_alone_epoch_after_epoch(sets, mixture):
    loader = Loader(mixture, 7, seed=5)
    plans = [loader.plan(t) for t in range(30)]
    chosen, rows = np.concatenate([p.sets for p in plans]), np.concatenate([p.rows for p in plans])
    for number, dataset in enumerate(sets):
        own = rows[chosen == number]
        alone = Loader(dataset, 7, seed=5)
        assert own.tolist() == np.concatenate([alone.plan(t).rows for t in range(30)])[: len(own)].tolist()
        ends = range(0, len(own) + 1, dataset.rows)
        epochs = [own[low:high].tolist() for low, high in pairwise(ends)]
        assert len(epochs) >= 3
        assert all(sorted(epoch) == list(range(dataset.rows)) for epoch in epochs)
        assert all(one != other for one, other in pairwise(epochs))


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
def test_the_hosts_parts_make_the_whole_step(sets, mixture, hosts):
    whole = Loader(mixture, 24, seed=1)
    for t in (0, 5):
        batch = whole.load(whole.plan(t))
        for cut in (lambda h: slice(h * 24 // hosts, (h + 1) * 24 // hosts), lambda h: slice(h, None, hosts)):
            together = {name: np.empty_like(getattr(batch, name)) for name in ARRAYS}
            for host in range(hosts):
                loader = Loader(Mixture(dict(zip(sets, [70, 16, 14], strict=True))), 24, seed=1)
                part = loader.load(loader.plan(t), rows=cut(host))
                assert part.examples == batch.examples
                for name in ARRAYS:
                    together[name][cut(host)] = getattr(part, name)
            assert all(np.array_equal(together[name], getattr(batch, name)) for name in ARRAYS)


def test_a_stream_resumed_at_any_step_is_the_uninterrupted_one(sets, mixture):
    uninterrupted = dict(Loader(mixture, 4, seed=2).batches(0, 27))
    for start in range(27):
        fresh = Mixture(dict(zip(sets, [70, 16, 14], strict=True)))
        ((t, batch),) = islice(Loader(fresh, 4, seed=2).batches(start, start + 1), 1)
        assert t == start and same(batch, uninterrupted[t])


def test_a_data_set_alone_has_the_stream_that_it_always_had(sets):
    """The numbers were printed by the loader as it was before there were mixtures."""
    assert stream_rows(0, 12, 5, 3, "root").tolist() == [1, 3, 2, 0, 4, 4, 1, 3, 0, 2, 4, 0]
    far = [775, 328, 989, 1, 549, 797, 298, 325, 973, 838]
    assert stream_rows(10**12 + 1020, 10, 1000, 7, "c0ffee").tolist() == far
    dataset = sets[0]
    for t in (0, 3, 10**9):
        rows = stream_rows(t * 4, 4, dataset.rows, 6, dataset.root).tolist()
        assert Loader(dataset, 4, seed=6).plan(t).rows.tolist() == rows
        assert Loader(Mixture({dataset: 0.3 + 0.7}), 4, seed=6).plan(t).rows.tolist() == rows


# ---- shares of tokens -------------------------------------------------------------------------------------------


def tokens_of(dataset) -> Fraction:
    """Count the mean of tokens in a row, padding left out."""
    return Fraction(sum(s.length for row in dataset for s in row.segments), dataset.rows)


def test_shares_of_tokens_are_shares_of_rows_by_each_sets_mean(sets):
    meant = [Fraction(7, 10), Fraction(2, 10), Fraction(1, 10)]
    mixture = Mixture(dict(zip(sets, [7, 2, 1], strict=True)), by="tokens")
    means = [tokens_of(dataset) for dataset in sets]
    assert len(set(means)) == 3
    counts = [Fraction(int(count)) for count in mixture.schedule.counts]
    weighed = [count * mean for count, mean in zip(counts, means, strict=True)]
    for got, want in zip(weighed, meant, strict=True):
        assert abs(got / sum(weighed) - want) < Fraction(2, PERIOD)
    by_rows = Mixture(dict(zip(sets, [7, 2, 1], strict=True)), by=By.SEQUENCES)
    assert by_rows.schedule.counts.tolist() == [7, 2, 1] != counts


def test_tokens_that_are_read_come_in_their_shares(sets):
    loader = Loader(Mixture(dict(zip(sets, ["1/2", "1/4", "1/4"], strict=True)), By.TOKENS), 200, seed=0)
    tokens = np.zeros(3)
    for t in range(20):
        plan = loader.plan(t)
        rows = np.add.reduceat(plan.table.lengths, np.cumsum(plan.table.counts) - plan.table.counts)
        tokens += np.bincount(plan.sets, rows, 3)
    np.testing.assert_allclose(tokens / tokens.sum(), [0.5, 0.25, 0.25], atol=1e-3)


# ---- what does not go together ----------------------------------------------------------------------------------

OTHER = Vocabulary(text_size=300, bos=1, eos=2, text_digest="other")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"length": 96}, ["differ in length", "a has 64", "b has 96", "pack them to one length"]),
        ({"vocabulary": OTHER}, ["differ in vocabulary", OTHER.fingerprint, "build them with one vocabulary"]),
        ({"weights": "lwm"}, ["differ in weights", "a has example", "b has lwm", "choose one for all with `weights`"]),
        ({"rows": 13}, ["/a and ", "/b hold the same rows", "name them once"]),
    ],
)
def test_sets_that_do_not_go_together_are_refused(toy_dataset, tmp_path, change, words):
    one = toy_dataset(rows=13, url=str(tmp_path / "a"))
    other = toy_dataset(**{"rows": 7, **change}, url=str(tmp_path / "b"))
    with pytest.raises(UserError) as caught:
        Loader(Mixture({one: 1, other: 1}), 2, 0)
    assert all(word in str(caught.value) for word in [*words, str(tmp_path)]), str(caught.value)


def test_a_rule_given_stands_above_what_the_sets_say(toy_dataset, tmp_path):
    mixed = {toy_dataset(rows=n, weights=rule, url=str(tmp_path / rule)): n for n, rule in ((13, "lwm"), (7, "token"))}
    assert Loader(Mixture(mixed), 2, 0, weights="example").rule is Rule.EXAMPLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "has no rows to train on"),
        ({"kind": "examples", "length": 0}, "holds examples, not packed sequences"),
    ],
)
def test_a_set_without_sequences_is_refused(sets, change, message):
    sets[1].manifest.update(change)
    sets[1].rows = sets[1].manifest["rows"]
    with pytest.raises(UserError, match=f"set-5 {message}"):
        Mixture({sets[0]: 1, sets[1]: 1})


@pytest.mark.parametrize(
    ("shares", "by", "message"),
    [
        ([1_000_003, 1], "sequences", "even after 1,000,004 rows only, and 100,000 is the most: round them"),
        ([1_000_003, 1], "tokens", "set-5 is less than a row in 100,000: raise it"),
        ([1, 1], "rows", "shares cannot count 'rows': choose one of sequences, tokens"),
        ([0.5, 0.2], "sequences", "add up to 1/2 [+] 1/5 = 7/10"),
        ([1, 0], "sequences", "a share of 0 is none"),
        ([], "sequences", "a mixture of no data sets"),
    ],
)
def test_shares_that_cannot_be_kept_are_refused(sets, shares, by, message):
    with pytest.raises(UserError, match=message):
        Mixture(dict(zip(sets, shares, strict=False)), by)


def test_the_root_tells_sets_shares_and_order_apart(sets):
    a, b, c = sets
    roots = [Mixture(m).root for m in ({a: 7, b: 3}, {a: 3, b: 7}, {b: 3, a: 7}, {a: 7, c: 3}, {a: 7, b: 2, c: 1})]
    assert len({*roots, Mixture({a: 7, b: 3}, By.TOKENS).root}) == 6
    assert roots[0] == f"7 x {a.root} + 3 x {b.root}" == open_mixture({a.folder.url: 0.7, b.folder.url: 0.3}).root
    assert Mixture({a: 7}).root == a.root
