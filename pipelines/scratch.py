"""Temporary files that end with their unit, and with their process: what a killed one left, the next removes."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "worldloom-scratch-"
LOCK = "lock"
SECONDS = 60  # within which a folder that is being made gets its lock


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder for temporary files, and remove it with all that is left in it."""
    _sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, (Path(folder) / LOCK).open("wb") as lock:
        with suppress(OSError):  # a file system without locks: what is left there stays
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


def _sweep(place: Path) -> None:
    """Remove this user's folders of which no living process holds the lock: the kernel drops a dead one's."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            found = folder.lstat()
            if found.st_uid != os.getuid() or found.st_mtime > time.time() - SECONDS:
                continue
            with (folder / LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, or gone already
            continue
