"""Fixtures of the pipelines' tests."""

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
