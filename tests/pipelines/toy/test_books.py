"""The quickstart's books: enough prose, always the same, and nothing imported to get it."""

import logging
import sys
from pathlib import Path

import pytest
from worldloom.errors import UserError
from worldloom.pipelines.toy import books as subject
from worldloom.pipelines.toy.books import document, modules, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_there_is_enough_and_of_all_lengths(corpus: list[Path]) -> None:
    sizes = [path.stat().st_size for path in corpus]
    assert 1_500_000 < sum(sizes) < 8_000_000
    assert len(sizes) > 250 and max(sizes) > 50_000 and sorted(sizes)[len(sizes) // 2] < 10_000


def test_it_is_readable_prose(corpus: list[Path]) -> None:
    for path in corpus:
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n") and "\x00" not in text and "\r" not in text
    text = "".join(path.read_text(encoding="utf-8") for path in corpus)
    letters = sum(character.isalpha() or character == " " for character in text)
    assert letters / len(text) > 0.8
    assert text.count(" the ") / len(text) > 1 / 400


def test_what_the_books_are(corpus: list[Path]) -> None:
    names = {path.stem for path in corpus}
    assert {"library-argparse", "library-asyncio.tasks", "library-logging"} <= names
    assert not any(".tests." in name or "idlelib" in name or "site-packages" in name for name in names)
    argparse = next(path for path in corpus if path.stem == "library-argparse").read_text()
    assert argparse.startswith("The module argparse\n\nCommand-line parsing library\n")
    if "pydoc_data" in sys.stdlib_module_names and any(name.startswith("reference-") for name in names):
        assert {"reference-assert", "reference-specialnames"} <= names


def test_two_runs_write_the_same(corpus: list[Path], tmp_path: Path) -> None:
    again = write_corpus(tmp_path / "new" / "folder")
    assert [path.name for path in again] == [path.name for path in corpus]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in corpus]


def test_a_module_in_full(tmp_path: Path) -> None:
    source = tmp_path / "loom.py"
    source.write_text(
        'raise SystemExit("imported")\n'.join(["", '"""Weave."""\n'][::-1])
        + 'def warp(a, *, b=1):\n    """Stretch."""\n'
        + 'class Loom:\n    """Hold."""\n    async def weft(self):\n        """Cross."""\n    def mute(self): pass\n'
    )
    assert document(source, "loom") == (
        "The module loom\n\nWeave.\n\nwarp(a, *, b=1)\n\nStretch.\n\nclass Loom\n\nHold.\n\nLoom.weft(self)\n\nCross.\n"
    )


def test_what_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SHORTEST", 30)
    for name in ("kept/__init__", "kept/part", "kept/tests/case", "site-packages/other", "short", "broken"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            '"""Long enough a docstring."""' if name not in ("short", "broken") else "x = (" * (name == "broken")
        )
    assert list(modules(tmp_path)) == ["library-kept", "library-kept.part"]


def test_a_python_without_topics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setattr(subject, "modules", lambda root: {"library-x": "text\n"})
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in write_corpus(tmp_path)] == ["library-x.txt"]
    assert "no pydoc_data" in caplog.text


def test_a_python_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setattr(subject.sysconfig, "get_path", lambda name: str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="complete CPython"):
        write_corpus(tmp_path / "out")
