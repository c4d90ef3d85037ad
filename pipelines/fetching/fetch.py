"""Fetch the files behind a table's links: many at once, in the table's order, from servers that nobody trusts."""

import asyncio
import hashlib
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import aiohttp
from yarl import URL

from ... import __version__
from ..media import Unfit
from .exchange import (
    LookUp,
    OpenSocket,
    Passing,
    check_answer,
    look_up,
    open_session,
    open_socket,
    receive,
    redirection,
    request,
)
from .gate import Gate
from .links import read_link, shown

AHEAD = 8  # rows pulled ahead of the one whose turn it is, in multiples of `at_once`
NAME_THREADS = 64  # at most; each waits for one name's lookup
LONGEST_PAUSE = 30.0  # seconds before a link is tried again

T = TypeVar("T")
R = TypeVar("R")


class FetchLimits(NamedTuple):
    """Say how much of the network a fetcher may use, and of a worker's memory.

    Attributes:
      bytes: of one file, at most. Bodies in memory come to `(at_once + 1) * bytes` at most.
      seconds: for one attempt, from the lookup of the name to the last byte, redirects included.
      retries: attempts after the first, where what failed may heal.
      at_once: requests in flight.
      per_host: requests in flight to one host name.
      redirects: that are followed.
      agent: the user agent that servers are told; its first word is the robot's name that they may forbid.
    """

    bytes: int
    seconds: float
    retries: int
    at_once: int
    per_host: int
    redirects: int = 5
    agent: str = f"worldloom/{__version__}"


class Fetched(NamedTuple):
    """Hold a file that was fetched.

    Attributes:
      data: its bytes; empty where it was written to a folder.
      path: where it was written to; the file is the caller's, to delete too.
      size: in bytes, at least 1.
      url: the link that answered, after redirects.
    """

    data: bytes
    path: Path | None
    size: int
    url: str


class Fetcher:
    """Fetch links with many requests in flight. Use as a context manager.

    The requests run on a thread of their own, so they go on while the caller works on what it was given. The limits
    hold for one call of `fetch`, and in each process alone.

    Args:
      limits: see there.
      look_up: finds a name's addresses; tests give their own.
      open_socket: makes the socket that is connected to an address that was found to be public; tests give their own.
    """

    def __init__(self, limits: FetchLimits, look_up: LookUp = look_up, open_socket: OpenSocket = open_socket):
        self._limits, self._look_up, self._open_socket = limits, look_up, open_socket
        self._tasks: dict[asyncio.Task[Any], Gate] = {}  # what is under way, each with the gate of its call

    def __enter__(self) -> "Fetcher":
        self._loop = asyncio.new_event_loop()
        self._names = ThreadPoolExecutor(min(self._limits.at_once, NAME_THREADS), thread_name_prefix="fetch-names")
        self._loop.set_default_executor(self._names)
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._thread.start()
        self._session = self._wait(open_session(self._limits.agent, self._look_up, self._open_socket))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._names.shutdown(wait=False, cancel_futures=True)
        self._wait(close(self._session))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fetch(
        self, rows: Iterable[T], url_of: Callable[[T], Any], folder: Path | None = None
    ) -> Iterator[tuple[T, Fetched | Unfit | None]]:
        """Yield each row with what its link holds, in the order of the rows.

        Rows are pulled as they are needed, at most `8 * at_once` ahead.

        Args:
          rows: what the links belong to.
          url_of: returns a row's link, None where it has none; one that is no text is unfit.
          folder: write each file there, named anew, and never hold it in memory.

        Yields:
          the row, and its file or the reason why there is none: failed, or dropped where the server opts out. None
          for a row without a link, which waits only for the rows before it.

        Raises:
          OSError: where a file cannot be written.
          CancelledError: after `interrupt`; that of `concurrent.futures`.
        """
        limits = self._limits
        gate = Gate(limits.at_once, limits.per_host, limits.bytes)
        waiting: deque[tuple[int, T, Future[Fetched | Unfit] | None]] = deque()
        number = 0
        with ExitStack() as stack:
            inner = folder and Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="fetch-")))
            stack.callback(self._end, gate)
            for row in rows:
                if (url := url_of(row)) is None:
                    waiting.append((number, row, None))
                else:
                    path = inner and inner / str(number)
                    one = self._recorded(fetch_one(self._session, gate, limits, number, url, path), gate)
                    waiting.append((number, row, asyncio.run_coroutine_threadsafe(one, self._loop)))
                    number += 1
                while waiting and waiting[0][2] is None:
                    yield self._take(gate, *waiting.popleft())
                if len(waiting) == AHEAD * limits.at_once:
                    yield self._take(gate, *waiting.popleft())
            while waiting:
                yield self._take(gate, *waiting.popleft())

    def _take(
        self, gate: Gate, number: int, row: T, future: Future[Fetched | Unfit] | None
    ) -> tuple[T, Fetched | Unfit | None]:
        """Wait for a row's file and give it out of the gate's and the inner folder's keeping."""
        if future is None:
            return row, None
        found = future.result()
        held = 0 if isinstance(found, Unfit) else found.size
        self._loop.call_soon_threadsafe(gate.give, number, held)
        if isinstance(found, Fetched) and found.path:
            inner = found.path.parent
            found = found._replace(path=found.path.rename(inner.with_name(f"{inner.name}-{number}")))
        return row, found

    def interrupt(self) -> None:
        """End all requests under way: who waits for one, on another thread, is raised `CancelledError`."""
        self._wait(cancel(self._tasks))

    def _wait(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _recorded(self, coroutine: Coroutine[Any, Any, R], gate: Gate) -> R:
        """Await a coroutine, its task being known as its call's meanwhile.

        The loop begins what it was handed in order, so whatever it is handed later knows the task.
        """
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = gate
        try:
            return await coroutine
        finally:
            del self._tasks[task]

    def _end(self, gate: Gate) -> None:
        """End what one call has under way."""

        async def end() -> None:
            await cancel(task for task, its in self._tasks.items() if its is gate)

        if not self._loop.is_closed():
            self._wait(end())


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until each has ended."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


async def close(session: aiohttp.ClientSession) -> None:
    """End everything that runs on this loop, and its connections."""
    await cancel(asyncio.all_tasks() - {asyncio.current_task()})
    await session.close()


async def fetch_one(
    session: aiohttp.ClientSession, gate: Gate, limits: FetchLimits, row: int, url: object, path: Path | None
) -> Fetched | Unfit:
    """Fetch a link, again after a pause where that may help; a failure is returned, not raised."""
    tries = 0
    while True:
        tries += 1
        try:
            return await follow(session, gate, limits, row, read_link(url), path)
        except Unfit as unfit:
            wait = pause(unfit.after, tries, url) if isinstance(unfit, Passing) else None
            if wait is None or tries > limits.retries:
                if path is not None:
                    path.unlink(missing_ok=True)
                detail = f"{unfit.detail} (tried {tries} times)" if tries > 1 else unfit.detail
                return Unfit(unfit.status, unfit.reason, detail)  # a new one, free of its traceback's frames
        await asyncio.sleep(wait)


async def follow(
    session: aiohttp.ClientSession, gate: Gate, limits: FetchLimits, row: int, link: URL, path: Path | None
) -> Fetched:
    """Fetch a link through its redirects; each is checked as if it stood in the table, and waits at the gate.

    Raises:
      Unfit: where there is no file.
    """
    left, now = limits.seconds, asyncio.get_running_loop().time
    for _ in range(limits.redirects + 1):
        async with gate.passage(row, (link.raw_host or "").rstrip(".")):
            began = now()
            async with request(session, link, left) as answer:
                target = redirection(answer)
                if target is None:
                    check_answer(answer, limits.agent, limits.bytes)
                    data, size = await receive(answer, limits.bytes, path)
                    gate.keep(size)
                    return Fetched(data, path, size, str(link))
            left -= now() - began
        link = target
    raise Unfit("failed", "too many redirects", f"over {limits.redirects}, the last to {shown(link)}")


def pause(asked: float, tries: int, url: object) -> float | None:
    """Return the seconds before the next try: 1, 2, 4, … less up to a half, and no less than the server asks.

    What is taken off depends on the link and the try, so that links that failed together do not return together. None
    where the server asks for more than we wait: to come back earlier would be rude.
    """
    if asked > LONGEST_PAUSE:
        return None
    digest = hashlib.blake2b(f"{tries} {shown(url)}".encode(), digest_size=4).digest()
    spread = int.from_bytes(digest) / 2**32
    return max(asked, min(LONGEST_PAUSE, 2.0 ** (tries - 1)) * (1 - spread / 2))
