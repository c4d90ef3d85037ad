"""The table of allowed imports (design §2), and what importing worldloom must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("tokenizers", "packing", "pipelines", "training")
LEAVES = {
    "",
    "errors",
    "schema",
    "recipe",
    "sources",
}  # small root modules that say what a user's file may hold; "" is the version
ALLOWED = {
    "tokenizers": {"tokenizers", "errors"},
    "packing": {"packing", "tokenizers", "errors"},
    "pipelines": {"pipelines", "packing", "tokenizers"} | LEAVES,
    "training": {"training", "packing", "tokenizers", "errors", "schema", ""},
    "errors": set(),
    "schema": {"errors"},
    "recipe": {"schema", "sources", "packing", "errors"},
    "sources": {"schema"},
}
HEAVY = {  # engines, and the files that may import them
    "apache_beam": {"pipelines/beam_jobs.py", "pipelines/launched.py"},
    "jax": {"training"},
    "optax": {"training"},
    "orbax": {"training"},
    "torch": {"training/torch_dataset.py", "tokenizers/vqgan.py"},
    "diffusers": {"tokenizers/vqgan.py"},
    "aiohttp": {"pipelines/fetching/fetch.py", "pipelines/fetching/exchange.py"},
    "openai": {"pipelines/asking/server.py"},
    "httpx2": {"pipelines/asking/server.py"},
    "scipy": set(),
    "numba": set(),
}


def files() -> list[Path]:
    found = [p for room in ROOMS for p in (ROOT / room).rglob("*.py")]
    return sorted([*found, *ROOT.glob("*.py")])


def owner(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path: Path) -> list[tuple[str, str]]:
    """Return what a file imports: our rooms as ("worldloom", room), others as (package, "")."""
    depth = len(path.relative_to(ROOT).parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(name.name.split(".")[0], "") for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(((node.module or "").split(".")[0], ""))
        elif isinstance(node, ast.ImportFrom):
            inside = node.level < depth
            module = (node.module or "").split(".")[0]
            found.append(("worldloom", owner(path) if inside else module))
    return found


def tokenizer_modules(path: Path) -> list[str]:
    """Name the modules of `tokenizers` that a file imports: packing and training may know the vocabulary alone."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.module]
    return [n.module.split(".")[1] for n in nodes if n.level and n.module.startswith("tokenizers.")]


def violations(path: Path) -> list[str]:
    name, place = owner(path), str(path.relative_to(ROOT))
    allowed, wrong = ALLOWED.get(name), []
    for package, room in imported(path):
        if package == "worldloom" and room == "tokenizers" and name in ("packing", "training"):
            wrong += [f"{place} imports tokenizers.{m}" for m in tokenizer_modules(path) if m != "vocabulary"]
        if package == "worldloom" and allowed is not None and room not in allowed:
            wrong.append(f"{place} imports {room or 'the root'}")
        if package in HEAVY and not any(place == spot or name == spot for spot in HEAVY[package]):
            wrong.append(f"{place} imports {package}")
    return wrong


def test_imports_follow_the_table():
    assert len(files()) > 30
    assert [v for path in files() for v in violations(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "from ..tokenizers.text import load",
        "from ..pipelines.build import build",
        "import jax",
        "from ..training.loader import Loader",
        "import torch",
    ],
)
def test_the_table_can_be_broken(line, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "packing").mkdir()
    (tmp_path / "packing" / "bad.py").write_text(line)
    assert violations(tmp_path / "packing" / "bad.py")


def test_annotations_are_real_where_beam_checks_them():
    assert [p for p in files() if "from __future__ import annotations" in p.read_text()] == []


def test_tokenizers_is_no_package_of_its_own():
    """With an __init__.py, running from the repository would hide Hugging Face's package of the same name."""
    assert not (ROOT / "tokenizers" / "__init__.py").exists()
    code = "import tokenizers, worldloom.tokenizers.text as ours; assert tokenizers.Tokenizer and ours.load"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "module",
    ["worldloom", "worldloom.packing.dataset", "worldloom.training.loader", "worldloom.cli", "worldloom.recipe"],
)
def test_light_modules_load_no_engine(module):
    code = f"import sys, {module}; print(*({set(HEAVY)!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
