"""Lines of a file in ranges of bytes that share none and miss none, and the CSV records that they make."""

import sys
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 2**20
BOM = b"\xef\xbb\xbf"


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

    Of a record whose quotes do not close within `most` bytes the first line is told not to be whole, and the next
    line begins another: a stray quote costs one record, not the rest of the file. No line is searched twice for the
    quote that closes a record, or many stray ones would take forever.
    """
    ahead: deque[Line] = deque()  # read already; of these lines only the last may close a quote
    size, closed = 0, False  # their bytes, and whether the last does
    while first := ahead.popleft() if ahead else next(lines, None):
        size, closed = max(0, size - len(first.data)), closed and bool(ahead)
        if first.offset == 0:
            first = first._replace(data=first.data.removeprefix(BOM))
        if not first.whole or not _ends_quoted(first.data, False):
            yield first
            continue
        while not closed and len(first.data) + size <= most and (line := next(lines, None)):
            ahead.append(line)
            size, closed = size + len(line.data), line.whole and not _ends_quoted(line.data, True)
        if closed and len(first.data) + size <= most:
            yield first._replace(data=first.data + b"".join(line.data for line in ahead))
            ahead.clear()
            size, closed = 0, False
        else:
            yield first._replace(whole=False)


def _ends_quoted(line: bytes, quoted: bool) -> bool:
    """Does a line end inside quotes? They open only at a field's start, and a doubled one closes nothing."""
    place = -1
    while (place := line.find(b'"', place + 1)) >= 0:
        if not quoted:
            quoted = place == 0 or line[place - 1 : place] == b","
        elif line[place + 1 : place + 2] == b'"':
            place += 1
        else:
            quoted = False
    return quoted
