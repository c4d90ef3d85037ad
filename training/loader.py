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
from ..packing.weights import Rule, rule_named
from .mixture import Mixture
from .permutation import make_key, permute

AHEAD = 2  # batches made before they are asked for
BLOCK = 1024  # entries of the stream that are computed at once: one takes nearly as long

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Plan:
    """Say which rows a step takes and what segments they hold: the same on every host, and no token read.

    Attributes:
      sets: which data set of the mixture each row is of, int64 `[B]`; 0 where there is one.
      rows: numbers in their data sets, int64 `[B]`.
      places: where they are.
      table: their segments.
    """

    sets: np.ndarray
    rows: np.ndarray
    places: Sequence[Place]
    table: Table

    @property
    def examples(self) -> int:
        """Number of segments of the step, over all hosts."""
        return len(self.table.lengths)


class Loader:
    """Make the batches of a training run from a packed data set, or from a mixture of some.

    Attributes:
      dataset: the set of sequences, or the mixture of sets.
      rows: B, of a step over all hosts.
      seed: of the order.
      rule: how trained tokens are weighed; left out, the data set's own rule.

    Raises:
      UserError: if the data set holds no sequences, or the rule is unknown.
    """

    def __init__(self, dataset: Dataset | Mixture, rows: int, seed: int, weights: Rule | str | None = None):
        if rows < 1:
            raise UserError(f"a step of {rows} rows is none: ask for 1 or more")
        self.dataset, self.rows, self.seed = dataset, rows, seed
        self._mixture = dataset if isinstance(dataset, Mixture) else Mixture({dataset: 1})
        self.rule = rule_named(self._mixture.weights if weights is None else weights)
        self._vocabulary = dataset.vocabulary

    def plan(self, t: int) -> Plan:
        """Plan step `t`, counted from 0: a pure function of `(seed, t)`."""
        if len(self._mixture.sets) == 1:  # nothing to share out
            (alone,) = self._mixture.sets
            rows = stream_rows(t * self.rows, self.rows, alone.rows, self.seed, alone.root)
            there = alone.places(rows)
            return Plan(np.zeros_like(rows), rows, there, read_table(there))
        sets, turns = self._mixture.schedule.take(t * self.rows, self.rows)
        rows, places = np.empty_like(turns), dict[int, Iterator[Place]]()
        for number, dataset in enumerate(self._mixture.sets):
            own = np.flatnonzero(sets == number)
            if len(own):  # a set's turns follow one another
                rows[own] = stream_rows(int(turns[own[0]]), len(own), dataset.rows, self.seed, dataset.root)
                places[number] = iter(dataset.places(rows[own]))
        in_turn = [next(places[number]) for number in sets.tolist()]
        return Plan(sets, rows, in_turn, read_table(in_turn))

    def sets(self, t: int) -> np.ndarray:
        """Tell which data set of the mixture each row of step `t` is of, int64 `[B]`."""
        return self._mixture.schedule.take(t * self.rows, self.rows)[0]

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
