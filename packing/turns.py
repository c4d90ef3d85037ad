"""Who says what in a segment, and where in a book the chunk lies that a question is about. Plain data only.

Spans may be a stranger's. Those of a kind that leave the segment, or begin inside another one, tell nothing here.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .example import Span

USER, ASSISTANT = "user", "assistant"
BOOK, CHUNK = "book", "chunk"
T = TypeVar("T")
Place = tuple[int, int]  # tokens `[start, end)`
MOST = 2**63  # what a number in a file may be, at most, to be believed


@dataclass(frozen=True)
class Chunk:
    """A chunk of a book.

    Attributes:
      chunk: its number in the book; None where that is not told.
      place: in the row.
      offsets: in the book's tokens; None where that is not told.
      into: how far into its context it begins, in [0, 1); None outside every context.
      whole: does its context hold all of it, as far as is told?
    """

    chunk: int | None
    place: Place
    offsets: Place | None
    into: float | None
    whole: bool


@dataclass(frozen=True)
class About:
    """Which chunk a turn is about.

    Attributes:
      chunk: its number.
      place, offsets, into: as the chunk's, the last of that number before the answer if there are several; None where
        no span tells it.
      inside: does all of the chunk stand in a context, before the answer?
    """

    chunk: int
    place: Place | None
    offsets: Place | None
    into: float | None
    inside: bool


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
      turn: its number in the segment, from 1.
      role: `user` (a whole prompt) or `assistant` (an answer and its end).
      place: in the row.
      trained: how many of its tokens are trained.
      by: the model that wrote it, where that is told; else empty.
      about: which chunk it is about; None where that is not told.
    """

    turn: int
    role: str
    place: Place
    trained: int
    by: str
    about: About | None


@dataclass(frozen=True)
class Context:
    """A book that stands in a prompt.

    Attributes:
      record: which; empty where that is not told.
      place: in the row.
      chunks: how many begin in it.
    """

    record: str
    place: Place
    chunks: int


class Talk(NamedTuple):
    """What the spans of a segment tell; each list in order, and no two of its places overlap."""

    turns: list[Turn]
    contexts: list[Context]
    chunks: list[Chunk]

    def edges(self) -> list[int]:
        """Return the places in the row where a turn, a context or a chunk begins or ends."""
        places = [item.place for items in (self.turns, self.contexts, self.chunks) for item in items]
        return sorted({edge for place in places for edge in place})


def talk(spans: Sequence[Span], trained: np.ndarray, low: int) -> Talk:
    """Find the turns of a segment, the books in them and their chunks, in about linear time.

    Args:
      trained: is a token of the segment trained? bool `[n]`.
      low: the segment's place in the row.
    """
    length, sums = len(trained), np.concatenate(([0], np.cumsum(trained)))
    books = apart(spans, (BOOK,), length)
    chunks = [_chunk(span, books, low) for span in apart(spans, (CHUNK,), length)]
    starts, numbered = [chunk.place[0] for chunk in chunks], _numbered(chunks)
    said = apart(spans, (USER, ASSISTANT), length)
    return Talk(
        [_turn(number, span, sums, numbered, low) for number, span in enumerate(said, 1)],
        [_context(span, starts, low) for span in books],
        chunks,
    )


def apart(spans: Iterable[Span], kinds: tuple[str, ...], length: int) -> list[Span]:
    """Choose the spans of some kinds inside `[0, length)`, in order; none that begins in one that was chosen."""
    chosen, end = [], 0
    for span in sorted((s for s in spans if s.kind in kinds), key=lambda s: (s.start, -s.end)):
        if end <= span.start < span.end <= length:
            chosen.append(span)
            end = span.end
    return chosen


def _place(span: Span, low: int) -> Place:
    return low + span.start, low + span.end


def _context(span: Span, starts: list[int], low: int) -> Context:
    place = _place(span, low)
    chunks = bisect_left(starts, place[1]) - bisect_left(starts, place[0])
    return Context(_string(facts(span.ref).get("record")), place, chunks)


def _chunk(span: Span, books: list[Span], low: int) -> Chunk:
    ref = facts(span.ref)
    at = bisect_right(books, span.start, key=lambda book: book.start) - 1
    book = books[at] if at >= 0 and span.start < books[at].end else None
    into = (span.start - book.start) / (book.end - book.start) if book else None
    start, end = _count(ref.get("start")), _count(ref.get("end"))
    offsets = (start, end) if start is not None and end is not None and start < end else None
    size = offsets[1] - offsets[0] if offsets else span.end - span.start
    whole = book is not None and span.end <= book.end and span.end - span.start == size
    return Chunk(_count(ref.get("chunk")), _place(span, low), offsets, into, whole)


def _numbered(chunks: list[Chunk]) -> dict[int, list[Chunk]]:
    """List the chunks of each number, in order."""
    numbered: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        if chunk.chunk is not None:
            numbered.setdefault(chunk.chunk, []).append(chunk)
    return numbered


def _turn(number: int, span: Span, sums: np.ndarray, numbered: dict[int, list[Chunk]], low: int) -> Turn:
    ref, trained = facts(span.ref), int(sums[span.end] - sums[span.start])
    about = _about(ref, numbered, low + (span.end if span.kind == USER else span.start))
    return Turn(number, span.kind, _place(span, low), trained, _string(ref.get("model")), about)


def _about(ref: dict[str, Any], numbered: dict[int, list[Chunk]], answer: int) -> About | None:
    """Find the chunk that a ref names; `answer` is the place where the answer begins."""
    number = _count(ref.get("chunk"))
    if number is None:
        return None
    named = numbered.get(number)
    if not named:
        return About(number, None, None, None, False)
    before = bisect_right(named, answer, key=lambda chunk: chunk.place[1])
    chunk = named[max(0, before - 1)]
    return About(number, chunk.place, chunk.offsets, chunk.into, before > 0 and chunk.whole)


def facts(ref: str) -> dict[str, Any]:
    """Read a span's ref; what is no JSON object says nothing."""
    try:
        found = json.loads(ref)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < MOST else None


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def holder(items: Sequence[dict[str, Any]], place: int) -> dict[str, Any] | None:
    """Return the item that holds a place of the row, of a segment's turns, contexts or chunks in `row_detail`."""
    at = bisect_right(items, place, key=lambda item: int(item["place"][0])) - 1
    return items[at] if at >= 0 and place < items[at]["place"][1] else None


def begin(item: dict[str, Any] | None) -> int:
    """Return the place where an item begins, or -1 for none."""
    return int(item["place"][0]) if item else -1


def by_turn(
    segment: dict[str, Any], items: Iterable[T], start: Callable[[T], int]
) -> Iterator[tuple[dict[str, Any] | None, list[T]]]:
    """Group what stands in a segment of `row_detail` by its turns: yields each turn, or None between them, in order.

    Args:
      start: the place in the row where an item begins, ascending.
    """
    turns = segment["turns"]
    for _, group in groupby(items, key=lambda item: begin(holder(turns, start(item)))):
        inner = list(group)
        yield holder(turns, start(inner[0])), inner
