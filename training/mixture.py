"""Several packed data sets with exact shares: whose row comes at each place of one endless stream."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import UserError
from ..packing.dataset import Dataset, open_dataset
from ..tokenizers.vocabulary import Vocabulary

PERIOD = 100_000  # longest period of a schedule: room for shares of five digits, in a table of 1.6 MB

Share = int | float | str | Fraction


class By(StrEnum):
    """What shares count: packed sequences, as LWM's shares of a batch do, or the tokens in them without padding."""

    SEQUENCES = "sequences"
    TOKENS = "tokens"


def read_share(given: Share) -> Fraction:
    """Read a share as the rational number that was written: 0.7 is 7/10, and so are "0.7" and "7/10".

    Raises:
      UserError: if it is no number above 0.
    """
    try:
        share = Fraction(0) if isinstance(given, bool) else Fraction(str(given))
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if share <= 0:
        raise UserError(f"a share of {given!r} is none: write a number above 0, for example 0.7, 7 or 7/10")
    return share


def normalise(shares: Sequence[Fraction]) -> list[Fraction]:
    """Take shares as parts of their sum: 7 and 3 are 7/10 and 3/10.

    Raises:
      UserError: if all are below 1, as fractions of a whole are, and they do not add up to it.
    """
    whole = sum(shares, Fraction(0))
    if whole != 1 and max(shares) < 1:
        told = " + ".join(map(str, shares))
        raise UserError(
            f"the shares of a mixture add up to {told} = {whole}: make them add up to 1 (a third is 1/3), "
            "or write whole numbers, of which each is taken as its part of their sum"
        )
    return [share / whole for share in shares]


def count_rows(shares: Sequence[Fraction]) -> list[int]:
    """Say how many rows of each set a period has, in all their least common denominator, or `PERIOD` if that is less.

    Args:
      shares: of the rows, above 0, adding up to 1.

    Returns:
      counts; cut to `PERIOD`, by largest remainders, each is less than a row from its share of the period.
    """
    period = min(PERIOD, math.lcm(*(share.denominator for share in shares)))
    wanted = [share * period for share in shares]
    counts = [math.floor(count) for count in wanted]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - wanted[i])
    for i in by_remainder[: period - sum(counts)]:
        counts[i] += 1
    return counts


def deal(counts: Sequence[int]) -> np.ndarray:
    """Say whose turn it is at each place of a period, so that every prefix has each set's share to less than one row.

    The chairman assignment problem (Tijdeman 1980): of the sets that may have one more row without being a whole row
    ahead, the one that would first be a whole row behind comes next; of equals the first.

    Args:
      counts: rows of each set in a period, at least 1.

    Returns:
      numbers of sets, int64 `[sum(counts)]`.
    """
    period, done = sum(counts), [0] * len(counts)
    order = np.empty(period, np.int64)
    for n in range(period):
        ready = [i for i, count in enumerate(counts) if done[i] * period < (n + 1) * count]
        order[n] = chosen = min(ready, key=lambda i: -(-(done[i] + 1) * period // counts[i]))
        done[chosen] += 1
    return order


@dataclass(frozen=True, eq=False)
class Schedule:
    """Know any part of the endless order of turns without what went before.

    Attributes:
      counts: rows of each set in a period, int64 `[sets]`.
      sets: whose turn it is at each place of a period, int64 `[period]`.
      turns: how many turns that set had before in the period, int64 `[period]`.
    """

    counts: np.ndarray
    sets: np.ndarray
    turns: np.ndarray

    def take(self, first: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Tell of entries `[first, first + number)` whose turn each is, and which of that set's turns, counted from 0.

        Returns:
          two int64 `[number]`.
        """
        periods, places = np.divmod(np.arange(first, first + number), len(self.sets))
        sets = self.sets[places]
        return sets, periods * self.counts[sets] + self.turns[places]


def make_schedule(counts: Sequence[int]) -> Schedule:
    """Deal a period's turns to sets of so many rows each."""
    sets = deal(counts)
    turns = np.empty_like(sets)
    for i, count in enumerate(counts):
        turns[sets == i] = np.arange(count)
    return Schedule(np.array(counts), sets, turns)


class Mixture:
    """Take rows from packed data sets in turn, each set in its exact share; one set alone is a mixture, too.

    Attributes:
      sets: the data sets.
      schedule: whose turn it is.

    Raises:
      UserError: if sets hold no sequences or the same ones, do not go together, or shares are none.
    """

    def __init__(self, shares: Mapping[Dataset, Share], by: By | str = By.SEQUENCES):
        if not shares:
            raise UserError("a mixture of no data sets is none: name at least one, with its share")
        self.sets = tuple(shares)
        for dataset in self.sets:
            _check(dataset)
        self._check_distinct()
        self._same("length", lambda dataset: dataset.length, "pack them to one length")
        self._same("vocabulary", lambda dataset: dataset.vocabulary.fingerprint, "build them with one vocabulary")
        self.schedule = make_schedule(self._counts(normalise([read_share(s) for s in shares.values()]), _by(by)))

    def _counts(self, shares: Sequence[Fraction], by: By) -> list[int]:
        if by is By.TOKENS:
            shares = self._by_rows(shares)
        counts = count_rows(shares)
        if by is By.SEQUENCES and (period := math.lcm(*(share.denominator for share in shares))) > PERIOD:
            told = ", ".join(map(str, shares))
            raise UserError(
                f"the shares {told} come out even after {period:,} rows only, and {PERIOD:,} is the most: "
                "round them to fewer digits"
            )
        if 0 in counts:
            url = self.sets[counts.index(0)].folder.url
            raise UserError(f"the share of {url} is less than a row in {PERIOD:,}: raise it, or leave the data set out")
        return counts

    def _by_rows(self, shares: Sequence[Fraction]) -> list[Fraction]:
        """Turn shares of tokens into shares of rows, by each set's mean of tokens in a row."""
        parts = [share * d.rows / d.manifest["tokens"] for share, d in zip(shares, self.sets, strict=True)]
        return [part / sum(parts) for part in parts]

    def _check_distinct(self) -> None:
        by_root: dict[str, str] = {}
        for dataset in self.sets:
            url, other = dataset.folder.url, by_root.get(dataset.root)
            if other is not None:
                raise UserError(f"{other} and {url} hold the same rows: name them once, with the sum of their shares")
            by_root[dataset.root] = url

    def _same(self, name: str, tell: Callable[[Dataset], Any], remedy: str) -> Any:
        found = {dataset.folder.url: tell(dataset) for dataset in self.sets}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{url} has {value}" for url, value in found.items())
            raise UserError(f"the data sets of a mixture differ in {name}: {told}: {remedy}")
        return tell(self.sets[0])

    @property
    def rows(self) -> int:
        """Number of rows of all sets."""
        return sum(dataset.rows for dataset in self.sets)

    @property
    def length(self) -> int:
        return self.sets[0].length

    @property
    def vocabulary(self) -> Vocabulary:
        return self.sets[0].vocabulary

    @property
    def weights(self) -> str:
        """The default rule of weights.

        Raises:
          UserError: if the sets have several.
        """
        remedy = "choose one for all with `weights`"
        return str(self._same("weights", lambda dataset: dataset.manifest["weights"], remedy))

    @property
    def root(self) -> str:
        """What decides the stream beside the seed: the sets' roots, and their shares if they are several."""
        if len(self.sets) == 1:
            return self.sets[0].root
        return " + ".join(f"{n} x {d.root}" for n, d in zip(self.schedule.counts, self.sets, strict=True))


def open_mixture(shares: Mapping[str, Share], by: By | str = By.SEQUENCES) -> Mixture:
    """Open packed data sets, local or in an object store, by path and share."""
    return Mixture({open_dataset(url): share for url, share in shares.items()}, by)


def _check(dataset: Dataset) -> None:
    url, kind = dataset.folder.url, dataset.manifest["kind"]
    if kind != "sequences":
        raise UserError(f"{url} holds {kind}, not packed sequences: run 'worldloom pack' and name a packed-NAME folder")
    if not dataset.rows:
        raise UserError(f"{url} has no rows to train on: see what was rejected with 'worldloom inspect'")


def _by(name: str) -> By:
    try:
        return By(name)
    except ValueError:
        raise UserError(f"shares cannot count {name!r}: choose one of {', '.join(By)}") from None
