"""Ten times the data, the same memory: a build holds units in flight, never the data set."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = 150_000  # bytes of a work unit
KEPT = 1.03  # of what was enough for a tenth of the data: less than the tenfold text itself would take
SLICED = 1.08  # of the same where duplicates are found, a slice of them after another


def write_corpus(folder: Path, units: int, words: int) -> None:
    folder.mkdir()
    draw = random.Random(5)
    vocabulary = [f"word{i}" for i in range(3000)]
    for i in range(units):
        lines: list[str] = []
        size = 0
        while size < UNIT * 0.97:
            lines.append(json.dumps({"text": " ".join(draw.choices(vocabulary, k=words)) + f" {i} {len(lines)}"}))
            size += len(lines[-1])
        (folder / f"{i:04d}.jsonl").write_text("\n".join(lines))


def peaks(command: list[str], notes: Path) -> tuple[int, int]:
    """Run a command. Returns the most anonymous memory of it, and of any of its children, in bytes."""
    notes.mkdir()
    path = [str(Path(__file__).with_name("measured")), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"WORLDLOOM_TEST_MEMORY": str(notes), "PYTHONPATH": os.pathsep.join(filter(None, path))}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            assert process.wait(300) == 0
        finally:
            process.kill()
    found = {path.name: int(path.read_text()) for path in notes.iterdir()}
    own = [size for name, size in found.items() if name.endswith(f"-{process.pid}")]
    return max(own), max([0, *(size for name, size in found.items() if name.startswith(f"{process.pid}-"))])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="SKIPPED: no /proc to read RssAnon from")
@pytest.mark.parametrize(
    ("workers", "duplicates", "words", "most"),
    [(1, "none", 100, KEPT), (2, "exact", 12, SLICED)],  # of 12 words a line a tenth fills a slice of duplicates
)
def test_ten_times_the_data_take_the_same_memory(tmp_path, small_model, workers, duplicates, words, most):
    found = []
    for name, number in (("once", 8), ("ten", 80)):
        write_corpus(tmp_path / name, number, words)
        source = {"name": "toy", "kind": "books", "path": f"{name}/*.jsonl", "unit_bytes": UNIT}
        recipe = tmp_path / f"{name}.yaml"
        about = {"vocabulary": {"text": str(small_model)}, "sources": [source], "duplicates": duplicates}
        recipe.write_text(json.dumps(about))
        command = [sys.executable, "-m", "worldloom.cli", "build", str(recipe), "--out", str(tmp_path / f"{name}-out")]
        found.append(peaks([*command, "--workers", str(workers)], tmp_path / f"{name}-notes"))
    (own, children), (own_of_ten, children_of_ten) = found
    assert own_of_ten <= most * own, f"{own:,} bytes became {own_of_ten:,}"
    assert children_of_ten <= KEPT * children, f"{children:,} bytes of a worker became {children_of_ten:,}"
    assert own > 10**7 and (workers == 1 or children > 10**7)
