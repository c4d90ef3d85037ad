"""What was asked, what came back and how much of it is right: as numbers in JSON and as a heat map."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from .chart import Axis, draw

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """Tell how one question was answered.

    Attributes:
      column, row: the cell of the chart: a length and a depth, or a number of clips and a depth.
      number: which one of this cell.
      prompt: digest of what the model saw, 32 hexadecimal digits.
      expected: the answers, of which there are many where many things are asked for.
      right: which of them the reply gives.
      true_row: where it truly lay, for a row that is only nearly kept, as a needle's depth: percent.
    """

    column: int
    row: int
    number: int
    prompt: str
    expected: tuple[str, ...]
    reply: str
    right: tuple[bool, ...]
    true_row: float | None = None


def digest(prompt: np.ndarray | Sequence[int] | str) -> str:
    """Name a prompt's ids, taken as little-endian int32, or its text."""
    data = prompt.encode(errors="replace") if isinstance(prompt, str) else np.asarray(prompt, "<i4").tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def grouped(items: Iterable[T], most: int) -> Iterator[list[T]]:
    """Cut a stream into lists of at most so many."""
    stream = iter(items)
    while group := list(islice(stream, most)):
        yield group


def cells(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Sum up each cell: `right` is the share of what was asked for, `all` that of the trials with nothing wrong."""
    found = defaultdict(list)
    for outcome in outcomes:
        found[outcome.column, outcome.row].append(outcome.right)
    return [
        {"column": c, "row": r, "trials": len(all_), "right": fmean(map(fmean, all_)), "all": fmean(map(all, all_))}
        for (c, r), all_ in sorted(found.items())
    ]


def write(
    folder: Path, name: str, title: str, columns: Axis, rows: Axis, outcomes: Sequence[Outcome], about: dict[str, Any]
) -> float:
    """Write NAME.json and NAME.png to a folder; return the share of what was asked for that is right.

    Args:
      about: what a reader of the numbers should know: model, seed and so on.
    """
    summed = cells(outcomes)
    right = fmean(fmean(o.right) for o in outcomes)
    told = {
        **about,
        "column": columns.name,
        "row": rows.name,
        "right": right,
        "cells": summed,
        "trials": [asdict(o) for o in outcomes],
    }
    write_json(folder, name, told)
    draw(
        folder / f"{name}.png", title, columns, rows, {(cell["column"], cell["row"]): cell["right"] for cell in summed}
    )
    return right


def write_json(folder: Path, name: str, told: Any) -> None:
    """Write NAME.json to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
