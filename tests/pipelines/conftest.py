"""Fixtures of the pipelines' tests."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from worldloom.packing.example import Example
from worldloom.packing.ledger import KEPT
from worldloom.packing.manifest import write_index, write_manifest
from worldloom.packing.report import REJECTS, SHARDS, UNITS, UnitWriter, read_report
from worldloom.packing.row import example_row
from worldloom.packing.shard import EXAMPLES
from worldloom.packing.storage import Folder
from worldloom.tokenizers.train import train
from worldloom.tokenizers.vocabulary import Vocabulary

PROSE = [
    "The miller's daughter went down to the river before the sun was up, and found the ferry gone.",
    "No one in the village had heard it leave; the rope hung over the water and moved a little.",
    "She called twice. On the far bank a lantern was lit, carried a few steps, and put out again.",
    "Good morning, said the fox, who had been reading 1984 on page 273 and did not look up.",
    "Nobody answers a fox at such an hour, so he shut his book and began to speak of the weather.",
]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a text model of 400 pieces on a few lines of prose, once for all tests."""
    path = tmp_path_factory.mktemp("model") / "small.model"
    train(PROSE * 4, str(path), 400)
    return path


ALONE = """
import sys
from worldloom.pipelines.build import EXAMPLES
from worldloom.pipelines.deny import with_deny_lists
from worldloom.pipelines.job import run_in_memory
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.recipe import load_recipe
recipe, out = sys.argv[1:]
run_in_memory(TokenizeJob(with_deny_lists(load_recipe(recipe, [])), f"{out}/{EXAMPLES}"))
"""


@pytest.fixture
def begin_build() -> Callable[[Path, Path, int], "subprocess.Popen[bytes]"]:
    """Start a build that will be killed, as a user does with `workers` processes.

    With 0 workers it is the tokenize job alone, without an engine, whose import is most of a short build.
    """

    def begin(recipe: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
        call = ["-c", ALONE, str(recipe), str(out)]
        if workers or not out.exists():
            call = ["-m", "worldloom.cli", "build", str(recipe), "--out", str(out), "--workers", str(workers or 1)]
        return subprocess.Popen([sys.executable, *call], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return begin


@pytest.fixture
def write_examples() -> Callable[..., str]:
    """Write finished examples, each with its content's hash: `write_examples(url, {unit: [(example, exact)]}, …)`."""

    def write(
        url: str,
        units: dict[str, list[tuple[Example, bytes]]],
        vocabulary: Vocabulary,
        seed: int = 0,
        share: float = 0.0,
    ) -> str:
        folder = Folder(url)
        folder.make(UNITS, SHARDS, REJECTS)
        for unit, found in units.items():
            with UnitWriter(folder, unit, vocabulary, EXAMPLES) as writer:
                for example, exact in found:
                    writer.add(example_row(example, vocabulary, exact, np.empty(0, np.uint64)))
                    writer.ledger.read += 1
                    writer.ledger.count(KEPT)
                writer.commit(unit.rpartition("-")[0], key="k")
        reports = [report for unit in sorted(units) if (report := read_report(folder, unit))]
        about = {"kind": "examples", "length": 0, "weights": "example", "fingerprint": vocabulary.fingerprint}
        about |= {"seed": seed, "eval": share, "duplicates": "none", "description": "", "versions": {}, "about": {}}
        write_manifest(folder, write_index(folder, reports), {**about, "vocabulary": asdict(vocabulary)})
        return url

    return write
