"""The tokenize job beside the bare loop that reads and encodes, and two workers beside one."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from worldloom.packing.report import UNITS
from worldloom.pipelines.beam_jobs import run_job
from worldloom.pipelines.job import prepare
from worldloom.pipelines.models import text_tokenizer
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.pipelines.toy.books import write_corpus
from worldloom.recipe import Recipe, load_recipe
from worldloom.tokenizers.train import train

from .measure import Measure, seconds, speedup

JOB_BYTES = int(3.1e8)  # of text, for the job beside the loop
BUILD_SECONDS = 120.0  # that one worker takes for the build, at least
CHARACTERS = 4000  # of a document


def measures() -> Iterator[Measure]:
    """Yield the job's cost over the loop (an upper bound of 1.35, inverted) and the gain from a second worker."""
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        text, model = source(folder)
        write_lines(folder / "corpus", text, JOB_BYTES)
        recipe = write_recipe(folder, model)
        loop, job = lambda: bare_loop(folder / "corpus", model), lambda: run(recipe, folder / "job")
        yield Measure("tokenize-job-loop", 1 / speedup(loop, job), 1 / 1.35)
        yield Measure("build-2-workers", second_worker(folder, text), 1.6)


def source(folder: Path) -> tuple[str, str]:
    """Return a text of some megabytes and a text model: the real books and LLaMA's, or the quickstart's."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    real = Path(os.environ.get("WORLDLOOM_REAL_DATA", default))
    if (real / "books").is_dir():
        books = sorted((real / "books").glob("*.txt"))
        return "".join(b.read_text("utf-8-sig") for b in books), str(real / "models" / "llama-tokenizer.model")
    texts = [path.read_text() for path in write_corpus(folder / "books")]
    train(texts, str(folder / "text.model"), 4096)
    return "".join(texts), str(folder / "text.model")


def write_lines(folder: Path, text: str, size: int) -> None:
    """Write documents as JSON lines of about `size` bytes in all, each copy numbered so that none is a duplicate."""
    folder.mkdir(exist_ok=True)
    pieces = [text[i : i + CHARACTERS] for i in range(0, len(text), CHARACTERS)]
    written = copy = 0
    with (folder / "documents.jsonl").open("w") as file:
        while written < size:
            for piece in pieces:
                written += file.write(json.dumps({"text": f"{copy} {piece}"}, ensure_ascii=False) + "\n")
            copy += 1


def write_recipe(folder: Path, model: str) -> Path:
    path = folder / "recipe.yaml"
    source = {"name": "bench", "kind": "books", "path": "corpus/*.jsonl"}
    path.write_text(json.dumps({"vocabulary": {"text": model}, "sources": [source], "pack": {"length": 8192}}))
    return path


def bare_loop(corpus: Path, model: str) -> None:
    """Read, parse and encode every line: what any tokenizing job must at least do."""
    tokenizer = text_tokenizer(model)
    for path in sorted(corpus.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                tokenizer.encode(json.loads(line)["text"])


def run(path: Path, out: Path) -> None:
    """Run the tokenize job on Beam's in-memory runner, in this process, from nothing."""
    recipe: Recipe = load_recipe(path)
    shutil.rmtree(out, ignore_errors=True)
    job = TokenizeJob(recipe, str(out))
    prepare(job)
    run_job(job, [], workers=1)
    assert len(list((out / UNITS).iterdir())) > 5


def second_worker(folder: Path, text: str) -> float:
    """Build with one worker and with two, as a user does, on enough text for two minutes with one."""
    probe = seconds(lambda: build(folder, 1))
    size = int(JOB_BYTES * max(1.0, 1.1 * BUILD_SECONDS / probe))
    write_lines(folder / "corpus", text, size)
    print(f"# one worker took {probe:.0f} s on {JOB_BYTES:,} bytes; building {size:,}", file=sys.stderr, flush=True)
    return speedup(lambda: build(folder, 2), lambda: build(folder, 1))


def build(folder: Path, workers: int) -> None:
    shutil.rmtree(folder / "out", ignore_errors=True)
    command = [sys.executable, "-m", "worldloom.cli", "build", str(folder / "recipe.yaml")]
    subprocess.run([*command, "--out", str(folder / "out"), "--workers", str(workers)], check=True, capture_output=True)
