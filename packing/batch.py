"""Dense batches: the only place where tokens become inputs and targets, one step apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..tokenizers.vocabulary import Vocabulary
from .shard import Place
from .weights import Rule, segment_weights

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
    columns = list(zip(*(place.table.row_counts(place.number) for place in places), strict=True))
    counts = np.fromiter(map(len, columns[0]), np.int64, len(places))
    return Table(counts, *map(np.concatenate, columns))


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
    rows = [(place.rows, place.number) for place in places]
    np.concatenate([batch.row_tokens(i) for batch, i in rows], out=tokens)
    lengths, numbers, starts = _layout(table, length)
    targets[:-1] = tokens[1:]
    targets[starts[1:] - 1] = 0
    targets[-1] = 0
    _spread(numbers, lengths, segments)
    _count((starts % length).astype(np.int32), lengths, positions.reshape(shape))
    runs, trained = _shifted_runs([batch.row_trained(i) for batch, i in rows])
    segment = np.searchsorted(starts[numbers > 0], np.cumsum(runs) - runs, side="right") - 1
    text, vision = segment_weights(rule, table.trained_text, table.trained_vision, vocabulary)
    _spread(np.where(trained, text[segment], 0), runs, weights)
    if table.trained_vision.any():
        of_vision = np.repeat(np.where(trained, vision[segment], 0), runs)
        np.copyto(weights, of_vision, where=vocabulary.is_vision(targets))
    weights[length - 1 :: length] = 0
    whole = tokens.reshape(shape), targets.reshape(shape), positions.reshape(shape), segments.reshape(shape)
    return Batch(*whole, weights.reshape(shape), examples)


def _layout(table: Table, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List segments and each row's padding (maybe of 0) end to end.

    Returns:
      lengths, and numbers in the row, 0 for padding: int32 `[segments + B]`; starts in the flat batch, int64.
    """
    entries = table.counts + 1
    ends = np.cumsum(entries)
    lengths = np.zeros(ends[-1], np.int32)
    numbers = np.arange(1, len(lengths) + 1, dtype=np.int32)
    numbers -= np.repeat(ends - entries, entries).astype(np.int32)
    numbers[ends - 1] = 0
    lengths[numbers > 0] = table.lengths
    lengths[ends - 1] = length - np.add.reduceat(lengths, ends - entries)
    return lengths, numbers, np.cumsum(lengths) - lengths


def _spread(values: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
    """Write each value as often as its length says: `np.repeat` into memory that is there."""
    if out.size < LONG * len(values):
        out[:] = np.repeat(values, lengths)
        return
    low = 0
    for value, length in zip(values.tolist(), lengths.tolist(), strict=True):
        out[low : low + length] = value
        low += length


def _count(starts: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
    """Write 0, 1, 2, … from each start in its row on, over `[B, L]`."""
    ramp = _ramp(out.shape[1])
    if out.size < LONG * len(starts):
        np.subtract(ramp, np.repeat(starts, lengths).reshape(out.shape), out=out)
        return
    flat, low = out.reshape(-1), 0
    for length in lengths.tolist():
        flat[low : low + length] = ramp[:length]
        low += length


@lru_cache(maxsize=4)
def _ramp(length: int) -> np.ndarray:
    """Return 0, 1, 2, …, int32 `[length]`: made once, since every batch of a run has the same length."""
    ramp = np.arange(length, dtype=np.int32)
    ramp.setflags(write=False)
    return ramp


def _shifted_runs(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Join the rows' runs: return run lengths over all targets, and which runs are trained.

    Shifted by one, a row's first run loses a token, and its last run gains the last position, which has no target.
    """
    counts = np.fromiter(map(len, parts), np.int64, len(parts))
    ends = np.cumsum(counts)
    runs = np.concatenate(parts)
    runs[ends - counts] -= 1
    runs[ends - 1] += 1
    return runs, (np.arange(len(runs)) - np.repeat(ends - counts, counts)) % 2 == 1
