"""Batches against a loop over single tokens; the stream against its definition."""

import threading
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.packing.shard import Batch as Rows
from worldloom.packing.storage import Folder
from worldloom.packing.weights import Rule
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training.loader import AHEAD, Loader, ahead

NAMES = ("tokens", "targets", "positions", "segments", "weights")
TEXT = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test")
VISION = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test", codes=64, vision_digest="codes")


def naive_row(row, rule, vocabulary):
    """Work one row out token by token, straight from design §4; the weights as exact fractions."""
    length = len(row.tokens)
    flags, flag = [], False
    for run in row.trained.tolist():
        flags += [flag] * run
        flag = not flag
    tokens = row.tokens.tolist()
    out = {name: [0] * length for name in NAMES}
    low = 0
    for number, segment in enumerate(row.segments, 1):
        high = low + segment.length
        trained = {i for i in range(low, high) if flags[i]}
        vision = {i for i in trained if tokens[i] >= vocabulary.text_size}
        for i in range(low, high):
            out["segments"][i], out["positions"][i] = number, i - low
            if i + 1 == high:
                continue
            out["targets"][i] = tokens[i + 1]
            if i + 1 in trained:
                alike = vision if i + 1 in vision else trained - vision
                half = Fraction(1, 2) if vocabulary.codes else Fraction(1)
                out["weights"][i] = {
                    "token": Fraction(1),
                    "example": Fraction(1, len(trained)),
                    "lwm": half / len(alike),
                }[rule]
        low = high
    out["tokens"], out["positions"][low:] = tokens, range(length - low)
    return out


def same(a, b):
    return a.examples == b.examples and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in NAMES)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("vocabulary", [TEXT, VISION], ids=["text", "vision"])
@pytest.mark.parametrize("rule", ["lwm", "example", "token"])
def test_batches_are_what_a_loop_over_tokens_gives(toy_dataset, rule, vocabulary, remote):
    url = f"memory://toy-loader-{rule}-{vocabulary.codes}" if remote else ""
    dataset = toy_dataset(rows=14, length=50, vocabulary=vocabulary, weights=rule, url=url)
    loader = Loader(dataset, 5, seed=3)
    for t in range(3):
        plan = loader.plan(t)
        batch = loader.load(plan)
        rows = [dataset.row(int(i)) for i in plan.rows]
        assert plan.examples == batch.examples == sum(len(row.segments) for row in rows)
        for b, row in enumerate(rows):
            expected = naive_row(row, rule, vocabulary)
            for name in NAMES[:-1]:
                assert getattr(batch, name).dtype == np.int32
                assert getattr(batch, name)[b].tolist() == expected[name], name
            assert batch.weights.dtype == np.float32
            np.testing.assert_allclose(batch.weights[b], np.array(expected["weights"], float), rtol=1e-6)
            assert not batch.weights[b][expected["weights"].index(0)]


def test_the_plan_tells_segments_and_trained_tokens_of_each_row(toy_dataset):
    dataset = toy_dataset(vocabulary=VISION, weights="lwm")
    plan = Loader(dataset, 6, seed=0).plan(2)
    ends = np.cumsum(plan.table.counts).tolist()
    for row, low, high in zip(plan.rows, [0, *ends], ends, strict=False):
        segments = dataset.row(int(row)).segments
        assert plan.table.lengths[low:high].tolist() == [s.length for s in segments]
        assert plan.table.trained_text[low:high].tolist() == [s.trained_text for s in segments]
        assert plan.table.trained_vision[low:high].tolist() == [s.trained_vision for s in segments]


def test_a_plan_reads_no_tokens(toy_dataset, monkeypatch):
    asked = []
    monkeypatch.setattr(Rows, "row_tokens", lambda *args: asked.append(args))
    for url in ("", "memory://toy-plan"):
        loader = Loader(toy_dataset(url=url), 8, seed=0)
        assert loader.plan(0).examples == 24
        remote = not Folder(loader.dataset.folder.url).local
        assert all(hasattr(place.table, "tokens") != remote for place in loader.plan(0).places)
    assert not asked


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
def test_the_hosts_parts_make_the_whole_step(toy_dataset, hosts):
    dataset = toy_dataset(rows=30, vocabulary=VISION, weights="lwm")
    whole = Loader(dataset, 24, seed=1)
    batch = whole.load(whole.plan(4))
    for cut in (lambda h: slice(h * 24 // hosts, (h + 1) * 24 // hosts), lambda h: slice(h, None, hosts)):
        parts = []
        for host in range(hosts):
            loader = Loader(dataset, 24, seed=1)
            parts.append(loader.load(loader.plan(4), rows=cut(host)))
            assert parts[-1].examples == batch.examples
        for name in NAMES:
            together = np.empty_like(getattr(batch, name))
            for host, part in enumerate(parts):
                together[cut(host)] = getattr(part, name)
            assert np.array_equal(together, getattr(batch, name))


def test_columns_are_cut_after_the_permutation(toy_dataset):
    loader = Loader(toy_dataset(length=64), 4, seed=1)
    plan, order = loader.plan(0), np.random.default_rng(0).permutation(64)
    whole = loader.load(plan)
    for low in (0, 16, 48):
        part = loader.load(plan, columns=slice(low, low + 16), permutation=order)
        plain = loader.load(plan, rows=slice(1, 3), columns=slice(low, low + 16))
        for name in NAMES:
            assert np.array_equal(getattr(part, name), getattr(whole, name)[:, order][:, low : low + 16])
            assert np.array_equal(getattr(plain, name), getattr(whole, name)[1:3, low : low + 16])


@pytest.mark.parametrize("rows", [1, 4, 7, 40, 100])
def test_an_epoch_takes_every_row_once_and_the_next_in_another_order(toy_dataset, rows):
    loader = Loader(toy_dataset(rows=40), rows, seed=5)
    stream = np.concatenate([loader.plan(t).rows for t in range(-(-120 // rows))])
    epochs = [stream[e * 40 : (e + 1) * 40].tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert stream[:40].tolist() != Loader(loader.dataset, 40, seed=6).plan(0).rows.tolist()


def test_the_stream_does_not_depend_on_how_it_is_cut(toy_dataset):
    dataset = toy_dataset(rows=7)
    by_three, by_many = Loader(dataset, 3, seed=0), Loader(dataset, 1200, seed=0)
    stream = np.concatenate([by_three.plan(t).rows for t in range(800)])
    assert np.array_equal(stream, np.concatenate([by_many.plan(t).rows for t in range(2)]))


@pytest.mark.parametrize("start", [0, 1, 9, 10, 23])
def test_a_resumed_stream_is_the_uninterrupted_one(toy_dataset, start):
    dataset = toy_dataset(rows=40)
    uninterrupted = dict(Loader(dataset, 4, seed=2).batches(0, 26))
    resumed = list(Loader(dataset, 4, seed=2).batches(start, 26))
    assert [t for t, _ in resumed] == list(range(start, 26))
    assert all(same(batch, uninterrupted[t]) for t, batch in resumed)


def test_batches_without_end_and_a_hosts_own_part(toy_dataset):
    loader = Loader(toy_dataset(), 4, seed=2)
    part = loader.batches(3, load=lambda plan: loader.load(plan, rows=slice(2, 4)))
    for t, batch in islice(part, 15):
        assert same(batch, loader.load(loader.plan(t), rows=slice(2, 4)))
    part.close()


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("worldloom-loader")]


def test_a_consumer_that_stops_early_or_raises_leaves_no_thread(toy_dataset):
    loader = Loader(toy_dataset(), 4, seed=2)
    batches = loader.batches()
    next(batches)
    assert workers()
    batches.close()
    assert not workers()
    with pytest.raises(KeyError):
        for _ in loader.batches():
            raise KeyError
    assert not workers()


def test_an_error_in_the_thread_reaches_the_consumer_in_its_turn():
    done = []

    def work(i):
        if i == 3:
            raise UserError("the third is bad")
        return i

    with pytest.raises(UserError, match="third"):
        for i in ahead(work, range(10)):
            done.append(i)
    assert done == [0, 1, 2] and not workers()


def test_closing_begins_nothing_more():
    started, gate = [], threading.Event()
    results = ahead(lambda i: started.append(i) or (i and gate.wait(60)), range(10))
    next(results)
    threading.Timer(0.2, gate.set).start()  # until then the second waits at the gate, and the third for the second
    results.close()
    assert started in ([0], [0, 1])


def test_no_more_is_made_ahead_than_said():
    started = []
    results = ahead(lambda i: started.append(i) or i, range(100))
    for wanted in range(10):
        assert next(results) == wanted
        assert len(started) <= wanted + 1 + AHEAD
    results.close()


def test_the_rule_can_be_chosen(toy_dataset):
    dataset = toy_dataset(weights="example")
    assert Loader(dataset, 2, 0).rule is Rule.EXAMPLE
    token = Loader(dataset, 2, 0, weights="token")
    assert set(np.unique(token.load(token.plan(0)).weights)) == {0, 1}


@pytest.mark.parametrize(
    ("change", "rows", "weights", "message"),
    [
        ({}, 2, "loss", "unknown rule of weights 'loss': choose one of lwm, example, token"),
        ({"weights": "none"}, 2, None, "unknown rule"),
        ({"rows": 0}, 2, None, "has no rows"),
        ({"kind": "examples", "length": 0}, 2, None, "holds examples, not packed sequences"),
        ({}, 0, None, "0 rows"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(toy_dataset, change, rows, weights, message):
    dataset = toy_dataset(rows=6)
    dataset.manifest.update(change)
    dataset.rows = dataset.manifest["rows"]
    with pytest.raises(UserError, match=message):
        Loader(dataset, rows, 0, weights)
