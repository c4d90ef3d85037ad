"""Runs of tokens that stand on the eval side: found by their hashes alone, listed in one file that packing reads.

A run is N trained text tokens one after the other: what is not trained, a picture and the end of an example part runs.
Two runs are the same where their hashes of 64 bits are; that two others share one by chance is not looked into, for
among 10^8 listed runs and 10^11 tokens it is expected less than once. As GPT-3 did (arXiv 2005.14165, appendix C, with
13 words), plain text is cut around what it shares, and a remainder that is shorter than a run is left out.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import __version__
from ..errors import RunFailed
from ..packing.dataset import Dataset
from ..packing.example import TEXT
from ..packing.shard import Batch, HashingFile, Shard
from ..packing.storage import TEMPORARY, Folder
from ..tokenizers.vocabulary import Vocabulary
from .split import content_keys, side_of
from .units import digest

WORD = 2**64
BASE = 0x9E3779B97F4A7C15  # odd; 2^64 over the golden ratio
FACTORS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # SplitMix64's shifts and factors (Steele et al. 2014)


@dataclass(frozen=True)
class Search:
    """Say which runs to list: of `n` tokens, on the eval side of finished examples.

    Attributes:
      examples, root: the examples' folder, and what it holds.
      seed, share: of the split.
    """

    examples: str
    root: str
    n: int
    seed: int
    share: float

    @property
    def folder(self) -> Folder:
        return Folder(self.examples)

    @property
    def key(self) -> str:
        """Digest of all that the list depends on."""
        return digest(self.root, self.n, self.seed, self.share, __version__)

    def parts(self) -> list[str]:
        return sorted(Dataset(self.examples).manifest["sources"])

    @property
    def drafts(self) -> str:
        """Begin the names of what is written on the way to the list."""
        return f"{TEMPORARY}eval-ngrams-{self.key}-"

    def draft(self, number: int) -> str:
        """Name the list of one slice of the hashes."""
        return f"{self.drafts}{number}"


class Listed(NamedTuple):
    """What is told of a finished list: the digest of its file, and how many hashes it has."""

    key: str
    content: str
    hashes: int


def usable(batch: Batch, vocabulary: Vocabulary) -> np.ndarray:
    """Mark the tokens of which runs are made: trained ones, of text; bool."""
    return batch.flags() & ~vocabulary.is_vision(batch.tokens)


def runs(tokens: np.ndarray, marked: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `n` marked tokens.

    Returns:
      Where each run starts, int64, and its hash, uint64: the sum of mixed ids times powers of `BASE`, modulo 2^64.
    """
    gaps = np.concatenate(([0], np.cumsum(~marked, dtype=np.int32)))
    starts = np.flatnonzero(gaps[n:] == gaps[:-n])
    if not len(starts):
        return starts, np.empty(0, np.uint64)
    return starts, _rolled(_mixed(1 << int(tokens.max()).bit_length())[tokens], n)[starts]


def _rolled(values: np.ndarray, n: int) -> np.ndarray:
    """Hash the run at each place from those of half its length."""
    if n == 1:
        return values
    half, step = _rolled(values, n // 2), n // 2
    whole = half[:-step] * np.uint64(pow(BASE, step, WORD)) + half[step:]
    return whole[:-1] * np.uint64(BASE) + values[n - 1 :] if n % 2 else whole


@lru_cache(maxsize=4)
def _mixed(ids: int) -> np.ndarray:
    """Spread ids over 64 bits as SplitMix64 does its states, uint64 `[ids]`."""
    mixed = np.arange(1, ids + 1, dtype=np.uint64) * np.uint64(BASE)
    for shift, factor in FACTORS:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def hashes(search: Search, path: str) -> Iterator[np.ndarray]:
    """Yield the hashes of a shard's runs on the eval side, ascending and each once in a batch."""
    shard = Shard(search.folder, path)
    for batch in shard.batches():
        exact, _ = batch.hashes()
        keys = (content_keys(s.spans, e) for (s,), e in zip(batch.segments(), exact, strict=True))
        chosen = np.array([side_of(search.seed, search.share, k) == "eval" for k in keys], bool)
        if chosen.any():
            marked = usable(batch, shard.vocabulary) & np.repeat(chosen, np.diff(batch.token_offsets))
            yield _distinct(runs(batch.tokens, marked, search.n)[1])


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sort hashes and keep each once: `numpy.unique` of NumPy 2.4 would tabulate them, in ten times the time."""
    ranked = np.sort(values)
    return ranked[np.concatenate(([True], ranked[1:] != ranked[:-1]))[: len(ranked)]]


def sliced(values: np.ndarray, slices: int) -> np.ndarray:
    """Number the slice of each hash: slices are ranges, in order."""
    return ((values >> np.uint64(32)) * np.uint64(slices)) >> np.uint64(32)


def write_shard(search: Search, path: str, slices: int) -> str:
    """Write the hashes of one shard, ascending, each once, after the borders of their slices; again does no harm.

    Returns:
      The file's name.
    """
    found = find_in_memory(search, [path])
    borders = np.searchsorted(sliced(found, slices), np.arange(slices + 1, dtype=np.uint64)).astype("<u8")
    name = f"{search.drafts}of-{digest(path)}"
    search.folder.overwrite(name, borders.tobytes() + found.tobytes())
    return name


def write_slice(search: Search, number: int, slices: int, drafts: Iterable[str]) -> None:
    """Write one slice of the list from what `write_shard` wrote, ascending, each hash once; again does no harm."""
    parts = [_part(search.folder, name, number, slices) for name in drafts]
    search.folder.overwrite(search.draft(number), _distinct(np.frombuffer(b"".join(parts), "<u8")).tobytes())


def _part(folder: Folder, name: str, number: int, slices: int) -> bytes:
    """Read one slice of a shard's hashes.

    Raises:
      RunFailed: if another worker wrote them elsewhere.
    """
    fs, path, first = folder.fs, folder.path(name), slices + 1
    try:
        borders = np.frombuffer(fs.cat_file(path, start=8 * number, end=8 * (number + 2)), "<u8")
        low, high = (8 * (first + border) for border in borders.tolist())
        return bytes(fs.cat_file(path, start=low, end=high)) if low < high else b""  # an empty range is no request
    except FileNotFoundError:
        raise _unwritten(folder, name) from None


def _unwritten(folder: Folder, name: str) -> RunFailed:
    return RunFailed(f"{folder.path(name)} was not written: can every worker write to {folder.url}?")


def merge(search: Search, slices: int) -> Listed:
    """Make one list of the slices', one after the other, and remove all that was written on the way.

    Raises:
      RunFailed: if one is not there.
    """
    folder, names = search.folder, [search.draft(number) for number in range(slices)]
    sizes = [folder.size(name) for name in names]
    if None in sizes:
        raise _unwritten(folder, names[sizes.index(None)])
    total = sum(size or 0 for size in sizes) // 8
    header = {"descr": "<u8", "fortran_order": False, "shape": (total,)}
    with folder.adopted(list_name(search.n)) as draft:
        sink = HashingFile(draft)
        np.lib.format.write_array_header_1_0(sink, header)
        for name in names:
            sink.write(folder.read(name) or b"")
        sink.close()
        folder.remove(said_name(search.n))  # a list without what is told of it is none
    listed = Listed(search.key, sink.hexdigest, total)
    folder.overwrite(said_name(search.n), (json.dumps(listed._asdict(), indent=1) + "\n").encode())
    for name in [name for name in folder.names() if name.startswith(search.drafts)]:
        folder.remove(name)
    return listed


def find_in_memory(search: Search, paths: Iterable[str]) -> np.ndarray:
    """List the hashes without an engine: what every engine must equal."""
    found = [values for path in paths for values in hashes(search, path)]
    return _distinct(np.concatenate([np.empty(0, np.uint64), *found]))


def list_name(n: int) -> str:
    return f"eval-ngrams-{n}.npy"


def said_name(n: int) -> str:
    return f"eval-ngrams-{n}.json"


def read_said(folder: Folder, n: int) -> Listed | None:
    """Read what is told of the list of runs of `n` tokens, or None where there is none."""
    try:
        return Listed(**json.loads(folder.read(said_name(n)) or b""))
    except (ValueError, TypeError):
        return None


def read(folder: Folder, n: int, content: str) -> np.ndarray:
    """Open a list, mapped where it is local: ascending uint64.

    Raises:
      RunFailed: if it is not the one with this digest.
    """
    said = read_said(folder, n)
    if said is None or said.content != content:
        raise RunFailed(f"{folder.path(list_name(n))} is another list than when the job began: call it again")
    if folder.local:
        return np.load(folder.path(list_name(n)), mmap_mode="r", allow_pickle=False)
    return np.load(io.BytesIO(folder.read(list_name(n)) or b""), allow_pickle=False)


def shared(batch: Batch, n: int, listed: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Mark the tokens of all rows that stand in a run which is listed: bool."""
    starts, values = runs(batch.tokens, usable(batch, vocabulary), n)
    found = starts[matches(values, listed)]
    covered = np.zeros(len(batch.tokens), bool)
    for step in range(n if len(found) else 0):
        covered[found + step] = True
    return covered


def matches(values: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Return the places of the values that are listed; looked up in their order, which keeps to the cache."""
    order = np.argsort(values)
    ranked = values[order]
    at = np.searchsorted(listed, ranked)
    inside = at < len(listed)
    return order[inside][listed[at[inside]] == ranked[inside]]


def remainders(batch: Batch, n: int, covered: np.ndarray) -> dict[int, list[tuple[int, int]]]:
    """Say for each row that shares a run what is left of it: ranges of `n` tokens or more; none but of plain text."""
    left: dict[int, list[tuple[int, int]]] = {}
    tasks = batch.strings("task")
    rows = np.searchsorted(batch.token_offsets, np.flatnonzero(covered), side="right") - 1
    for row in np.unique(rows).tolist():
        low, high = batch.token_offsets[row : row + 2]
        edges = np.flatnonzero(np.diff(np.concatenate(([1], covered[low:high], [1])).astype(np.int8)))
        whole = edges.reshape(-1, 2).tolist() if tasks[row].as_py() == TEXT else []
        left[row] = [(a, b) for a, b in whole if b - a >= n]
    return left
