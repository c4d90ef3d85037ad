"""`worldloom inspect`: joins what a data set holds with the text model that decodes it."""

import argparse
import json
from collections.abc import Callable
from typing import Any

import yaml
from rich.console import Console, Group

from .errors import UserError
from .packing.dataset import Dataset, open_dataset
from .packing.inspect import find_record, row_detail, sample_rows, summarise
from .packing.render import render_row, render_summary, visible
from .packing.storage import Folder
from .packing.verify import data_sets
from .packing.weights import Rule
from .tokenizers.text import load

Decode = Callable[[list[int]], str]
RECIPE = "recipe.yaml"  # what a build writes into its folder


def inspect(options: argparse.Namespace, console: Console) -> int:
    """Show what the command line asks for. Returns the exit code: 1 where a record is nowhere."""
    if options.record is not None:
        return show_record(options, console)
    if options.row is None and options.sample is None:
        show_summaries(options, console)
    else:
        show_rows(options, console)
    return 0


def show_summaries(options: argparse.Namespace, console: Console) -> None:
    """Print a summary of a data set, or of each one of a build."""
    urls = [str(Folder(options.data).sub(name).url) if name else options.data for name in data_sets(options.data)]
    summaries = {url: summarise(url, options.task, options.source) for url in urls}
    if options.json:
        _print_json(console, {url: s.to_json() for url, s in summaries.items()})
        return
    for url, summary in summaries.items():
        console.rule(visible(url))
        console.print(render_summary(summary))


def show_rows(options: argparse.Namespace, console: Console) -> None:
    """Print one row, or some that chance chooses, always the same.

    Raises:
      UserError: if the folder is no single data set, or has no such row.
    """
    dataset = open_dataset(options.data)
    rows = [options.row] if options.row is not None else []
    if options.sample is not None:
        rows += sample_rows(dataset, options.sample, task=options.task, source=options.source)
    if not all(0 <= row < dataset.rows for row in rows):
        raise UserError(f"{options.data} has no row {options.row}: its {dataset.rows:,} rows begin at 0")
    rule = Rule(options.weights) if options.weights else None
    decode = decoder(dataset, options.tokenizer)
    details = [row_detail(dataset, row, rule, decode) for row in rows]
    if options.json:
        _print_json(console, details)
    else:
        console.print(Group(*(render_row(detail, options.full) for detail in details)))


def show_record(options: argparse.Namespace, console: Console) -> int:
    """Print where a record went: its rows, or why it has none."""
    found = find_record(options.data, options.record)
    if options.json:
        _print_json(console, found)
    elif not found:
        console.print(f"no row and no reject is called {visible(options.record)}", markup=False, soft_wrap=True)
    else:
        for hit in found:
            facts = ", ".join(f"{name} {visible(str(value))}" for name, value in hit.items() if value not in ("", None))
            console.print(facts, markup=False, soft_wrap=True)
    return int(not found)


def decoder(dataset: Dataset, path: str | None) -> Decode | None:
    """Load the text model that a data set was made with: the one named, else the one that its build's recipe names.

    Returns:
      None where no recipe lies beside the data set, or its model is gone: ids are shown instead.

    Raises:
      UserError: if the model named is another one.
    """
    named = path or _recipe_model(dataset.folder)
    if named is None:
        return None
    try:
        tokenizer = load(named)
    except UserError:
        if path:
            raise
        return None
    if tokenizer.digest != dataset.vocabulary.text_digest:
        raise UserError(
            f"{named} is not the text model that {dataset.folder.url} was made with: name it by --tokenizer"
        )
    return lambda ids: tokenizer.decode(ids)


def _recipe_model(folder: Folder) -> str | None:
    for place in (folder, Folder(folder.url.rstrip("/").rpartition("/")[0] or ".")):
        if data := place.read(RECIPE):
            return str(yaml.safe_load(data)["vocabulary"]["text"])
    return None


def _print_json(console: Console, data: Any) -> None:
    console.print(json.dumps(data, indent=1), markup=False, highlight=False, soft_wrap=True)
