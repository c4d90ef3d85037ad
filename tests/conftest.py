"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


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
