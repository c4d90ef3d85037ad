"""Fixtures that every test may use."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from worldloom.packing.dataset import Dataset
from worldloom.packing.example import TEXT, Draft, Example
from worldloom.packing.ledger import KEPT
from worldloom.packing.manifest import write_index, write_manifest
from worldloom.packing.report import REJECTS, SHARDS, UNITS, UnitWriter, read_report
from worldloom.packing.row import Row, sequence_row
from worldloom.packing.shard import Kind
from worldloom.packing.storage import Folder
from worldloom.tokenizers.vocabulary import Vocabulary

# Where the environment forbids Python to keep what it compiles, each of the many processes that tests start would
# compile Beam, JAX or torch anew: half of its time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """Fail a test that leaves real-time priority behind: what it starts later would starve the machine."""
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    yield
    assert before is None or os.sched_getscheduler(0) == before


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Find the real books, images and models, or skip with a word that says what was missed."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("WORLDLOOM_REAL_DATA", default))
    if not (path / "books").is_dir():
        pytest.skip(f"SKIPPED FOR LACK OF REAL DATA: {path} has no books; set WORLDLOOM_REAL_DATA")
    return path


@pytest.fixture(scope="session")
def llama_model(real_data: Path) -> Path:
    return real_data / "models" / "llama-tokenizer.model"


VOCABULARY = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test")
VISION = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test", codes=64, vision_digest="codes")


def random_example(rng: np.random.Generator, length: int, record: str, vocabulary: Vocabulary = VOCABULARY) -> Example:
    """Draw an example: plain text, or where there are picture codes text and a picture, some of it untrained."""
    draft = Draft(vocabulary)
    draft.add([vocabulary.bos], trained=False)
    while (left := length - 1 - draft.length) > 0:
        size = int(rng.integers(1, left + 1))
        vision = vocabulary.codes and rng.random() < 0.5
        low, high = (vocabulary.text_size, vocabulary.eof) if vision else (0, vocabulary.text_size)
        ids = rng.integers(low, high, size)
        ids[-1] = vocabulary.eov if vision else ids[-1]
        draft.add(ids, bool(rng.random() < 0.6), "image" if vision else "")
    draft.add([vocabulary.eos], trained=True)
    return draft.example("image-to-text" if vocabulary.codes else TEXT, "toy", record)


def write_dataset(url: str, units: dict[str, list[Row]], vocabulary: Vocabulary, kind: Kind, weights: str) -> Dataset:
    """Write a complete data set from rows in memory."""
    folder = Folder(url)
    folder.make(UNITS, SHARDS, REJECTS)
    for name, rows in units.items():
        with UnitWriter(folder, name, vocabulary, kind) as writer:
            for row in rows:
                writer.add(row)
                for s in row.segments:
                    writer.ledger.read += 1
                    writer.ledger.count(KEPT)
                    writer.ledger.tokens_read += s.length
            writer.commit("toy", key="k")
    reports = [report for name in sorted(units) if (report := read_report(folder, name))]
    described = {
        "kind": kind.name,
        "length": kind.length,
        "weights": weights,
        "vocabulary": asdict(vocabulary),
        "fingerprint": vocabulary.fingerprint,
    }
    write_manifest(folder, write_index(folder, reports), described)
    return Dataset(url)


@pytest.fixture
def toy_dataset(tmp_path: Path) -> Callable[..., Dataset]:
    """Make a data set of packed random examples: `toy_dataset(rows=40, length=64, vocabulary=…, weights=…)`."""

    def make(
        rows: int = 40, length: int = 64, vocabulary: Vocabulary = VOCABULARY, weights: str = "example", url: str = ""
    ) -> Dataset:
        rng = np.random.default_rng(rows * length)
        packed = []
        for r in range(rows):
            lengths = [int(n) for n in rng.integers(2, length // 3 + 1, 3)]
            examples = [random_example(rng, n, f"r{r}.{i}", vocabulary) for i, n in enumerate(lengths)]
            packed.append(sequence_row(examples, length, vocabulary))
        units = {f"toy-{u:06d}": packed[u::3] for u in range(3)}
        return write_dataset(url or str(tmp_path / "toy"), units, vocabulary, Kind("sequences", length), weights)

    return make
