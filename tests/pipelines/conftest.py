"""Fixtures of the pipelines' tests."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from worldloom.packing.example import Example
from worldloom.packing.ledger import KEPT
from worldloom.packing.manifest import shards_of, write_index, write_manifest
from worldloom.packing.report import REJECTS, SHARDS, UNITS, UnitWriter, read_report
from worldloom.packing.row import example_row
from worldloom.packing.shard import EXAMPLES
from worldloom.packing.storage import Folder
from worldloom.pipelines import duplicates
from worldloom.pipelines.job import Job, pending, run_unit
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.tokenizers.train import train
from worldloom.tokenizers.vocabulary import Vocabulary

PROSE = [
    "The miller's daughter went down to the river before the sun was up, and found the ferry gone.",
    "No one in the village had heard it leave; the rope hung over the water and moved a little.",
    "She called twice. On the far bank a lantern was lit, carried a few steps, and put out again.",
    "Good morning, said the fox, who had been reading 1984 on page 273 and did not look up.",
    "Nobody answers a fox at such an hour, so he shut his book and began to speak of the weather.",
]


# Changes to the files that a build makes: five folders and seven for each of two units; for packing, which lists the
# examples again, into two folders; and more than any makes.
TWO_UNITS, PACKING, NEVER = 20, 50, 10**9
MOST = 120  # seconds that a build may take to write a few files


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a text model of 400 pieces on a few lines of prose, once for all tests."""
    path = tmp_path_factory.mktemp("model") / "small.model"
    train(PROSE * 4, str(path), 400)
    return path


@pytest.fixture(scope="session")
def build_and_die() -> Iterator[Callable[[Path, Path, int, float], bool]]:
    """Let a build die: `build_and_die(recipe, out, change, seconds)`, as told in `dying.py`. Returns whether it did."""
    command = [sys.executable, str(Path(__file__).with_name("dying.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def die(recipe: Path, out: Path, change: int, seconds: float) -> bool:
            process.stdin.write(json.dumps([str(recipe), str(out), change, seconds]) + "\n")
            process.stdin.flush()
            ended = int(process.stdout.readline())
            assert ended in (0, signal.SIGKILL, signal.SIGALRM), "the build failed: see its error on stderr"
            return ended > 0

        yield die


@pytest.fixture
def kill_often(build_and_die: Callable[[Path, Path, int, float], bool]) -> Callable[[Path, Path, int], None]:
    """Kill builds into the same folder, each going on where the last died: `kill_often(recipe, out, every)`.

    One each as a user starts them, with 1, 2 and 3 workers. Then one before every change, or every so-manieth, that is
    made to the files until two units are tokenized, each followed by one some milliseconds after a change that is
    drawn; in the end one before each that is made in packing.
    """

    def kill(recipe: Path, out: Path, every: int) -> None:
        draw = random.Random(7)
        for workers in (1, 2, 3):
            for _ in range(9):
                if kill_as_started(recipe, out, workers, draw.randint(1, 6), draw.random() * 0.05):
                    break
                shutil.rmtree(out)  # it was too quick: there is to be something left
            else:
                pytest.fail("the build is always too quick for its killer: give it more to do")
        for change in range(1, TWO_UNITS, every):
            assert build_and_die(recipe, out, change, 0.0), f"no work was left for change {change}"
            assert build_and_die(recipe, out, draw.randint(1, TWO_UNITS // 2), 1e-6 + draw.random() * 0.01)
        assert not build_and_die(recipe, out, NEVER, 0.0)
        for change in range(1, PACKING, every):
            if not build_and_die(recipe, out, change, 0.0):
                for packed in out.glob("packed-*"):
                    shutil.rmtree(packed)

    return kill


def kill_as_started(recipe: Path, out: Path, workers: int, more: int, seconds: float) -> bool:
    """Kill `worldloom build` when it has written so many more files, or a moment later. Returns whether in time."""
    command = [sys.executable, "-m", "worldloom.cli", "build", str(recipe), "--out", str(out)]
    written = lambda: sum(1 for part in (UNITS, SHARDS, REJECTS) for _ in out.glob(f"*/{part}/*"))  # noqa: E731
    goal, patience = written() + more, time.monotonic() + MOST
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, "--workers", str(workers)], **quiet) as p:
        while p.poll() is None and written() < goal and time.monotonic() < patience:
            time.sleep(0.02)  # more often would take the processor from the build
        time.sleep(seconds)
        p.kill()
        assert p.wait() in (0, -signal.SIGKILL), "the build failed: call it by hand"
    return p.returncode != 0


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


@pytest.fixture
def plain_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have builds run their jobs in a plain loop, without Beam: what every engine must equal."""
    engine = types.ModuleType("worldloom.pipelines.beam_jobs")

    def run_job(job: Job, flags: list[str], workers: int) -> None:
        for part in job.parts():
            for unit in pending(job, part):
                run_unit(job, unit)

    def run_duplicates(job: TokenizeJob, flags: list[str], key: str, records: int) -> None:
        near = job.recipe.duplicates == "near"
        shards = [shard for part in job.parts() for shard in shards_of(job.folder, part)]
        found = duplicates.find_in_memory(h for shard in shards for h in duplicates.hashes(job.folder, *shard, near))
        duplicates.write(job.folder, found, key)

    vars(engine).update(run_job=run_job, run_duplicates=run_duplicates)
    monkeypatch.setitem(sys.modules, engine.__name__, engine)
