"""Dense batches: the only place where tokens become inputs and targets, one step apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..tokenizers.vocabulary import Vocabulary
from .shard import Batch as Rows
from .weights import Rule, segment_weights

ONE = np.ones(1, np.int32)
LONG = 4096  # mean length from which filling slice by slice is faster than repeating and copying


@dataclass(frozen=True, eq=False)
class Batch:
    """Hold what a training step eats.

    Attributes:
      tokens, targets: int32 `[B, L]`; the target of a segment's last token and of padding is 0.
      positions: int32 `[B, L]`, from 0 in each segment, and in the padding.
      segments: int32 `[B, L]`, 1, 2, … in each row; 0 is padding.
      weights: float32 `[B, L]`, what the loss at each target counts; 0 where nothing is trained.
      examples: number of segments of the whole step, over all hosts.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    weights: np.ndarray
    examples: int

    def take(self, columns: slice, permutation: np.ndarray | None = None) -> "Batch":
        """Permute the columns, then keep some: what one host owns."""
        pick = columns if permutation is None else permutation[columns]
        arrays = (self.tokens, self.targets, self.positions, self.segments, self.weights)
        tokens, targets, positions, segments, weights = (np.ascontiguousarray(a[:, pick]) for a in arrays)
        return Batch(tokens, targets, positions, segments, weights, self.examples)


class Place(NamedTuple):
    """A row in the record batch that holds it."""

    rows: Rows
    number: int


@dataclass(frozen=True, eq=False)
class Table:
    """Hold the segments of some rows, end to end: all that planning a step takes, and no token.

    Attributes:
      counts: segments of each row, int64 `[B]`.
      lengths, trained_text, trained_vision: of each segment, int32 `[segments]`.
    """

    counts: np.ndarray
    lengths: np.ndarray
    trained_text: np.ndarray
    trained_vision: np.ndarray

    def take(self, rows: slice) -> "Table":
        """Keep the segments of some rows."""
        counts = self.counts[rows]
        first = (np.cumsum(self.counts) - self.counts)[rows]
        picked = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        return Table(counts, self.lengths[picked], self.trained_text[picked], self.trained_vision[picked])


def read_table(places: Sequence[Place]) -> Table:
    """Gather the segments of rows; their tokens are not touched."""
    bounds = [(rows, rows.segment_offsets[i], rows.segment_offsets[i + 1]) for rows, i in places]
    counts = np.fromiter((high - low for _, low, high in bounds), np.int64, len(places))
    return Table(
        counts,
        np.concatenate([rows.column("length")[low:high] for rows, low, high in bounds]),
        np.concatenate([rows.column("trained_text")[low:high] for rows, low, high in bounds]),
        np.concatenate([rows.column("trained_vision")[low:high] for rows, low, high in bounds]),
    )


def make_batch(
    places: Sequence[Place],
    length: int,
    vocabulary: Vocabulary,
    rule: Rule,
    examples: int,
    table: Table | None = None,
) -> Batch:
    """Lay rows out densely, shift targets by one and weigh them.

    Args:
      places: the rows, B of them and at least one, each of `length` tokens, padding included.
      rule: how trained tokens are weighed.
      examples: number of segments of the whole step, over all hosts.
      table: the rows' segments where they are known already.
    """
    table = table or read_table(places)
    shape = (len(places), length)
    flat = np.empty((5, len(places) * length), np.int32)  # one piece of memory, which malloc can use again
    tokens, targets, positions, segments, bits = flat
    weights = bits.view(np.float32)
    np.concatenate([rows.row_tokens(i) for rows, i in places], out=tokens)
    lengths, numbers, starts = _layout(table, length)
    targets[:-1] = tokens[1:]
    targets[starts[1:] - 1] = 0
    targets[-1] = 0
    _spread(numbers, lengths, segments)
    _spread(-(starts % length), lengths, positions)
    positions.reshape(shape)[:] += np.arange(length, dtype=np.int32)
    _weigh(weights, places, table, starts[numbers > 0], targets, vocabulary, rule)
    arrays = (tokens, targets, positions, segments, weights)
    return Batch(*(array.reshape(shape) for array in arrays), examples)


def _layout(table: Table, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List segments and each row's padding (maybe of 0) end to end.

    Returns:
      lengths; numbers in the row, 0 for padding; starts in the flat batch: int32 `[segments + B]`.
    """
    entries = table.counts + 1
    ends = np.cumsum(entries)
    lengths = np.zeros(ends[-1], np.int32)
    numbers = np.arange(1, len(lengths) + 1, dtype=np.int32)
    numbers -= np.repeat(ends - entries, entries).astype(np.int32)
    numbers[ends - 1] = 0
    lengths[numbers > 0] = table.lengths
    lengths[ends - 1] = length - np.add.reduceat(lengths, ends - entries)
    return lengths, numbers, (np.cumsum(lengths) - lengths).astype(np.int32)


def _weigh(
    weights: np.ndarray,
    places: Sequence[Place],
    table: Table,
    starts: np.ndarray,
    targets: np.ndarray,
    vocabulary: Vocabulary,
    rule: Rule,
) -> None:
    """Write the weight of each target.

    A segment's first token is never trained, so a trained run never leaves its segment and one weight a
    run is enough.

    Args:
      starts: of each segment in the flat batch.
    """
    runs, trained = _shifted_runs(places)
    segment = np.searchsorted(starts, np.cumsum(runs) - runs, side="right") - 1
    text, vision = segment_weights(rule, table.trained_text, table.trained_vision, vocabulary)
    _spread(np.where(trained, text[segment], 0), runs, weights)
    if table.trained_vision.any():
        of_vision = np.repeat(np.where(trained, vision[segment], 0), runs)
        np.copyto(weights, of_vision, where=vocabulary.is_vision(targets))


def _spread(values: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
    """Write each value as often as its length says: `np.repeat` into memory that is there."""
    if len(out) < LONG * len(values):
        out[:] = np.repeat(values, lengths)
        return
    ends = np.cumsum(lengths).tolist()
    for value, low, high in zip(values.tolist(), [0, *ends], ends, strict=False):
        out[low:high] = value


def _shifted_runs(places: Sequence[Place]) -> tuple[np.ndarray, np.ndarray]:
    """Return run lengths over all targets, and which runs are trained.

    Shifted by one, a row's first run loses a token, and its last position has no target: a run of its own.
    """
    parts = [rows.row_trained(i) for rows, i in places]
    counts = np.fromiter(map(len, parts), np.int64, len(parts)) + 1
    ends = np.cumsum(counts)
    runs = np.concatenate([array for part in parts for array in (part, ONE)])
    runs[ends - counts] -= 1
    trained = (np.arange(len(runs)) - np.repeat(ends - counts, counts)) % 2 == 1
    trained[ends - 1] = False
    return runs, trained
