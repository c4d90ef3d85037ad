"""Batches of rows in an endless order that `(seed, step)` alone decides, on any number of hosts."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TypeVar

import numpy as np

from ..errors import UserError
from ..packing.batch import Batch, Table, make_batch, read_table
from ..packing.dataset import Dataset
from ..packing.shard import Place
from ..packing.weights import Rule
from .permutation import make_key, permute

AHEAD = 2  # batches made before they are asked for
BLOCK = 1024  # entries of the stream that are computed at once: one takes nearly as long

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Plan:
    """Say which rows a step takes and what segments they hold: the same on every host, and no token read.

    Attributes:
      rows: numbers in the data set, int64 `[B]`.
      places: where they are.
      table: their segments.
    """

    rows: np.ndarray
    places: Sequence[Place]
    table: Table

    @property
    def examples(self) -> int:
        """Number of segments of the step, over all hosts."""
        return len(self.table.lengths)


class Loader:
    """Make the batches of a training run from a packed data set.

    Attributes:
      dataset: the set of sequences.
      rows: B, of a step over all hosts.
      seed: of the order.
      rule: how trained tokens are weighed; left out, the data set's own rule.

    Raises:
      UserError: if the data set holds no sequences, or the rule is unknown.
    """

    def __init__(self, dataset: Dataset, rows: int, seed: int, weights: Rule | str | None = None):
        _check(dataset, rows)
        self.dataset, self.rows, self.seed = dataset, rows, seed
        self.rule = _rule(dataset.manifest["weights"] if weights is None else weights)
        self._vocabulary, self._root = dataset.vocabulary, dataset.root

    def plan(self, t: int) -> Plan:
        """Plan step `t`, counted from 0: a pure function of `(seed, t)`."""
        rows = stream_rows(t * self.rows, self.rows, self.dataset.rows, self.seed, self._root)
        places = self.dataset.places(rows)
        return Plan(rows, places, read_table(places))

    def load(
        self,
        plan: Plan,
        rows: slice = slice(None),
        columns: slice = slice(None),
        permutation: np.ndarray | None = None,
    ) -> Batch:
        """Read this host's part of a step.

        Args:
          rows: of the plan.
          columns: after the permutation.
          permutation: of the columns, integers `[length]`: column i of the result is column `permutation[i]`.
        """
        places, table = plan.places[rows], plan.table.take(rows)
        batch = make_batch(places, self.dataset.length, self._vocabulary, self.rule, plan.examples, table)
        return batch if columns == slice(None) and permutation is None else batch.take(columns, permutation)

    def batches(
        self, start: int = 0, stop: int | None = None, load: Callable[[Plan], Batch] | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """Yield `(t, batch of step t)` from `start` on, without end or up to `stop`, made ahead by a thread.

        Args:
          load: turns a plan into what this host needs of it; left out, the whole step.
        """
        make = load or self.load
        steps = count(start) if stop is None else range(start, stop)
        return ahead(lambda t: (t, make(self.plan(t))), steps)


def stream_rows(first: int, number: int, rows: int, seed: int, name: str) -> np.ndarray:
    """Take entries of a set's endless stream: entry n is of epoch `n // rows`, in that epoch's own order.

    Args:
      first, number: entries `[first, first + number)`.
      rows: number of rows in the set.
      name: tells sets of one run apart.

    Returns:
      row numbers, int64 `[number]`.
    """
    low, high = first // BLOCK, -(-(first + number) // BLOCK)
    blocks = np.concatenate([_stream_block(i, rows, seed, name) for i in range(low, high)])
    return blocks[first - low * BLOCK :][:number]


@lru_cache(maxsize=64)
def _stream_block(number: int, rows: int, seed: int, name: str) -> np.ndarray:
    parts, first, last = [], number * BLOCK, (number + 1) * BLOCK
    while first < last:
        epoch, low = divmod(first, rows)
        high = min(rows, low + last - first)
        parts.append(permute(np.arange(low, high), rows, make_key(seed, name, epoch)))
        first += high - low
    return np.concatenate(parts)


def ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Map in a thread of its own, a few results ahead of the consumer.

    An error in the thread is raised in its turn. Closing the iterator ends the thread.
    """
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(1, "worldloom-loader") as thread:
        try:
            for item in items:
                pending.append(thread.submit(work, item))
                if len(pending) > AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _check(dataset: Dataset, rows: int) -> None:
    url, kind = dataset.folder.url, dataset.manifest["kind"]
    if kind != "sequences":
        raise UserError(f"{url} holds {kind}, not packed sequences: run 'worldloom pack' and name a packed-NAME folder")
    if not dataset.rows:
        raise UserError(f"{url} has no rows to train on: see what was rejected with 'worldloom inspect'")
    if rows < 1:
        raise UserError(f"a step of {rows} rows is none: ask for 1 or more")


def _rule(name: str) -> Rule:
    try:
        return Rule(name)
    except ValueError:
        raise UserError(f"unknown rule of weights {name!r}: choose one of {', '.join(Rule)}") from None
