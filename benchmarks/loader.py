"""Dense batches from shards, against a loader that parses JSON lines of token lists."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from worldloom.packing.batch import Batch
from worldloom.packing.dataset import Dataset
from worldloom.packing.row import row_examples
from worldloom.training.loader import Loader

from benchmarks.measure import Measure, speedup
from benchmarks.shards import write_packed

SEED = 0
NAMES = ("tokens", "targets", "positions", "segments", "weights")


def measures() -> Iterator[Measure]:
    """Yield the speedup over JSON lines at 1,024 and at 131,072 tokens a row, three segments in each."""
    for length, rows, batch, floor in ((1024, 8192, 128, 12), (131_072, 64, 2, 50)):
        yield Measure(f"loader-{length}", ratio(length, rows, batch), floor)


def ratio(length: int, rows: int, batch: int) -> float:
    """Return the speedup over one epoch; raises AssertionError where one batch differs."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_packed(Path(folder) / "packed", rows, length)
        loader, lines = Loader(dataset, batch, SEED), Path(folder) / "rows.jsonl"
        write_lines(dataset, (loader.plan(t).rows for t in range(rows // batch)), lines)
        for ours, theirs in zip(from_shards(loader), from_lines(lines, batch, length), strict=True):
            if not all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in NAMES):
                raise AssertionError("the two loaders' batches differ")
        return speedup(lambda: exhaust(from_shards(loader)), lambda: exhaust(from_lines(lines, batch, length)))


def exhaust(batches: Iterable[Batch]) -> int:
    return sum(batch.examples for batch in batches)


def from_shards(loader: Loader) -> Iterator[Batch]:
    """Yield one epoch in random order, without a thread: the peer has none either."""
    return (loader.load(loader.plan(t)) for t in range(loader.dataset.rows // loader.rows))


def write_lines(dataset: Dataset, steps: Iterable[np.ndarray], path: Path) -> None:
    """Write each example's ids and where its answer begins, in the loader's order: the peer need not shuffle."""
    with path.open("w") as file:
        for row in np.concatenate(list(steps)).tolist():
            examples = row_examples(dataset.row(row))
            fields = [[e.tokens.tolist(), int(e.trained.argmax())] for e in examples]
            file.write(json.dumps(fields, separators=(",", ":")) + "\n")


def from_lines(path: Path, rows: int, length: int) -> Iterator[Batch]:
    """Yield the same batches from JSON lines, as one would write it with NumPy."""
    counting = np.arange(length, dtype=np.int32)
    with path.open("rb") as file:
        while lines := list(islice(file, rows)):
            tokens, targets, positions, segments = np.zeros((4, rows, length), np.int32)
            weights, examples = np.zeros((rows, length), np.float32), 0
            for r, line in enumerate(lines):
                parsed = json.loads(line)
                ends = np.cumsum([0, *(len(ids) for ids, _ in parsed)]).tolist()
                for number, ((ids, answer), (low, high)) in enumerate(zip(parsed, pairwise(ends), strict=True), 1):
                    tokens[r, low:high] = ids
                    targets[r, low : high - 1] = tokens[r, low + 1 : high]
                    positions[r, low:high] = counting[: high - low]
                    segments[r, low:high] = number
                    weights[r, low + answer - 1 : high - 1] = 1 / (high - low - answer)
                positions[r, high:] = counting[: length - high]
                examples += len(parsed)
            yield Batch(tokens, targets, positions, segments, weights, examples)
