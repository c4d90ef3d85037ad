"""Elements of a file that is one JSON array, in ranges of bytes that share none and miss none.

Nothing is trusted: a broken element costs itself, as far as can be told where it ends, and the next one is read.
Every byte is looked at a few times at the most, whatever the file holds.
"""

import re
import sys
from collections.abc import Iterator
from typing import BinaryIO

from .lines import BLOCK, BOM, Line

SPACE = rb"[ \t\r\n]"
STRING = rb'"[^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+'  # but for the quote that closes it
HEAD = re.compile(rb"[%s \t\r\n,]*+" % BOM)
GAP = re.compile(rb"[ \t\r\n,]*+")
# What stands between brackets. A string before anything but , : ] } is none: a quote is missing or one too many.
RUN = re.compile(rb'(?:[^"{}\[\]]++|%s"(?=%s*+[,:\]}]))*+' % (STRING, SPACE))
BEGUN = re.compile(rb'%s(?:\\|"%s*+)?\Z' % (STRING, SPACE))  # of which one cannot tell yet
# A string, a number or word, or what is none of them: up to where something may begin.
SCALAR = re.compile(rb'%s"|[^ \t\r\n,"{}\[\]]++|[^{\[\]][^{\[\]]*+' % STRING)
NEAR = 256  # characters of white space, and of a key: what is longer is no sign of where an element begins
OBJECT = re.compile(rb'\{%s{0,%d}(?:"([^"\\]{0,%d})"|\})' % (SPACE, NEAR, NEAR))  # how one begins
TAIL = 4 * NEAR  # longer than what tells where an object begins
FAR, MANY = 2**16, 16  # bytes that are looked at for objects in a broken element, and kinds of them
ENTERED = re.compile(rb"\[[ \t\r\n,]{0,%d}\{" % NEAR)
WHOLE, CUT, BROKEN = "whole", "cut", "broken"


def read_elements(file: BinaryIO, start: int, end: int, most: int) -> Iterator[Line]:
    """Yield the elements whose first byte lies in `[start, end)`; `end` -1 is the file's. Of longer ones, `most` bytes.

    What is no JSON comes as a line that is none: an element as far as it goes, what stands between elements, a bracket
    too many, and an empty one where the file ends before its array does. Without the array's brackets, objects that
    follow each other are read just so.

    Args:
      start: 0, or where an element begins that is an object and came whole.
    """
    end = end if end >= 0 else sys.maxsize
    window, closed = _Window(file, 0), -1
    window.skip(HEAD)
    array = window.byte == b"["
    if start:
        file.seek(start)
        window = _Window(file, start)
    elif array:
        window.place += 1
    while window.skip(GAP):
        if closed >= 0:  # but not at its end
            yield Line(closed, b"]")
            closed = -1
        if window.offset >= end:
            return
        if window.byte == b"]":
            closed = window.offset
            window.place += 1
        else:
            yield (_nested if window.byte in (b"{", b"[") else _scalar)(window, most)
    if array and closed < 0 and not window.cut:
        yield Line(window.offset, b"")
    if closed >= 0 and not array:
        yield Line(closed, b"]")


class _Window:
    """Some bytes of a file.

    Attributes:
      first: the place in the file of `data`.
      place: in `data`, of what is read next.
      cut: did the file end within an element, or nothing that is one follow a broken one?
    """

    def __init__(self, file: BinaryIO, first: int):
        self.file, self.first, self.data, self.place = file, first, b"", 0
        self.ended = self.cut = False

    @property
    def offset(self) -> int:
        """The place in the file."""
        return self.first + self.place

    @property
    def byte(self) -> bytes:
        return self.data[self.place : self.place + 1]

    @property
    def left(self) -> int:
        return len(self.data) - self.place

    def more(self) -> bool:
        """Read on, as much again as is held. False at the file's end, where places in the data stay as they are."""
        if not self.ended and (block := self.file.read(max(BLOCK, self.left))):
            self.data, self.first, self.place = self.data[self.place :] + block, self.offset, 0
            return True
        self.ended = True
        return False

    def skip(self, pattern: re.Pattern[bytes]) -> bool:
        """Go behind all that matches. False at the file's end."""
        while (found := pattern.match(self.data, self.place)) and found.end() == len(self.data):
            self.place = found.end()
            if not self.more():
                return False
        self.place = found.end() if found else self.place
        return True

    def search(self, pattern: re.Pattern[bytes], within: int = sys.maxsize) -> bool:
        """Go to the first match that begins within some bytes, and say if one does; else behind them."""
        end = self.offset + within
        while not (found := pattern.search(self.data, self.place, min(sys.maxsize, end - self.first + TAIL))):
            self.place = max(self.place, min(end - self.first, len(self.data) - TAIL))
            if self.offset == end:
                return False
            if not self.more():
                self.place, self.cut = len(self.data), True
                return False
        self.place = min(found.start(), end - self.first)
        return self.offset < end

    def recover(self, broken: bytes) -> None:
        """Go to the next element: an object, at first one that does not begin like those in the broken one."""
        if not self.search(_likeness(broken), FAR):
            self.search(OBJECT)


def _nested(window: _Window, most: int) -> Line:
    """Take an object or an array; go behind it, or to the next element where it is broken or too long.

    An array of objects is entered: it is another file's, or a bracket too many, and would hide all that follows.
    """
    while window.byte == b"[" and window.left < 2 * NEAR and window.more():
        continue
    if ENTERED.match(window.data, window.place):
        window.place += 1
        return Line(window.offset - 1, b"[")
    stop, state = _end_of(window.data, window.place, most)
    while state == CUT and window.left <= most and window.more():
        stop, state = _end_of(window.data, window.place, most)
    line = Line(window.offset, window.data[window.place : stop][:most], stop - window.place <= most)
    if state == CUT and window.left <= most:  # the file ends here
        line = line._replace(data=window.data[window.place :])
        window.place, window.cut = len(window.data), True
    elif state == WHOLE:
        window.place = stop
    else:
        broken = window.data[window.place : min(stop, window.place + FAR)]
        window.place = stop
        window.recover(broken)
        line = line._replace(whole=state == BROKEN)
    return line


def _likeness(broken: bytes) -> re.Pattern[bytes]:
    """Return what tells where an object begins that is not like those in a broken element, by their first keys."""
    keys = list(dict.fromkeys(re.escape(found[1]) for found in OBJECT.finditer(broken) if found[1]))
    inner = b"|".join(keys[1 : 1 + MANY])
    return re.compile(rb'\{%s{0,%d}(?:"(?!(?:%s)")|\})' % (SPACE, NEAR, inner)) if inner else OBJECT


def _end_of(data: bytes, begin: int, most: int) -> tuple[int, str]:
    """Find the end of the object or array that begins somewhere, in the data and within one byte more than `most`.

    Returns:
      Where it ends and WHOLE; or CUT or BROKEN, and the place in front of what goes on too far or must not stand there.
    """
    opened, place, limit = bytearray(), begin, begin + most + 1
    while True:
        low, place = place, RUN.match(data, place, limit).end()  # type: ignore[union-attr]
        byte = data[place : min(place + 1, limit)]
        if byte == b"{" or byte == b"[":
            if opened[-1:] == b"{" and data[low:place].rstrip().endswith(b","):  # where a key must stand
                return place, BROKEN
            opened += byte
        elif byte == b"}" or byte == b"]":
            if opened.pop() != byte[0] - 2:  # as ASCII has them
                return place, BROKEN
            if not opened:
                return place + 1, WHOLE
        else:
            return place, CUT if not byte or BEGUN.match(data, place, limit) else BROKEN
        place += 1


def _scalar(window: _Window, most: int) -> Line:
    """Take what is no object and no array; go behind it, or to the next object where it is too long."""
    stop = _end_of_scalar(window, most)
    while not stop and window.left <= most and window.more():
        stop = _end_of_scalar(window, most)
    stop = stop or min(len(window.data), window.place + most + 1)
    line = Line(window.offset, window.data[window.place : stop][:most], stop - window.place <= most)
    window.place = stop
    if not line.whole:
        window.search(OBJECT)
    return line


def _end_of_scalar(window: _Window, most: int) -> int:
    """Find the end of what is no object and no array; 0 where it may go on."""
    limit = window.place + most + 1
    if BEGUN.match(window.data, window.place, limit):
        return 0
    found = SCALAR.match(window.data, window.place, limit)
    return found.end() if found and found.end() < min(limit, len(window.data)) else 0
