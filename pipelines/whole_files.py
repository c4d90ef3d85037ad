"""Tell a video file that was cut off by the sizes that its outermost parts state.

A demuxer ends a Matroska file that breaks off, or an MP4 that breaks off between two samples, without a word.
Sources: ISO/IEC 14496-12 (4.2), RFC 9559 with RFC 8794, Microsoft's AVI RIFF reference.
"""

import os
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

PARTS = 2**20  # a live recording of two hours has about as many blocks; a longer or malicious one is walked no further
MEDIA_BOXES = {b"ftyp", b"moov", b"moof", b"mdat"}
EBML, SEGMENT, CLUSTER, BLOCK_GROUP, SIMPLE_BLOCK = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xA0, 0xA3


def missing_bytes(path: str) -> int:
    """Return how many bytes an MP4, Matroska or AVI file lacks of what it states, 0 for a whole file or another kind.

    Raises:
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:  # noqa: PTH123
        size = os.fstat(file.fileno()).st_size
        magic = file.read(4)
        if magic == EBML.to_bytes(4, "big"):
            ends = _element_ends(file)
        elif magic == b"RIFF":
            ends = _chunk_ends(file)
        else:
            ends = _box_ends(file)
        return max(0, max(islice(ends, PARTS), default=0) - size)


def _read(file: BinaryIO, at: int) -> bytes:
    """Read the header of a part, enough for each of the three kinds; nothing where a part lies behind the end."""
    if at >= os.fstat(file.fileno()).st_size:
        return b""
    file.seek(at)
    return file.read(16)


def _box_ends(file: BinaryIO) -> Iterator[int]:
    """Yield where each outermost box that holds media ends; what is no box ends the walk."""
    at = 0
    while len(head := _read(file, at)) >= 8 and head[4:8].isalnum():
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: to the end of the file
            return
        at += length
        if head[4:8] in MEDIA_BOXES:
            yield at


def _element_ends(file: BinaryIO) -> Iterator[int]:
    """Yield where the segment ends, or each cluster of one without a size, or each block of such a cluster."""
    at, name = 0, EBML
    while name != SEGMENT and (head := _read(file, at)):
        width = 9 - head[0].bit_length()  # of the identifier
        name = int.from_bytes(head[:width], "big")
        wide = 9 - head[width].bit_length() if len(head) > width else 9  # of the size
        if width > 4 or wide > 8:
            return
        unknown = (1 << 7 * wide) - 1
        size = int.from_bytes(head[width : width + wide], "big") & unknown
        at += width + wide
        if size == unknown and name in (SEGMENT, CLUSTER):
            name = EBML  # go inside
            continue
        at += size
        if name in (SEGMENT, CLUSTER, BLOCK_GROUP, SIMPLE_BLOCK):
            yield at


def _chunk_ends(file: BinaryIO) -> Iterator[int]:
    """Yield where each list of media chunks ends; the index behind it is not missed."""
    at = 0
    while len(head := _read(file, at)) >= 12:
        size, media = int.from_bytes(head[4:8], "little"), head[:4] == b"LIST" and head[8:12] == b"movi"
        if head[:4] == b"RIFF" or (media and not size):
            at += 12
            continue
        at += 8 + size + size % 2
        if media or head[2:4] in (b"dc", b"db"):
            yield at - size % 2
