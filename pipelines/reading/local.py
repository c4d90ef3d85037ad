"""Bring a source's file here: its bytes, or a local copy, never more than is allowed."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from ...packing.ledger import FAILED
from ..media import Unfit
from ..records import Media
from .files import filesystem, is_storage_trouble, open_raw


def read_file(url: str, most: int) -> bytes:
    """Read a file.

    Raises:
      Unfit: if it is missing, or has more than `most` bytes.
      OSError: if the storage is in trouble.
    """
    with _opened(url) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise _too_large(most)
    return data


def local_copy(media: Media, most: int, folder: Path) -> Media:
    """Return a clip's file on a local disk: itself where it lies there, else a copy in `folder`.

    Raises:
      Unfit: if it is missing, or has more than `most` bytes.
      OSError: if the storage is in trouble.
    """
    if media.temporary:
        return media
    if media.path and (path := _local_path(media.path)):
        if not path.is_file():
            raise Unfit(FAILED, "no such file", str(path))
        if path.stat().st_size > most:
            raise _too_large(most)
        return Media(path=str(path))
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as copy:
        try:
            if media.path:
                with _opened(media.path) as file:
                    _copy(file, copy.file, most)
            else:
                copy.write(media.data)
        except BaseException:
            Path(copy.name).unlink()
            raise
    return Media(path=copy.name, temporary=True)


def _copy(file: BinaryIO, copy: IO[bytes], most: int) -> None:
    left = most + 1
    while left > 0 and (block := file.read(min(left, 2**20))):
        copy.write(block)
        left -= len(block)
    if not left:
        raise _too_large(most)


def _too_large(most: int) -> Unfit:
    return Unfit(FAILED, "too large", f"more than record_bytes = {most} bytes")


@contextmanager
def _opened(url: str) -> Iterator[BinaryIO]:
    try:
        with open_raw(url) as file:
            yield file
    except OSError as error:
        if is_storage_trouble(error):
            raise
        raise Unfit(FAILED, "no such file", f"{type(error).__name__}: {error}") from error


def _local_path(url: str) -> Path | None:
    if "://" in url and not url.startswith("file://"):
        return None
    fs, path = filesystem(url)
    return Path(path) if isinstance(fs, LocalFileSystem) else None
