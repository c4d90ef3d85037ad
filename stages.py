"""`worldloom stages`: train a ladder of stages, each with another's weights, and build their data before."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .errors import RunFailed
from .packing.manifest import MANIFEST, read_manifest
from .packing.storage import Folder
from .recipe import load_recipe
from .training.config import Config
from .training.stages import Rung, check_beginnings, choose, open_ladder

Command = Callable[[list[str]], int]


def run_stages(options: argparse.Namespace, console: Console, command: Command, train: Callable[[Config], Any]) -> None:
    """Run the stages of a file in order, passing over what is finished, or list them, or build their data alone.

    Args:
      options: of the command line, see `worldloom stages --help`.
      command: runs one `worldloom` command and returns its exit code.
      train: trains by one config, going on where its run stopped.

    Raises:
      UserError: the file or a config is not as it must be, or a stage's parent is not trained.
      RunFailed: a build or a training failed.
    """
    ladder = open_ladder(options.stages, options.out, options.set, options.init)
    chosen = choose(ladder, options.only, options.first)
    flags = ["--workers", str(options.workers), *(["--", *options.beam] if options.beam else [])]

    def build(recipe: str) -> None:
        arguments = ["build", recipe, "--out", data_folder(recipe, options.out), *flags]
        console.print(f"$ worldloom {' '.join(arguments)}", style="bold", soft_wrap=True, markup=False)
        if code := command(arguments):
            raise RunFailed(f"stages: 'worldloom {' '.join(arguments)}' ended with {code}: see above")

    if options.list:
        console.print(draw(chosen))
    elif options.build:
        for recipe in dict.fromkeys(recipe for rung in chosen for recipe in rung.stage.recipe):
            build(recipe)
    else:
        check_beginnings(chosen, ladder)
        for rung in chosen:
            console.rule(heading(rung))
            if not rung.finished:
                climb(rung, options.out, build, train, console)


def climb(rung: Rung, out: str, build: Callable[[str], None], train: Callable[[Config], Any], console: Console) -> None:
    """Build the data that a stage lacks, and train it. The machine that trains need not reach the sources."""
    for recipe in rung.stage.recipe:
        if lacks_data(rung.config, folder := data_folder(recipe, out)):
            build(recipe)
        else:
            console.print(f"{folder} is complete and taken as it is; --build brings it up to date", soft_wrap=True)
    train(rung.config)


def data_folder(recipe: str, out: str) -> str:
    """Say where the data of a recipe are built."""
    return str(Path(out).resolve() / "data" / Path(recipe).stem)


def lacks_data(config: Config, folder: str) -> bool:
    """Does a config name data in a folder that are not, or not yet, complete there?"""
    paths = [*config.source.shares] + ([config.evaluation.path] if config.evaluation else [])
    return any(not Folder(path).exists(MANIFEST) for path in paths if Path(path).is_relative_to(folder))


def heading(rung: Rung) -> str:
    """Say which stage it is, and where it stands."""
    return f"{rung.stage.name}, from {beginning(rung)}: {rung.done:,} of {rung.config.steps:,} steps done"


def beginning(rung: Rung) -> str:
    """Name what a stage begins as: its parent, other weights, or new ones."""
    return Path(rung.config.init).name if rung.config.init else "new"


def draw(rungs: Sequence[Rung]) -> Table:
    """Draw stages as a table, tokens counted over all steps and with padding."""
    table = Table("stage", "from", "length", "theta", "steps", "rows", "tokens", "mesh", box=None, padding=(0, 1, 0, 0))
    for column in table.columns[2:]:
        column.justify = "right"
    for rung in rungs:
        config, length, done = rung.config, length_of(rung), rung.done
        theta, mesh = f"{config.model.theta:.3g}".replace("e+0", "e"), ",".join(str(size) for _, size in config.mesh)
        steps, told = f"{done:,}/{config.steps:,}" if done else f"{config.steps:,}", f"{length:,}" if length else "?"
        tokens = rounded(length * config.rows * config.steps) if length else "?"
        table.add_row(rung.stage.name, beginning(rung), told, theta, steps, f"{config.rows:,}", tokens, mesh)
    return table


def rounded(number: int) -> str:
    """Write a number of tokens: 900, 1.3M, 5.0B."""
    unit, sign = (1e9, "B") if number >= 1e9 else (1e6, "M")
    return f"{number / unit:,.1f}{sign}" if number >= 1e6 else f"{number:,}"


def length_of(rung: Rung) -> int | None:
    """Find the tokens of a stage's sequences: in its data, or in the recipes that they are to be built from."""
    for path in rung.config.source.shares:
        if (folder := Folder(path)).exists(MANIFEST):
            return int(read_manifest(folder)["length"])
    lengths = {
        f"{Path(recipe).stem}/packed-{section.name}": section.length
        for recipe in rung.stage.recipe
        for section in load_recipe(recipe).pack
    }
    ends = ("/".join(Path(path).parts[-2:]) for path in rung.config.source.shares)
    return next((lengths[end] for end in ends if end in lengths), None)
