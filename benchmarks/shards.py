"""Reading tokens back: against an array view on a mapped file of bare tokens, and against WebDataset.

Every reader sums every token, so that nobody is fast by not looking.
"""

import io
import mmap
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import webdataset
from worldloom.packing.dataset import Dataset
from worldloom.packing.example import Example, Span
from worldloom.packing.ledger import KEPT
from worldloom.packing.manifest import write_index, write_manifest
from worldloom.packing.report import REJECTS, SHARDS, UNITS, UnitWriter, read_report
from worldloom.packing.row import Row, sequence_row
from worldloom.packing.shard import Kind
from worldloom.packing.storage import Folder
from worldloom.packing.weights import Rule
from worldloom.tokenizers.vocabulary import Vocabulary

from benchmarks.measure import Measure, speedup

ROWS, LENGTH, SEGMENTS = 20_000, 1024, 3
VOCABULARY = Vocabulary(text_size=32_000, bos=1, eos=2, text_digest="benchmark")
UNIT_ROWS = 8_000  # so that the rows lie in a few shards
ONE_TAR = 2_000  # rows of a WebDataset shard
RANDOM = 10_000  # rows read in random order


def measures() -> Iterator[Measure]:
    """Yield the speed of reading in order over a raw view's and WebDataset's, and of random rows over a raw view's."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_packed(Path(folder) / "packed", ROWS, LENGTH)
        raw, tars = write_raw(dataset, Path(folder) / "raw"), write_tars(dataset, Path(folder))
        if not sum_shards(dataset) == sum_raw(raw, range(ROWS)) == sum_tars(tars):
            raise AssertionError("the readers do not read the same tokens")
        order = np.random.default_rng(0).permutation(ROWS)[:RANDOM].tolist()
        everything = range(ROWS)
        yield Measure("shards-raw", speedup(lambda: sum_shards(dataset), lambda: sum_raw(raw, everything)), 0.7)
        yield Measure("shards-webdataset", speedup(lambda: sum_shards(dataset), lambda: sum_tars(tars)), 30)
        yield Measure("shards-random", speedup(lambda: sum_rows(dataset, order), lambda: sum_raw(raw, order)), 1 / 3)


def sum_shards(dataset: Dataset) -> int:
    total = 0
    for number in range(dataset.index.num_rows):
        for batch in dataset.shard(number).batches():
            for row in range(batch.rows):
                total += int(batch.row_tokens(row).sum())
    return total


def sum_rows(dataset: Dataset, order: list[int]) -> int:
    return sum(int(dataset.tokens(row).sum()) for row in order)


def sum_raw(tokens: np.ndarray, order: range | list[int]) -> int:
    total = 0
    for row in order:
        total += int(tokens[row * LENGTH : (row + 1) * LENGTH].sum())
    return total


def sum_tars(paths: list[str]) -> int:
    samples = webdataset.WebDataset(paths, shardshuffle=False).decode()
    return sum(int(sample["tokens.npy"].sum()) for sample in samples)


def write_raw(dataset: Dataset, path: Path) -> np.ndarray:
    """Write nothing but the tokens, and view them mapped."""
    with path.open("wb") as file:
        for row in dataset:
            file.write(row.tokens.tobytes())
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), VOCABULARY.dtype)


def write_tars(dataset: Dataset, folder: Path) -> list[str]:
    """Write the tokens as WebDataset has them: one npy file a row."""
    paths = []
    for low in range(0, dataset.rows, ONE_TAR):
        paths.append(str(folder / f"{low:06d}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for row in range(low, min(low + ONE_TAR, dataset.rows)):
                data = io.BytesIO()
                np.save(data, dataset.tokens(row))
                entry = tarfile.TarInfo(f"{row:09d}.tokens.npy")
                entry.size = data.tell()
                data.seek(0)
                tar.addfile(entry, data)
    return paths


def write_packed(path: Path, rows: int, length: int) -> Dataset:
    """Write a data set of random chats: three in a row and a little padding, the last 40 % of each trained."""
    folder, kind = Folder(str(path)), Kind("sequences", length)
    folder.make(UNITS, SHARDS, REJECTS)
    rng = np.random.default_rng(length)
    units = [f"bench-{low:06d}" for low in range(0, rows, UNIT_ROWS)]
    for u, unit in enumerate(units):
        with UnitWriter(folder, unit, VOCABULARY, kind) as writer:
            for r in range(u * UNIT_ROWS, min((u + 1) * UNIT_ROWS, rows)):
                writer.add(random_row(rng, length, str(r)))
                writer.ledger.count(KEPT)
            writer.ledger.read = writer.ledger.kept
            writer.ledger.tokens_read = sum(task["tokens"] for task in writer.ledger.tasks.values())
            writer.commit("bench", key="")
    summary = write_index(folder, [report for unit in units if (report := read_report(folder, unit))])
    described = {
        "kind": kind.name,
        "length": length,
        "weights": Rule.EXAMPLE.value,
        "vocabulary": asdict(VOCABULARY),
        "fingerprint": VOCABULARY.fingerprint,
    }
    write_manifest(folder, summary, described)
    return Dataset(str(path))


def random_row(rng: np.random.Generator, length: int, record: str) -> Row:
    size = length // SEGMENTS - 3
    answered = np.arange(size) >= size * 6 // 10
    tokens = rng.integers(0, VOCABULARY.text_size, (SEGMENTS, size)).astype(VOCABULARY.dtype)
    tokens[:, -1] = VOCABULARY.eos
    spans = (Span(size - int(answered.sum()), size, "assistant"),)
    examples = [Example(ids, answered, "chat", "bench", f"{record}.{i}", 0, spans) for i, ids in enumerate(tokens)]
    return sequence_row(examples, length, VOCABULARY)
