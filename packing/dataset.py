"""A finished directory of shards, open for reading."""

import resource
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import UserError
from ..tokenizers.vocabulary import Vocabulary
from .manifest import read_index, read_manifest
from .row import Row
from .shard import Place, Shard
from .storage import Folder
from .weights import Rule

OPEN_SHARDS = max(16, min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))  # files held open at once


class Dataset:
    """Read a directory that `build` or `pack` finished: rows by number, in the order of units and places.

    Attributes:
      folder, manifest: where it is and what it says of itself.
      rows: number of rows.
      length: tokens of each row, or 0 where the rows are examples of any length.

    Raises:
      UserError: if the directory is no complete data set.
    """

    def __init__(self, url: str):
        self.folder = Folder(url)
        self.manifest: dict[str, Any] = read_manifest(self.folder)
        self.rows: int = self.manifest["rows"]
        self.length: int = self.manifest["length"]
        self._shards: dict[int, Shard] = {}
        self._lock = Lock()  # a loader's thread and its caller may open at once

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(**self.manifest["vocabulary"])

    @property
    def root(self) -> str:
        """Digest of all rows: the same for the same data, wherever and however it was built."""
        return str(self.manifest["root"])

    @property
    def weights(self) -> Rule:
        """The data set's default rule of weights."""
        return Rule(self.manifest["weights"])

    @cached_property
    def index(self) -> pa.Table:
        """One row a shard."""
        return read_index(self.folder)

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of the first row of each shard, and the number of all rows."""
        return np.concatenate(([0], np.cumsum(self.index.column("rows").to_numpy())))

    def shard(self, number: int) -> Shard:
        """Open a shard; the last ones opened stay open.

        Raises:
          UserError: if it is missing, damaged, or made with another vocabulary than the manifest says.
        """
        return self._shards.get(number) or self._open(number)

    def _open(self, number: int) -> Shard:
        shard = Shard(self.folder, self.index.column("path")[number].as_py())
        if shard.vocabulary != self.vocabulary:
            raise UserError(f"the shard {shard.path} was made with another vocabulary than its data set: build again")
        with self._lock:
            if len(self._shards) >= OPEN_SHARDS:
                del self._shards[next(iter(self._shards))]
            self._shards[number] = shard
        return shard

    def place(self, row: int) -> Place:
        """Find a sequence: its record batch and its place therein.

        Raises:
          IndexError: if there is no such row.
        """
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        number = bisect_right(self.starts, row) - 1
        return self.shard(number).locate(row - int(self.starts[number]))

    def places(self, rows: np.ndarray) -> list[Place]:
        """Find sequences by their numbers, integers `[n]` in `[0, self.rows)`."""
        shards = np.searchsorted(self.starts, rows, side="right") - 1
        inside = rows - self.starts[shards]
        numbered = zip(shards.tolist(), inside.tolist(), strict=True)
        return [self.shard(number).locate(row) for number, row in numbered]

    def tokens(self, row: int) -> np.ndarray:
        """View the tokens of one sequence, padding included: the vocabulary's dtype, `[length]`."""
        place = self.place(row)
        return place.rows.row_tokens(place.number)

    def row(self, row: int) -> Row:
        """Read one sequence in full."""
        place = self.place(row)
        return place.rows.row(place.number)

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows, shard after shard."""
        for number in range(self.index.num_rows):
            yield from self.shard(number).rows()


def open_dataset(url: str) -> Dataset:
    """Open a directory of shards, local or in an object store."""
    return Dataset(url)
