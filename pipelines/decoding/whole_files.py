"""Find where a video file is cut off or broken by the sizes that its parts state.

Demuxers pass over what they cannot read: a Matroska file that breaks off, or an MP4 that does so between two samples,
just ends, and a hole in a Matroska or AVI file is skipped up to the next sound part.
Sources: ISO/IEC 14496-12 (4.2), RFC 9559 with RFC 8794, Microsoft's AVI RIFF reference.
"""

import os
from collections.abc import Callable
from itertools import repeat
from typing import NamedTuple

PARTS = 2**21  # blocks of some four hours with sound; a longer or a malicious file is walked no further
MEDIA_BOXES = {b"ftyp", b"moov", b"moof", b"mdat"}
EBML, SEGMENT, CLUSTER, BLOCK_GROUP, SIMPLE_BLOCK = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xA0, 0xA3

Read = Callable[[int], bytes]  # 16 bytes from a place in the file, fewer at its end


class Break(NamedTuple):
    """What is wrong: `cut off`, with the number of missing bytes, or `damaged`, with the place."""

    reason: str
    detail: str


def find_break(path: str) -> Break | None:
    """Return what is wrong with an MP4, Matroska or AVI file, None for a whole one or another kind.

    Raises:
      OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        handle, size = file.fileno(), os.fstat(file.fileno()).st_size

        def read(at: int) -> bytes:
            return os.pread(handle, 16, at)

        magic = read(0)[:4]
        if magic == EBML.to_bytes(4, "big"):
            return _walk_elements(read, size)
        if magic == b"RIFF":
            return _walk_chunks(read, size)
        return _walk_boxes(read, size)


def _cut_off(end: int, size: int) -> Break:
    return Break("cut off", f"{end - size} bytes are missing")


def _damaged(at: int, size: int) -> Break:
    return Break("damaged", f"at byte {at} of {size}")


def _walk_boxes(read: Read, size: int) -> Break | None:
    """Walk the outermost boxes of an MP4; what is no box ends the walk."""
    at = 0
    for _ in repeat(None, PARTS):
        head = read(at) if at < size else b""
        if len(head) < 8 or not head[4:8].isalnum():
            return None
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: to the end of the file
            return None
        at += length
        if at > size and head[4:8] in MEDIA_BOXES:
            return _cut_off(at, size)
    return None


def _walk_elements(read: Read, size: int) -> Break | None:
    """Walk the blocks of a Matroska file; inside a part of known size all must fit."""
    at, ends = 0, list[int]()  # of the parts that we are in
    for _ in repeat(None, PARTS):
        while ends and at == ends[-1]:
            ends.pop()
        if at >= size:
            return None
        name, body, length = _element(read(at))
        if length is None and name in (SEGMENT, CLUSTER):  # a live recording
            at += body
            continue
        if length is None or (ends and at + body + length > ends[-1]):
            return _damaged(at, size) if ends else None
        end = at + body + length
        if end > size:
            return _cut_off(end, size) if name in (SEGMENT, CLUSTER, BLOCK_GROUP, SIMPLE_BLOCK) else None
        if name in (SEGMENT, CLUSTER):
            ends.append(end)
            at += body
        else:
            at = end
    return None


def _element(head: bytes) -> tuple[int, int, int | None]:
    """Return an EBML element's identifier and the bytes before and in its body: None where unknown, or no element."""
    width = 9 - head[0].bit_length()
    wide = 9 - head[width].bit_length() if width < len(head) else 9
    if width > 4 or wide > 8:
        return 0, 0, None
    unknown = (1 << 7 * wide) - 1
    length = int.from_bytes(head[width : width + wide], "big") & unknown
    return int.from_bytes(head[:width], "big"), width + wide, None if length == unknown else length


def _walk_chunks(read: Read, size: int) -> Break | None:
    """Walk the media chunks of an AVI; inside their list all must fit. The index behind it is not missed."""
    at, end = 0, 0  # of the list that we are in
    for _ in repeat(None, PARTS):
        head = read(at) if at < size else b""
        if len(head) < 8:
            return None
        inside, length = at < end, int.from_bytes(head[4:8], "little")
        media = head[:4] == b"LIST" and head[8:12] == b"movi"
        if not head[:4].isascii() or not head[:4].isalnum() or (inside and at + 8 + length > end):
            return _damaged(at, size) if inside else None
        if at + 8 + length > size and (media or head[2:4] in (b"dc", b"db")):
            return _cut_off(at + 8 + length, size)
        if media:
            end = at + 8 + length
        at += 12 if media or head[8:12] == b"rec " or head[:4] == b"RIFF" else 8 + length + length % 2
    return None
