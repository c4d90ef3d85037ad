"""Tar archives, read as a stream: damage raises, where Python's tarfile takes it for the archive's end."""

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Self

from .files import BLOCK, Content

LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *LONG_NAMES)


def members(stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, Content | None]]:
    """Yield all members but folders, each with its content, or None where it is no plain file.

    A content is to be read before the next member is asked for.

    Raises:
      tarfile.TarError: if the archive is damaged, cut off, or has more behind its end.
      OSError: if the stream is.
    """
    forward = _Forward(stream)
    archive: Any = tarfile.TarFile(fileobj=forward, mode="r", tarinfo=_Header, encoding="utf-8")  # type: ignore[arg-type]
    while member := archive.next():
        archive.members.clear()  # tarfile would keep them all
        if member.isfile():
            yield member, archive.extractfile(member) if member.issparse() else _Plain(forward, member.size)
        elif not member.isdir():
            yield member, None
    _check_end(forward)


def is_outside(name: str) -> bool:
    """Does a member's name lead out of the archive?"""
    return name.startswith("/") or ".." in name.split("/")


def _check_end(stream: Content) -> None:
    """Read on to the end of the stream, where a codec's checksum is, and where nothing but zeros may be."""
    while block := stream.read(BLOCK):
        if block.strip(b"\0"):
            raise tarfile.ReadError("there is more behind the end of the archive")


class _Forward:
    """A stream that tarfile takes for a file as long as it asks for nothing that lies behind."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._place = stream, 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._place += len(data)
        return data

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> None:
        if place < self._place:
            raise tarfile.StreamError("a stream cannot go back")
        while self._place < place and self.read(min(BLOCK, place - self._place)):
            pass


class _Plain:
    """The content of a plain file: tarfile's own costs more than the reading."""

    def __init__(self, stream: _Forward, size: int):
        self._stream, self._left = stream, size

    def read(self, size: int, /) -> bytes:
        size = min(size, self._left)
        data = self._stream.read(size)
        if len(data) < size:
            raise tarfile.ReadError("the archive ends inside a member")
        self._left -= size
        return data


class _Header(tarfile.TarInfo):
    """A member's header. One that is damaged or missing raises what tarfile does not swallow."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Self:
        try:
            header = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the zeros at the end of an archive
            raise
        except (tarfile.HeaderError, ValueError, IndexError) as error:
            raise tarfile.ReadError(f"damaged or cut off: {error}") from error
        if header.size < 0:
            raise tarfile.ReadError("a member of negative size")
        return header

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = cls._plain(bytes(buf), encoding, errors) or super().frombuf(buf, encoding, errors)
        if header.type in EXTENDED and header.size > BLOCK:  # tarfile would hold it all
            raise tarfile.ReadError(f"an extended header of {header.size} bytes")
        return header

    @classmethod
    def _plain(cls, buf: bytes, encoding: str, errors: str) -> Self | None:
        """Read what matters of a plain file's header, five times as fast; None where tarfile has to look at it."""
        if len(buf) != tarfile.BLOCKSIZE or buf[156:157] != tarfile.REGTYPE:
            return None
        try:
            size, checksum = int(_text(buf[124:136]), 8), int(_text(buf[148:156]), 8)
        except ValueError:
            return None
        if checksum != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
            return None
        header = cls(_text(buf[:100]).decode(encoding, errors))
        if prefix := _text(buf[345:500]):
            header.name = f"{prefix.decode(encoding, errors)}/{header.name}"
        header.size, header.type = size, tarfile.REGTYPE
        return header


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
