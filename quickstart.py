"""The quickstart: from nothing to packed sequences that can be looked at and a model that learned from them."""

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from rich.console import Console

RECIPE, CONFIG = "quickstart.yaml", "quickstart-train.yaml"
PIECES = 1024  # of the text model, trained in seconds on the corpus itself
FALL = 0.8  # the loss must fall below this fraction of where it began


def quickstart(out: str, console: Console) -> int:
    """Write the corpus and its text model, then build, verify, inspect and train. Returns the exit code."""
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_inputs(folder, console)
    data = build(folder, console)
    inspect(data, folder, console)
    return train(folder, console)


def write_inputs(folder: Path, console: Console) -> None:
    """Write what the recipe reads, unless it is there: books, text model, recipe and training config."""
    from .pipelines.books import texts
    from .pipelines.quickstart_corpus import write_corpus
    from .tokenizers.train import train

    console.rule("1  books: the documentation that Python carries, and a tokenizer trained on it")
    for name in (RECIPE, CONFIG):
        if not (folder / name).exists():
            shutil.copyfile(str(files("worldloom") / "recipes" / name), folder / name)
    if not (folder / "tokenizer.model").exists():
        books = write_corpus(folder / "corpus")
        train(texts([str(folder / "corpus")]), str(folder / "tokenizer.model"), PIECES)
        console.print(f"{len(books)} books, {sum(b.stat().st_size for b in books):,} bytes, {PIECES:,} pieces")


def build(folder: Path, console: Console) -> Path:
    """Build the recipe and check every byte of the result. Returns its folder."""
    from .cli import main

    console.rule("2  build: tokenize once, drop duplicates, pack at two lengths")
    data = folder / "data"
    for command in (["build", str(folder / RECIPE), "--out", str(data)], ["verify", str(data)]):
        console.print(f"$ worldloom {' '.join(command)}", style="bold", soft_wrap=True)
        if code := main(command):
            sys.exit(code)
    return data


def inspect(data: Path, folder: Path, console: Console) -> None:
    """Show what was built: a summary, and one sequence with its segments and trained tokens."""
    from .cli import main

    console.rule("3  inspect: what a packed sequence holds")
    for command in (["inspect", str(data / "packed-256")], ["inspect", str(data / "packed-256"), "--sample", "1"]):
        console.print(f"$ worldloom {' '.join(command)}", style="bold", soft_wrap=True)
        main(command)


def train(folder: Path, console: Console) -> int:
    """Train a small model. Returns 1 if its loss has not clearly fallen."""
    from .cli import train_with_bar
    from .training.config import load

    console.rule("4  train: a small model, until its loss has clearly fallen")
    console.print(f"$ worldloom train {folder / CONFIG}", style="bold", soft_wrap=True)
    summary = train_with_bar(load(folder / CONFIG))
    console.print(f"loss {summary.first_loss:.3f} -> {summary.last_loss:.3f}, held out {summary.held_out_loss:.3f}")
    console.print(f"the curve: {summary.curve}", soft_wrap=True)
    console.print(f"next: edit {folder / RECIPE} and call the commands above again", soft_wrap=True)
    return int(summary.last_loss > FALL * summary.first_loss)
