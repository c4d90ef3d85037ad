"""Books for a first try without any download: what every CPython carries about its language and its library.

The language reference's topics come from `pydoc_data`, the library's books from the docstrings in its source
files. These are parsed, never imported, for some modules do things when imported.
"""

import ast
import logging
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from ...errors import UserError

# Tests, other people's packages, and folders without prose.
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "encodings"}
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
SHORTEST = 500  # characters: less is no book

log = logging.getLogger(__name__)


def write_corpus(out: str | Path) -> list[Path]:
    """Write the books, one .txt each, to a folder that is made where missing; return their paths, sorted.

    A CPython version gives always the same books, about 2.3 MB. Some Linux distributions leave out the topics:
    that is logged, and the library's books are enough. Raises UserError where these are missing too.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    books = {**topics(), **modules(Path(sysconfig.get_path("stdlib")))}
    if not books:
        raise UserError(
            "This Python carries neither its reference topics nor the sources of its library, of which the "
            "quickstart makes its books: use a complete CPython."
        )
    for name, text in books.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")
    return sorted(folder / f"{name}.txt" for name in books)


def topics() -> dict[str, str]:
    """Return the language reference's topics by name, or none where this Python has been stripped of them."""
    try:
        found = import_module("pydoc_data.topics").topics
    except ImportError:
        log.warning("This Python has no pydoc_data, so the language reference is not among the books.")
        return {}
    return {f"reference-{name}": f"{name}\n\n{text.strip()}\n" for name, text in sorted(found.items())}


def modules(root: Path) -> dict[str, str]:
    """Return the documentation of every module below a folder, by name, where there is enough of it."""
    books = {}
    for path in sources(root):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        book = document(path, name)
        if len(book) >= SHORTEST:
            books[f"library-{name}"] = book
    return books


def sources(folder: Path) -> Iterator[Path]:
    """Yield the Python files below a folder in a fixed order, without walking into what is skipped."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and path.name not in SKIPPED:
            yield from sources(path)
        elif path.suffix == ".py":
            yield path


def document(path: Path, name: str) -> str:
    """Return a module's title and its docstrings in the order of its source, empty where it cannot be parsed."""
    try:
        with tokenize.open(path) as file, warnings.catch_warnings(action="ignore"):
            tree = ast.parse(file.read())
    except (SyntaxError, UnicodeDecodeError):
        return ""
    return "\n\n".join([f"The module {name}", *docstrings(tree)]) + "\n"


def docstrings(node: ast.Module | Definition, owner: str = "") -> Iterator[str]:
    """Yield the docstring of a module, class or function under a heading, then those of what it defines."""
    if text := ast.get_docstring(node):
        yield f"{heading(node, owner)}{text.strip()}"
    below = "" if isinstance(node, ast.Module) else f"{owner}{node.name}."
    for child in node.body:
        if isinstance(child, Definition):
            yield from docstrings(child, below)


def heading(node: ast.Module | Definition, owner: str) -> str:
    """Return a definition's line, as `help()` would show it, and an empty one; nothing for a module."""
    if isinstance(node, ast.Module):
        return ""
    if isinstance(node, ast.ClassDef):
        return f"class {owner}{node.name}\n\n"
    return f"{owner}{node.name}({ast.unparse(node.args)})\n\n"
