"""What a unit read: noted beside its rejects, so that a retry can tell what has changed since."""

import json
from typing import Any, NamedTuple

from .units import digest

MARK = 16  # hexadecimal digits


class Input(NamedTuple):
    """A part as it was when it was read.

    Attributes:
      facts: what the unit's key says of it.
      records: how many were read.
      marks: what tells the files that each record names from others of their names; empty where none are named.
    """

    facts: list[Any]
    records: int
    marks: list[str]


def marked(versions: Any) -> str:
    """Digest what a file system tells of the files that one record names."""
    return digest(versions)[:MARK]


def written(inputs: list[Input]) -> str:
    """Write down what was read."""
    return json.dumps(inputs, separators=(",", ":"))


def told(text: str) -> list[Input]:
    """Read what `written` wrote; an empty list from anything else."""
    try:
        return [Input(list(facts), int(records), list(marks)) for facts, records, marks in json.loads(text)]
    except (ValueError, TypeError):
        return []
