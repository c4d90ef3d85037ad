"""Tar archives, read as a stream: damage raises, where Python's tarfile takes it for the archive's end."""

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Self

BLOCK = 2**20
LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *LONG_NAMES)


def members(stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
    """Yield all members but folders, each with its content, or None where it is no plain file.

    A content is to be read before the next member is asked for.

    Raises:
      tarfile.TarError: if the archive is damaged, cut off, or has more behind its end.
      OSError: if the stream is.
    """
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as opened:
        archive: Any = opened
        while member := archive.next():
            archive.members.clear()  # tarfile would keep them all
            if not member.isdir():
                yield member, archive.extractfile(member) if member.isfile() else None
        _check_end(archive.fileobj)


def is_outside(name: str) -> bool:
    """Does a member's name lead out of the archive?"""
    return name.startswith("/") or ".." in name.split("/")


def _check_end(stream: BinaryIO) -> None:
    """Read on to the end of the stream, where a codec's checksum is, and where nothing but zeros may be."""
    while block := stream.read(BLOCK):
        if block.strip(b"\0"):
            raise tarfile.ReadError("there is more behind the end of the archive")


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
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENDED and header.size > BLOCK:  # tarfile would hold it all
            raise tarfile.ReadError(f"an extended header of {header.size} bytes")
        return header
