"""Work units: named ranges of one source, each of which becomes exactly one shard."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


class Part(NamedTuple):
    """A range of one file.

    `start` and `end` are bytes of a JSON, JSONL, CSV or TSV file, row groups of a parquet file of books and rows of one
    of media or chats, rows of a Hugging Face dataset; `end` -1 is the file's end. `size` and `version` are the file's;
    the version of a picture or clip takes in that of the caption beside it.
    """

    id: str
    url: str
    start: int
    end: int
    size: int
    version: str


@dataclass(frozen=True)
class Unit:
    """A run of parts that one worker reads.

    Attributes:
      name: of its report and shard.
      source: name of the source, or of the packed data set.
      parts: what it reads, in order.
      key: digest of all that its rows depend on.
    """

    name: str
    source: str
    parts: tuple[Part, ...]
    key: str


def group(parts: Iterable[tuple[Part, int]], unit_bytes: int, most: int = 4096) -> Iterator[tuple[Part, ...]]:
    """Gather parts, each with its bytes, into runs of about `unit_bytes`, and of `most` parts at the most."""
    run: list[Part] = []
    held = 0
    for part, size in parts:
        if run and (held + size > unit_bytes or len(run) == most):
            yield tuple(run)
            run, held = [], 0
        run.append(part)
        held += size
    if run:
        yield tuple(run)


def digest(*facts: Any) -> str:
    """Digest plain data: 32 hexadecimal digits that do not depend on the order of keys."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fraction(*facts: Any) -> float:
    """Draw a number in [0, 1) that depends on nothing but the facts."""
    return int(digest(*facts)[:13], 16) / 16**13
