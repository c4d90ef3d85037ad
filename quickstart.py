"""The quickstart: from nothing to packed sequences that can be looked at and a model that learned from them."""

import shutil
from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

from rich.console import Console

from .errors import RunFailed

RECIPE, VISION, CONFIG = "quickstart.yaml", "quickstart-vision.yaml", "quickstart-train.yaml"
IMAGES, CLIPS, CODES = 120, 16, 256  # of the toy world
PIECES = 1024  # of the text model, trained in seconds on the corpus itself
FALL = 0.8  # the loss must fall below this fraction of where it began

Command = Callable[[list[str]], int]


def quickstart(out: str, console: Console, command: Command) -> None:
    """Write the corpus and its text model, then build, verify, inspect and train, as a user would.

    Args:
      command: runs one `worldloom` command and returns its exit code.

    Raises:
      RunFailed: if a command fails, or the loss has not clearly fallen.
    """
    folder = Path(out).resolve()
    data, packed = str(folder / "data"), str(folder / "data" / "packed-256")

    def call(*arguments: str) -> None:
        console.print(f"$ worldloom {' '.join(arguments)}", style="bold", soft_wrap=True)
        if code := command(list(arguments)):
            raise RunFailed(f"quickstart: 'worldloom {' '.join(arguments)}' ended with {code}: see above")

    console.rule("1  books: the documentation that Python carries, and a tokenizer trained on it")
    write_inputs(folder, call)
    console.rule("2  build: tokenize once, drop duplicates, pack at two lengths, check every byte")
    call("build", str(folder / RECIPE), "--out", data)
    call("verify", data)
    console.rule("3  inspect: what a packed sequence holds")
    call("inspect", packed)
    call("inspect", packed, "--sample", "1")
    console.rule("4  images and clips: a toy world, a codebook made of it, and the codes drawn again")
    if missing := [name for name in ("PIL", "av", "simplejpeg", "aiohttp") if find_spec(name) is None]:
        console.print(f"skipped for lack of {', '.join(missing)}: pip install 'worldloom[vision]'", markup=False)
    else:
        show_pictures(folder, call)
    console.rule("5  train: a small model, until its loss has clearly fallen")
    call("train", str(folder / CONFIG))
    check_loss(folder / "run" / "metrics.jsonl")
    console.print(f"next: change {folder / RECIPE} and call the commands above again", soft_wrap=True)


def write_inputs(folder: Path, call: Callable[..., None]) -> None:
    """Write what the recipe reads, unless it is there: books, text model, recipe and training config."""
    from .pipelines.toy.books import write_corpus

    folder.mkdir(parents=True, exist_ok=True)
    for name in (RECIPE, VISION, CONFIG):
        if not (folder / name).exists():
            shutil.copyfile(str(files("worldloom") / "recipes" / name), folder / name)
    if not (folder / "tokenizer.model").exists():
        write_corpus(folder / "corpus")
        model = str(folder / "tokenizer.model")
        call("train-tokenizer", str(folder / "corpus"), "--out", model, "--size", str(PIECES))


def show_pictures(folder: Path, call: Callable[..., None]) -> None:
    """Make toy images and clips, a codebook of them, and packed sequences; draw the first."""
    from .pipelines.toy.files import write_clips, write_images

    world, codebook, data = folder / "toy-world", folder / "codebook.npz", str(folder / "data-vision")
    if not codebook.exists():
        write_images(world / "images", IMAGES, seed=0)
        write_clips(world / "clips", CLIPS, seed=0)
        pictures = [str(world / "images"), str(world / "clips")]
        call("train-codebook", *pictures, "--out", str(codebook), "--codes", str(CODES))
    call("build", str(folder / VISION), "--out", data)
    call("verify", data)
    drawn = ["--html", str(folder / "row.html"), "--sheet", str(folder / "row.png")]
    call("inspect", f"{data}/packed-clips-8k", "--row", "0", *drawn)


def check_loss(diary: Path) -> None:
    """Compare the mean loss of the last tenth of the steps with that of the first.

    Raises:
      RunFailed: if it has not clearly fallen.
    """
    from .training.metrics import read

    losses = [line["loss"] for line in read(diary) if "loss" in line]
    tenth = max(1, len(losses) // 10)
    first, last = fmean(losses[:tenth]), fmean(losses[-tenth:])
    if last > FALL * first:
        raise RunFailed(
            f"quickstart: the loss went from {first:.3f} to {last:.3f}; it should fall below {FALL:g} of it"
        )
