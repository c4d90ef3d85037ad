"""Fixtures of the pipelines' tests."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from worldloom.tokenizers.train import train

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
