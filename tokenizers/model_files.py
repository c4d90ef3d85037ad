"""Files of models on this machine: a local one as it is, any other copied once for all processes.

Copies are kept under a key of their URL and of what their file system gives to tell one content from another, so that
a file written anew is fetched anew. A copy appears whole under its name, and is fetched by one process at a time.
"""

import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ..errors import UserError

MOST = 2**33  # bytes of copies that are kept; a VQGAN has 10^8 to 10^9
IN_USE = 3600.0  # seconds since a copy was last asked for, within which it stays
DRAFT, LOCK = ".tmp", ".lock"


def local_file(url: str) -> Path:
    """Return a file's local path: its own, or that of a copy.

    Raises:
      OSError, ValueError, ImportError: as fsspec does where it cannot be read.
      UserError: if the folder of copies is someone else's.
    """
    files, path = url_to_fs(url)
    if isinstance(files, LocalFileSystem):
        return Path(path)
    facts = f"{url} {files.ukey(path)}"
    key = hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()
    folder = _folder()
    copy = folder / f"{key}-{PurePosixPath(path).name}"
    with _turn(folder):
        if not copy.exists():
            _fetch(files, path, folder / DRAFT, copy)
            _forget(folder, copy)
        os.utime(copy)
    return copy


def _folder() -> Path:
    """Make the folder of copies, which nobody else may write: models decide what every record becomes."""
    folder = Path(tempfile.gettempdir()) / f"worldloom-models-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{folder} can be written by others: remove it, or set TMPDIR to a folder of your own")
    return folder


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread fetches; the kernel ends the turn of a killed one."""
    with (folder / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(files: Any, path: str, draft: Path, copy: Path) -> None:
    """Fetch a file whole, or not at all."""
    files.get_file(path, str(draft))
    size, found = files.info(path)["size"], draft.stat().st_size
    if size not in (None, found):
        raise OSError(f"{found:,} of its {size:,} bytes arrived")
    draft.replace(copy)


def _forget(folder: Path, kept: Path) -> None:
    """Remove the copies that were not asked for the longest while there are too many bytes of them."""
    copies = sorted((p for p in folder.iterdir() if p.name not in (DRAFT, LOCK)), key=lambda p: p.stat().st_mtime)
    held = sum(p.stat().st_size for p in copies)
    for copy in copies:
        if held > MOST and copy != kept and copy.stat().st_mtime < time.time() - IN_USE:
            held -= copy.stat().st_size
            copy.unlink()
