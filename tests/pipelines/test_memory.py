"""Ten times the data, the same memory: a build holds units in flight, never the data set."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

UNIT = 200_000  # bytes of a work unit


def write_corpus(folder: Path, units: int) -> None:
    folder.mkdir()
    draw = random.Random(5)
    words = [f"word{i}" for i in range(3000)]
    for i in range(units):
        lines = []
        size = 0
        while size < UNIT * 0.97:
            lines.append(json.dumps({"text": " ".join(draw.choices(words, k=40)) + f" {i} {len(lines)}"}))
            size += len(lines[-1])
        (folder / f"{i:04d}.jsonl").write_text("\n".join(lines))


def anonymous_bytes(pid: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def family(pid: int) -> list[str]:
    """List a process and its children."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [c for t in threads for c in (t / "children").read_text().split()]
    except OSError:
        return [str(pid)]
    return [str(pid), *children]


def peaks(command: list[str]) -> tuple[int, int]:
    """Run a command. Returns the most anonymous memory of it, and of any of its children, in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    own = children = 0
    while process.poll() is None:
        first, *others = family(process.pid)
        own = max(own, anonymous_bytes(first))
        children = max([children, *map(anonymous_bytes, others)])
        time.sleep(0.01)
    assert process.returncode == 0
    return own, children


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="SKIPPED: no /proc to read RssAnon from")
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_times_the_data_take_the_same_memory(tmp_path, small_model, workers):
    found = []
    for name, units in (("warm", 8), ("once", 8), ("ten", 80)):
        write_corpus(tmp_path / name, units)
        source = {"name": "toy", "kind": "books", "path": f"{name}/*.jsonl", "unit_bytes": UNIT}
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(json.dumps({"vocabulary": {"text": str(small_model)}, "sources": [source]}))
        out = str(tmp_path / f"{name}-out")
        command = [sys.executable, "-m", "worldloom.cli", "build", str(recipe), "--out", out]
        found.append(peaks([*command, "--workers", str(workers)]))
    _, once, ten = found
    for small, large in zip(once, ten, strict=True):
        assert large <= 1.1 * small, f"{small:,} bytes became {large:,}"
    assert ten[0] > 10**7 and (workers == 1 or ten[1] > 10**7)
