"""The pack job: runs of example shards become shards of packed sequences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from .. import __version__
from ..packing.binpack import plan
from ..packing.dataset import Dataset
from ..packing.example import TEXT, Example, clip_spans
from ..packing.ledger import DROPPED, KEPT
from ..packing.report import Reject, Report, UnitWriter, report_name
from ..packing.row import decode_runs, row_examples, sequence_row
from ..packing.shard import Batch, Kind, Shard
from ..packing.storage import Folder
from ..packing.thin import Thinning, plan_thinning, thin
from ..recipe import PackSection
from . import eval_ngrams
from .duplicates import SCHEMA, of_units, read
from .eval_ngrams import remainders, shared
from .split import content_keys, side_of
from .units import Part, Unit, digest, group

LEAST_TOKENS, MOST_TOKENS = 2**24, 2**27  # of a unit; fewer would leave more sequences half empty at unit ends
INDEX_ROWS = 4096  # of the examples' index, read at once
PER_UNIT = 1024  # sequences: what one half-empty one costs stays below 0.1 %

Left = Mapping[int, Sequence[tuple[int, int]]]  # by row: the ranges of its tokens that are to be packed


@lru_cache(maxsize=4)
def _dataset(url: str, root: str) -> Dataset:
    return Dataset(url)


@lru_cache(maxsize=4)
def _duplicates(url: str, key: str) -> pa.Table:
    return read(Folder(url))


@lru_cache(maxsize=4)
def _listed(url: str, n: int, content: str) -> np.ndarray:
    return eval_ngrams.read(Folder(url), n, content)


@dataclass(frozen=True)
class PackJob:
    """Pack the examples under `examples` into sequences under `url`.

    Attributes:
      root: the examples' root, so that a worker never takes a stale index for the present one.
      duplicates: digest of the list of duplicates to drop, or "" for none.
      section, seed, eval: length, sources and split, as in the recipe.
      ngrams: digest of the list of runs on the eval side, where the section has them removed, else "".
    """

    examples: str
    root: str
    url: str
    section: PackSection
    duplicates: str = ""
    seed: int = 0
    eval: float = 0.0
    ngrams: str = ""

    @property
    def folder(self) -> Folder:
        return Folder(self.url)

    @property
    def dataset(self) -> Dataset:
        return _dataset(self.examples, self.root)

    def parts(self) -> list[str]:
        """Name the sources to pack. No sequence mixes two, so that each has a ledger of its own."""
        names = self.dataset.manifest["sources"]
        return sorted((name for name in self.section.sources or names if name in names), key=lambda name: f"{name}-0")

    def units(self, part: str) -> Iterator[Unit]:
        vocabulary = self.dataset.vocabulary.fingerprint
        split = (self.section.split, self.seed, self.eval, "by content") if self.section.split != "all" else "all"
        removed = (self.section.remove_eval_ngrams, self.ngrams)
        facts = digest(self.section.length, split, self.section.frames, removed, vocabulary, __version__)
        for name, parts in self._groups(part):
            dropped = self._dropped([p.id for p in parts]).select(["unit", "row"]).to_pylist()
            yield Unit(name, part, parts, digest(facts, [p.version for p in parts], dropped))

    def names(self, part: str) -> Iterator[str]:
        return (name for name, _ in self._groups(part))

    def _groups(self, part: str) -> Iterator[tuple[str, tuple[Part, ...]]]:
        most = min(max(PER_UNIT * self.section.length, LEAST_TOKENS), MOST_TOKENS)
        for number, parts in enumerate(group(self._shards(part), most)):
            yield f"{part}-{number:07d}", parts

    def _shards(self, source: str) -> Iterator[tuple[Part, int]]:
        for batch in self.dataset.index.to_batches(INDEX_ROWS):
            for row in batch.to_pylist():
                if row["source"] == source:
                    tokens = row["tokens"]
                    yield Part(row["unit"], row["path"], 0, row["rows"], tokens, row["content"]), tokens

    def _dropped(self, units: list[str]) -> pa.Table:
        table = _duplicates(self.examples, self.duplicates) if self.duplicates else SCHEMA.empty_table()
        return of_units(table, units)

    def agrees(self, unit: Unit, report: Report) -> bool:
        return True

    def settle(self, report: Report) -> Report:
        return report

    def run(self, unit: Unit) -> None:
        stale = self.folder.read(report_name(unit.name))
        kind = Kind("sequences", self.section.length)
        with UnitWriter(self.folder, unit.name, self.dataset.vocabulary, kind) as writer:
            pieces = self._choose(unit, writer)
            lengths = pieces.high - pieces.low
            packed = plan(lengths, self.section.length)
            for low, high in zip(packed.offsets[:-1], packed.offsets[1:], strict=True):
                examples = [pieces.example(i) for i in packed.order[low:high]]
                writer.add(sequence_row(examples, self.section.length, self.dataset.vocabulary))
            writer.ledger.tokens_dropped = writer.ledger.tokens_read - int(lengths.sum())
            writer.commit(unit.source, unit.key, stale=stale)

    def _choose(self, unit: Unit, writer: UnitWriter) -> "Pieces":
        """Decide on every example of a unit, count it, and cut what is too long and may be cut."""
        dropped = self._dropped([p.id for p in unit.parts])
        pieces = PieceList()
        for part in unit.parts:
            mine = of_units(dropped, [part.id])
            duplicates = dict(zip(mine.column("row").to_pylist(), mine.to_pylist(), strict=True))
            first = 0
            for batch in Shard(Folder(self.examples), part.url).batches():
                writer.ledger.tokens_read += int(batch.column("length").sum())
                writer.ledger.read += batch.rows
                thinned, sides, left = self._thin(batch), self._sides(batch), self._left(batch)
                verdicts = [
                    self._judge(batch, i, duplicates.get(first + i), thinned[i], sides[i], left.get(i))
                    for i in range(batch.rows)
                ]
                _count(verdicts, batch, first, part, writer)
                kept = np.array([not reason for reason, _ in verdicts])
                writer.ledger.tokens_cut += _cut(batch, kept, left)
                pieces.add(batch, np.flatnonzero(kept), self.section.length, thinned, left)
                first += batch.rows
        return pieces.close()

    def _thin(self, batch: Batch) -> list[Thinning | None]:
        """Decide for every example of a batch how many of its frames stay; None where that would be too few."""
        lengths = batch.column("length").tolist()
        if self.section.frames is None:
            return [Thinning(1, 1, n) for n in lengths]
        room, frames = self.section.length, self.section.frames
        return [plan_thinning(s.length, s.spans, room, frames) for (s,) in batch.segments()]

    def _sides(self, batch: Batch) -> Sequence[str]:
        """Say for every example of a batch on which side of the split it is, where there is one."""
        if self.section.split == "all":
            return ["all"] * batch.rows
        contents = zip(batch.segments(), batch.hashes()[0], strict=True)
        return [side_of(self.seed, self.eval, content_keys(s.spans, exact)) for (s,), exact in contents]

    def _left(self, batch: Batch) -> Left:
        """Say of the examples that share runs with the eval side what is left of them, where that is to be removed."""
        n = self.section.remove_eval_ngrams
        if not n:
            return {}
        vocabulary, listed = self.dataset.vocabulary, _listed(self.examples, n, self.ngrams)
        return remainders(batch, n, shared(batch, n, listed, vocabulary))

    def _judge(
        self,
        batch: Batch,
        i: int,
        duplicate: dict[str, str] | None,
        thinned: Thinning | None,
        side: str,
        left: Sequence[tuple[int, int]] | None,
    ) -> tuple[str, str]:
        """Say why no sequence takes an example: a reason and the details, or twice ""."""
        if duplicate:
            return f"{duplicate['kind']} duplicate", f"of {duplicate['of_source']} {duplicate['of_record']}"
        if thinned is None:
            return "too few frames would be left", f"of {batch.column('length')[i]} tokens"
        if thinned.length > self.section.length and batch.strings("task")[i].as_py() != TEXT:
            return "longer than the sequence", f"{thinned.length} tokens"
        if side != self.section.split:
            where = "on both sides of the split" if side == "both" else "other side of the split"
            return where, f"split is {self.section.split}"
        if left is not None and not left:
            return f"shares {self.section.remove_eval_ngrams} tokens with the eval side", "one after the other"
        return "", ""


def _count(verdicts: list[tuple[str, str]], batch: Batch, first: int, part: Part, writer: UnitWriter) -> None:
    sources, records = batch.strings("source"), batch.strings("record")
    for i, (reason, detail) in enumerate(verdicts):
        if reason:
            where = f"{part.url} row {first + i}"
            writer.reject(Reject(sources[i].as_py(), records[i].as_py(), "pack", DROPPED, reason, detail, where))
        else:
            writer.ledger.count(KEPT)


def _cut(batch: Batch, kept: np.ndarray, left: Left) -> int:
    """Count the tokens that were taken out of the examples that are kept."""
    lengths = batch.column("length")
    return sum(int(lengths[i]) - sum(high - low for low, high in ranges) for i, ranges in left.items() if kept[i])


class Pieces(NamedTuple):
    """Token ranges of examples, columns of one array each: what bin packing places."""

    batches: list[Batch]
    batch: np.ndarray
    row: np.ndarray
    low: np.ndarray
    high: np.ndarray
    part: np.ndarray
    whole: np.ndarray

    def example(self, i: int) -> Example:
        """Read one piece as an example of its own."""
        batch, number = self.batches[self.batch[i]], int(self.row[i])
        low, high = int(self.low[i]), int(self.high[i])
        row = batch.row(number)
        if self.part[i] < self.whole[i]:
            return thin(row_examples(row)[0], Thinning(int(self.part[i]), int(self.whole[i]), high))
        segment = row.segments[0]
        trained = decode_runs(row.trained, low, high)
        trained[:1] = False
        spans = clip_spans(segment.spans, low, high)
        return Example(
            row.tokens[low:high], trained, segment.task, segment.source, segment.record, segment.start + low, spans
        )


class PieceList:
    """Gather pieces batch by batch."""

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._columns: list[np.ndarray] = [np.empty((6, 0), np.int64)]

    def add(
        self, batch: Batch, rows: np.ndarray, length: int, thinned: list[Thinning | None], left: Left | None = None
    ) -> None:
        """Take whole examples, or of some what is `left` of them; what is longer than `length` in consecutive windows.

        A remainder of one token could train nothing: it is left out, and thereby counted as dropped.
        """
        plans = [(i, plan) for i in rows.tolist() if (plan := thinned[i])]
        ranges = [
            (i, low, high, plan.part, plan.whole)
            for i, plan in plans
            for low, high in (left or {}).get(i, [(0, plan.length)])
        ]
        row, first, last, part, whole = np.array(ranges, np.int64).reshape(-1, 5).T
        counts = np.maximum(1, (last - first + length - 2) // length)
        owner = np.repeat(np.arange(len(row)), counts)
        low = first[owner] + (np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
        high = np.minimum(low + length, last[owner])
        number = np.full(len(owner), len(self._batches))
        self._batches.append(batch)
        self._columns.append(np.stack((number, row[owner], low, high, part[owner], whole[owner])))

    def close(self) -> Pieces:
        return Pieces(self._batches, *np.concatenate(self._columns, axis=1))
