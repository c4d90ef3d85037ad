"""Dense batches: the only place where tokens become inputs and targets, one step apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..tokenizers.vocabulary import Vocabulary
from .shard import Batch as Rows
from .weights import Rule, segment_weights

ONE = np.ones(1, np.int32)


@dataclass(frozen=True, eq=False)
class Batch:
    """Hold what a training step eats.

    Attributes:
      tokens, targets: int32 `[B, L]`; the target of a segment's last token and of padding is 0.
      positions: int32 `[B, L]`, from 0 in each segment.
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


def make_batch(places: Sequence[Place], length: int, vocabulary: Vocabulary, rule: Rule, examples: int) -> Batch:
    """Lay rows out densely, shift targets by one and weigh them.

    Args:
      places: the rows, B of them, each of `length` tokens, padding included.
      rule: how trained tokens are weighed.
      examples: number of segments of the whole step, over all hosts.
    """
    shape = (len(places), length)
    tokens = np.empty(shape, np.int32)
    for row, (rows, i) in zip(tokens, places, strict=True):
        row[:] = rows.row_tokens(i)
    table = _Table(places, length)
    ids = np.repeat(table.numbers, table.lengths)
    positions = np.arange(tokens.size, dtype=np.int32)
    positions -= np.repeat(table.starts, table.lengths)
    targets = np.empty(shape, np.int32)
    targets[:, :-1] = tokens[:, 1:]
    targets.ravel()[table.starts[1:] - 1] = 0
    targets[:, -1] = 0
    weights = _weights(table, places, targets, vocabulary, rule)
    return Batch(tokens, targets, positions.reshape(shape), ids.reshape(shape), weights, examples)


class _Table:
    """Segments and paddings of all rows end to end: lengths, number in the row, start in the flat batch."""

    def __init__(self, places: Sequence[Place], length: int):
        lengths = [p.rows.row_segments("length", p.number) for p in places]
        counts = np.fromiter(map(len, lengths), np.int64, len(places))
        self.real = np.ones(counts.sum() + len(places), bool)
        self.real[np.cumsum(counts + 1) - 1] = False
        self.lengths = np.zeros(len(self.real), np.int32)
        self.lengths[self.real] = np.concatenate(lengths)
        row_of = np.repeat(np.arange(len(places)), counts + 1)
        self.lengths[~self.real] = length - np.bincount(row_of, self.lengths, len(places)).astype(np.int32)
        self.numbers = np.arange(1, len(self.real) + 1, dtype=np.int32)
        self.numbers -= np.repeat(np.cumsum(counts + 1) - counts - 1, counts + 1).astype(np.int32)
        self.numbers[~self.real] = 0
        self.starts = (np.cumsum(self.lengths) - self.lengths).astype(np.int32)


def _weights(
    table: _Table, places: Sequence[Place], targets: np.ndarray, vocabulary: Vocabulary, rule: Rule
) -> np.ndarray:
    """Weigh each target.

    A segment's first token is never trained, so a trained run never leaves its segment and one weight a
    run is enough. Shifted by one, a row's first run loses a token and its last position has no target.
    """
    runs, trained = _shifted_runs(places)
    ends = np.cumsum(runs)
    segment = np.searchsorted(table.starts[table.real], ends - runs, side="right") - 1
    counts = [
        np.concatenate([p.rows.row_segments(name, p.number) for p in places])
        for name in ("trained_text", "trained_vision")
    ]
    text, vision = segment_weights(rule, counts[0], counts[1], vocabulary)
    weights = np.repeat(np.where(trained, text[segment], 0), runs)
    if counts[1].any():
        of_vision = np.repeat(np.where(trained, vision[segment], 0), runs)
        weights = np.where(vocabulary.is_vision(targets.ravel()), of_vision, weights)
    return weights.reshape(targets.shape)


def _shifted_runs(places: Sequence[Place]) -> tuple[np.ndarray, np.ndarray]:
    """Return run lengths over all targets, and which runs are trained."""
    lengths: list[np.ndarray] = []
    trained: list[np.ndarray] = []
    for rows, i in places:
        runs = rows.row_trained(i)
        lengths += [runs[:1] - 1, runs[1:], ONE]
        flags = np.arange(len(runs) + 1) % 2 == 1
        flags[-1] = False
        trained.append(flags)
    return np.concatenate(lengths), np.concatenate(trained)
