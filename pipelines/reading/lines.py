"""Lines of a file in ranges of bytes that share none and miss none, and the CSV records that they make."""

import sys
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 2**20
BOM = b"\xef\xbb\xbf"
PLAIN, QUOTED, BROKEN = "plain", "quoted", "broken"  # what a line of CSV leaves behind


class Line(NamedTuple):
    """A line with its end, or a record of several.

    Attributes:
      offset: of its first byte in the file.
      whole: False where it goes on beyond what may be read of it.
    """

    offset: int
    data: bytes
    whole: bool = True


def read_lines(file: BinaryIO, start: int, end: int, most: int) -> Iterator[Line]:
    """Yield the lines whose first byte lies in `[start, end)`; `end` -1 is the file's. Of longer ones, `most` bytes."""
    end = end if end >= 0 else sys.maxsize
    offset = _seek_line(file, start, end)
    while offset < end and (data := file.readline(most + 1)):
        line = Line(offset, data, len(data) <= most or data.endswith(b"\n"))
        offset += len(data)
        if not line.whole:
            offset += _skip_line(file, end - offset)
        yield line


def _seek_line(file: BinaryIO, start: int, end: int) -> int:
    """Go to the first line that begins at or after `start`. Returns its offset, or one from `end` on."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + _skip_line(file, end - start + 1)


def _skip_line(file: BinaryIO, most: int) -> int:
    """Read on to the end of the line, or over `most` bytes: a line of many parts is not read by each to its end."""
    skipped = 0
    while skipped < most and (line := file.readline(min(BLOCK, most - skipped))):
        skipped += len(line)
        if line.endswith(b"\n"):
            break
    return skipped


def csv_records(lines: Iterator[Line], most: int) -> Iterator[Line]:
    """Join lines whose ends stand inside quotes, as Python's csv does.

    Of a record whose quotes do not close within `most` bytes, or close in the middle of a field, the first line is told
    not to be whole, and the next line begins another: a stray quote costs one record, not those up to the next quote.
    No line is searched twice for the quote that closes a record, or many stray ones would take forever.
    """
    ahead: deque[Line] = deque()  # read already; of these lines only the last may close a quote, rightly or not
    size, ended = 0, QUOTED  # their bytes, and what the last leaves behind
    while first := ahead.popleft() if ahead else next(lines, None):
        size, ended = max(0, size - len(first.data)), ended if ahead else QUOTED
        if first.offset == 0:
            first = first._replace(data=first.data.removeprefix(BOM))
        if not first.whole or _state(first.data, PLAIN) == PLAIN:
            yield first
            continue
        while ended == QUOTED and len(first.data) + size <= most and (line := next(lines, None)):
            ahead.append(line)
            size, ended = size + len(line.data), _state(line.data, QUOTED) if line.whole else QUOTED
        if ended == PLAIN and len(first.data) + size <= most:
            yield first._replace(data=first.data + b"".join(line.data for line in ahead))
            ahead.clear()
            size, ended = 0, QUOTED
        else:
            yield first._replace(whole=False)


def _state(line: bytes, state: str) -> str:
    """Return what a line that begins inside or outside of quotes leaves behind.

    They open only at a field's start, and a doubled one closes nothing. One that came from the line before is broken
    where it closes in the middle of a field.
    """
    place, begun = -1, state == QUOTED
    while (place := line.find(b'"', place + 1)) >= 0:
        after = line[place + 1 : place + 2]
        if state == PLAIN:
            state = QUOTED if place == 0 or line[place - 1 : place] == b"," else PLAIN
        elif after == b'"':
            place += 1
        elif begun and after not in (b",", b"\r", b"\n", b""):
            return BROKEN
        else:
            state, begun = PLAIN, False
    return state
