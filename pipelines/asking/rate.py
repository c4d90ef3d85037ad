"""So many requests a minute, of all processes of a machine together."""

import asyncio
import fcntl
import hashlib
import os
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RECORD = struct.Struct("<dd")  # when the last turn was taken, and when the next may be; seconds since the start


class Turns:
    """Let one request after another through, evenly spaced.

    The turns of a server are kept in a file that the processes lock for a moment. The kernel drops the lock of a killed
    process, and nobody takes a turn before it is due, so none is lost with it.

    Args:
      url: names the server.
      per_minute: turns, above 0.
      clock: seconds that all processes of the machine count alike; they may begin anew, as after a start.
    """

    def __init__(self, url: str, per_minute: float, clock: Callable[[], float] = time.monotonic):
        self._interval, self._clock = 60.0 / per_minute, clock
        name = hashlib.blake2b(f"{url} {per_minute}".encode(), digest_size=8).hexdigest()
        self._path = Path(tempfile.gettempdir()) / f"worldloom-rate-{os.getuid()}-{name}"
        self._mine = asyncio.Lock()  # one of a process waits at the file, the others for that one

    async def take(self) -> None:
        """Wait for the next turn."""
        async with self._mine:
            while wait := await asyncio.to_thread(self.claim):
                await asyncio.sleep(wait)

    def claim(self) -> float:
        """Take the turn that is due and return 0, or the seconds until one is."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            now, record = self._clock(), os.pread(handle, RECORD.size + 1, 0)
            due = self._due(record, now)
            if due > now:
                return due - now
            os.ftruncate(handle, 0)
            os.pwrite(handle, RECORD.pack(now, self._after(due, now)), 0)
            return 0.0
        finally:
            os.close(handle)

    def _due(self, record: bytes, now: float) -> float:
        """Return when the next turn is due; a torn record, or one from before the clock began anew, says nothing."""
        if len(record) != RECORD.size:
            return 0.0
        taken, due = RECORD.unpack(record)
        return due if taken <= now and taken < due <= taken + 2 * self._interval else 0.0

    def _after(self, due: float, now: float) -> float:
        """Return when the turn after this one is due: who sleeps late slows nobody, and idle time saves no turns."""
        if now >= due + self._interval:
            return now + self._interval
        return max(due + self._interval, now + self._interval / 2)
