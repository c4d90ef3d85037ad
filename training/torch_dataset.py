"""The same rows for a torch training loop: one row a sample, shuffled, each exactly once over ranks and workers."""

from collections.abc import Iterator, Mapping

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import UserError
from ..packing.weights import Rule
from .loader import Loader
from .mixture import By, Share, open_mixture

Sample = dict[str, torch.Tensor]


class TorchRows(IterableDataset[Sample]):
    """Yield rows of packed data sets as dictionaries of tensors; a `DataLoader` makes batches of them.

    A sample has `tokens`, `targets`, `positions` and `segments`, int64 `[length]`; `weights`, float32 `[length]`;
    and `examples`, int64 `[]`, the row's segments: what `packing.batch.Batch` says of them holds here.

    Entries `[start, stop)` of the endless stream that `(seed, epoch)` shuffles are dealt in turn to ranks and their
    workers. One epoch is as many entries as there are rows, so epoch e is `start=e * rows, stop=(e + 1) * rows`,
    and a run that has seen n rows resumes at `start=n`. Ranks differ by at most one row. In a mixture each set has
    epochs of its own.

    Attributes:
      url: of the data set, or of each set of a mixture with its share; every worker opens them for itself.
      stop: left out, as many entries as there are rows in all: the end of the first epoch.
      weights: rule of the loss weights; left out, the data set's own.
      by: what shares count.

    Raises:
      UserError: if the data set holds no sequences, the sets do not go together, the rule is unknown, or the rank is
        none of `ranks`.
    """

    def __init__(
        self,
        url: str | Mapping[str, Share],
        seed: int = 0,
        start: int = 0,
        stop: int | None = None,
        weights: Rule | str | None = None,
        rank: int = 0,
        ranks: int = 1,
        by: By | str = By.SEQUENCES,
    ):
        if not 0 <= rank < ranks:
            raise UserError(f"rank {rank} is none of {ranks}: ranks count from 0")
        self.url, self.by, self.seed, self.weights, self.rank, self.ranks = url, by, seed, weights, rank, ranks
        self.start, self.stop = start, self._open().dataset.rows if stop is None else stop

    def _open(self) -> Loader:
        shares = {self.url: 1} if isinstance(self.url, str) else self.url
        return Loader(open_mixture(shares, self.by), 1, self.seed, self.weights)

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        loader = self._open()
        for entry in range(self.start + self.rank + self.ranks * number, self.stop, self.ranks * workers):
            yield _sample(loader, entry)


def _sample(loader: Loader, entry: int) -> Sample:
    batch = loader.load(loader.plan(entry))
    whole = ("tokens", "targets", "positions", "segments")
    sample = {name: torch.from_numpy(getattr(batch, name)[0]).long() for name in whole}
    return sample | {"weights": torch.from_numpy(batch.weights[0]).clone(), "examples": torch.tensor(batch.examples)}
