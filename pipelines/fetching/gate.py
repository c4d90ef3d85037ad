"""Who may ask next: the limits on requests in flight, per host, and on bytes held for rows that wait their turn."""

import asyncio
from bisect import insort
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

ALL = ""  # counts the requests of every host; no host has an empty name


class Gate:
    """Let requests through, the earliest row first, while the limits allow it.

    Rows are given out in order, so bodies wait for slower rows before them. A request in flight may bring `cap` bytes,
    so one is let through only while what it and the others may bring and what waits stay within `at_once * cap` bytes.
    The row whose turn it is passes this rule, else everything could wait for it: at most `(at_once + 1) * cap` bytes
    are held.

    Nothing is held while waiting here, so no two rows can wait for each other.
    """

    def __init__(self, at_once: int, per_host: int, cap: int):
        self._at_once, self._per_host, self._cap = at_once, per_host, cap
        self._flying: Counter[str] = Counter()  # requests in flight, by host
        self._held = self._head = 0
        self._waiting: list[tuple[int, str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def passage(self, row: int, host: str) -> AsyncIterator[None]:
        """Wait until a row may ask a host, and count its request until the context ends."""
        await self._admitted(row, host)
        try:
            yield
        finally:
            self._leave(host)

    def keep(self, size: int) -> None:
        """Count the bytes of a body that now waits for its turn."""
        self._held += size

    def give(self, row: int, size: int) -> None:
        """Forget the bytes of a row that was given out; the turn is the next one's."""
        self._held -= size
        self._head = row + 1
        self._admit()

    async def _admitted(self, row: int, host: str) -> None:
        waiter = (row, host, asyncio.get_running_loop().create_future())
        insort(self._waiting, waiter)
        self._admit()
        try:
            await waiter[2]
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self._leave(host)
            raise

    def _leave(self, host: str) -> None:
        self._flying.subtract((host, ALL))
        if not self._flying[host]:
            del self._flying[host]
        self._admit()

    def _admit(self) -> None:
        for waiter in list(self._waiting):
            row, host, future = waiter
            if self._flying[ALL] >= self._at_once:
                break
            allowed = self._flying[host] < self._per_host and (row == self._head or self._has_room())
            if allowed and not future.cancelled():
                self._waiting.remove(waiter)
                self._flying.update((host, ALL))
                future.set_result(None)

    def _has_room(self) -> bool:
        return self._held + (self._flying[ALL] + 1) * self._cap <= self._at_once * self._cap
