"""Dense batches: one worked by hand, and every way to make the same one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.packing import batch as module
from worldloom.packing.batch import Batch, Table, make_batch, read_table
from worldloom.packing.example import Example
from worldloom.packing.row import sequence_row
from worldloom.packing.shard import Kind, Shard, ShardWriter
from worldloom.packing.storage import Folder
from worldloom.packing.weights import Rule
from worldloom.tokenizers.vocabulary import Vocabulary

NAMES = ("tokens", "targets", "positions", "segments", "weights")
VISION = Vocabulary(text_size=10, bos=1, eos=2, text_digest="test", codes=4, vision_digest="codes")  # eof 14, eov 15


def example(tokens, trained):
    return Example(np.array(tokens, VISION.dtype), np.array(trained, bool), "chat", "s", "r")


def places_of(folder, rows, length):
    """Write rows to a shard and find them again."""
    writer = ShardWriter(folder / "a.arrow", VISION, Kind("sequences", length))
    for row in rows:
        writer.add(row)
    writer.close()
    shard = Shard(Folder(str(folder)), "a.arrow")
    return [shard.locate(i) for i in range(len(rows))]


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        (
            Rule.LWM,
            [[0, 1 / 4, 1 / 4, 1 / 2, 0, 1 / 2, 0, 0, 0, 0], [1 / 8, 1 / 8, 1 / 8, 1 / 8] + 4 * [0] + [1 / 2, 0]],
        ),
        (Rule.EXAMPLE, [[0, 1 / 3, 1 / 3, 1 / 3, 0, 1, 0, 0, 0, 0], [1 / 4] * 4 + 4 * [0] + [1, 0]]),
        (Rule.TOKEN, [[0, 1, 1, 1, 0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 1, 0]]),
    ],
)
def test_a_batch_worked_by_hand(tmp_path, rule, weights):
    rows = [
        sequence_row([example([1, 3, 11, 15, 4], [0, 0, 1, 1, 1]), example([1, 5], [0, 1])], 10, VISION),
        sequence_row(
            [example([1, 6, 7, 8, 2], [0, 1, 1, 1, 1]), example([9, 9], [0, 0]), example([1, 3, 12], [0, 0, 1])],
            10,
            VISION,
        ),
    ]
    batch = make_batch(places_of(tmp_path, rows, 10), 10, VISION, rule, examples=7)
    assert batch.tokens.tolist() == [[1, 3, 11, 15, 4, 1, 5, 0, 0, 0], [1, 6, 7, 8, 2, 9, 9, 1, 3, 12]]
    assert batch.targets.tolist() == [[3, 11, 15, 4, 0, 5, 0, 0, 0, 0], [6, 7, 8, 2, 0, 9, 0, 3, 12, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1, 2], [0, 1, 2, 3, 4, 0, 1, 0, 1, 2]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 1, 2, 2, 0, 0, 0], [1, 1, 1, 1, 1, 2, 2, 3, 3, 3]]
    assert np.array_equal(batch.weights, np.array(weights, np.float32))
    assert batch.examples == 7


@st.composite
def packed_rows(draw, length=24):
    """Draw rows of random examples, full ones and one without padding among them."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        examples, left = [], length
        while left and (not examples or draw(st.integers(0, 4))):
            n = draw(st.integers(1, left))
            flags = [False, *draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1))]
            tokens = draw(st.lists(st.integers(0, VISION.size - 1), min_size=n, max_size=n))
            examples.append(example(tokens, flags))
            left -= n
        rows.append(sequence_row(examples, length, VISION))
    return rows


@settings(max_examples=60, deadline=None)
@given(rows=packed_rows(), rule=st.sampled_from(list(Rule)))
def test_rows_together_are_the_rows_alone_whichever_way_they_are_spread(tmp_path_factory, rows, rule):
    places = places_of(tmp_path_factory.mktemp("batch"), rows, 24)
    together = make_batch(places, 24, VISION, rule, 3)
    alone = [make_batch([place], 24, VISION, rule, 3) for place in places]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONG", 0)
        by_slices = make_batch(places, 24, VISION, rule, 3)
    for name in NAMES:
        whole = getattr(together, name)
        assert whole.flags.c_contiguous and whole.dtype == (np.float32 if name == "weights" else np.int32)
        assert np.array_equal(whole, np.concatenate([getattr(row, name) for row in alone]))
        assert np.array_equal(whole, getattr(by_slices, name))


@settings(max_examples=60, deadline=None)
@given(rows=packed_rows(), rule=st.sampled_from(list(Rule)))
def test_the_weights_of_a_segment_add_up_to_its_rules(tmp_path_factory, rows, rule):
    places = places_of(tmp_path_factory.mktemp("batch"), rows, 24)
    batch = make_batch(places, 24, VISION, rule, 3)
    for r, row in enumerate(rows):
        for number, s in enumerate(row.segments, 1):
            total = batch.weights[r][batch.segments[r] == number].sum()
            trained = s.trained_text + s.trained_vision
            halves = ((s.trained_text > 0) + (s.trained_vision > 0)) / 2
            expected = {Rule.LWM: halves, Rule.EXAMPLE: float(trained > 0), Rule.TOKEN: trained}[rule]
            assert total == pytest.approx(expected, rel=1e-5)
        assert not batch.weights[r][batch.segments[r] == 0].any()


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    low=st.integers(-9, 9),
    high=st.none() | st.integers(-9, 9),
    step=st.sampled_from([None, 1, 2, 3, -1, -2]),
)
def test_some_rows_of_a_table(counts, low, high, step):
    numbers = np.arange(sum(counts), dtype=np.int32)
    table = Table(np.array(counts), numbers, numbers + 100, numbers + 200)
    cut = np.split(numbers, np.cumsum(counts)[:-1])[low:high:step]
    taken = table.take(slice(low, high, step))
    expected = [int(i) for part in cut for i in part]
    assert taken.counts.tolist() == [len(part) for part in cut]
    assert taken.lengths.tolist() == expected
    assert taken.trained_text.tolist() == [i + 100 for i in expected]
    assert taken.trained_vision.tolist() == [i + 200 for i in expected]


def test_the_table_of_rows(tmp_path):
    rows = [
        sequence_row([example([1, 3, 11, 15, 4], [0, 0, 1, 1, 1]), example([1, 5], [0, 1])], 10, VISION),
        sequence_row([example([1, 6, 7, 8, 2], [0, 1, 1, 1, 1])], 10, VISION),
    ]
    table = read_table(places_of(tmp_path, rows, 10))
    assert table.counts.tolist() == [2, 1] and table.lengths.tolist() == [5, 2, 5]
    assert table.trained_text.tolist() == [1, 1, 4] and table.trained_vision.tolist() == [2, 0, 0]


def test_columns_are_permuted_then_cut():
    arrays = [np.arange(24, dtype=np.int32).reshape(2, 12) + 100 * i for i in range(4)]
    batch = Batch(*arrays, np.arange(24, dtype=np.float32).reshape(2, 12), 5)
    order = np.random.default_rng(0).permutation(12)
    part = batch.take(slice(3, 9), order)
    for name in NAMES:
        assert getattr(part, name).tolist() == [[row[i] for i in order[3:9]] for row in getattr(batch, name)]
        assert getattr(part, name).flags.c_contiguous
    assert part.examples == 5 and batch.take(slice(0, 4)).tokens.tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]
