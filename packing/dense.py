"""Rows of a packed data set by number, laid out densely and weighed: for other trainers' loaders, and for export."""

from functools import cached_property
from typing import Any

import numpy as np

from ..errors import UserError
from .batch import make_batch
from .dataset import Dataset
from .weights import Rule, rule_named

COLUMNS = ("tokens", "targets", "positions", "segments", "weights")


class DenseRows:
    """Give rows of packed sequences by number, as dictionaries of arrays; can be sent to worker processes.

    A row has `tokens`, `targets`, `positions` and `segments`, int32 `[length]`; `weights`, float32 `[length]`; and
    `examples`, int64 `[]`, its number of segments: what `packing.batch.Batch` says of them holds here. Divide the sum
    of weights times cross-entropy over a step by the step's `examples`, or by its sum of weights for the rule `token`.

    Attributes:
      url: of the data set.
      rule: of the loss weights; left out, the data set's own.

    Raises:
      UserError: if the data set holds no sequences, or the rule is unknown.
    """

    def __init__(self, url: str, weights: Rule | str | None = None):
        self.url = url
        if not self.dataset.length:
            raise UserError(f"{url} holds examples of any length: name a packed-NAME folder, or pack them first")
        self.rule = rule_named(self.dataset.weights if weights is None else weights)

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset(self.url)

    def __len__(self) -> int:
        return self.dataset.rows

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        place = self.dataset.place(int(row))
        examples = len(place.rows.row_counts(place.number)[0])
        batch = make_batch([place], self.dataset.length, self.dataset.vocabulary, self.rule, examples)
        return {name: getattr(batch, name)[0] for name in COLUMNS} | {"examples": np.array(examples)}

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "rule": self.rule}  # each process opens the data set for itself
