"""Worker processes of the default, local engine: light, quiet, and gone when the submitter is."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ..errors import RunFailed
from ..tokenizers.allocator import own_allocator

ENDING = 10.0  # a process with torch takes one or two
AHEAD = 2  # calls waiting for each worker, so that none is idle between two


class LocalWorkers:
    """Run calls in processes of this machine, and give their results back in the order in which they end.

    The processes import what a call needs and no engine, so they start in about a second.
    """

    def __init__(self, workers: int):
        self._most = workers * AHEAD
        self._running: set[Future[Any]] = set()
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, spawn, _start)

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
        """Hand a call over. Yields the results that had to be waited for, because enough calls wait."""
        self._running.add(self._pool.submit(call, *arguments))
        while len(self._running) >= self._most:
            yield from self._collect()

    def drain(self) -> Iterator[Any]:
        """Yield the results of all calls that are still running."""
        while self._running:
            yield from self._collect()

    def _collect(self) -> Iterator[Any]:
        done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                yield future.result()
            except BrokenProcessPool:
                raise RunFailed(
                    "a worker process was killed, perhaps for lack of memory: call the same command again, "
                    "with fewer --workers or a smaller unit_bytes; finished units are kept"
                ) from None

    def close(self) -> None:
        """End the processes; calls not yet begun are dropped. Waits for them, but not for one that hangs at its end.

        A submitter that ended first would leave their semaphores behind, and Python would say so on stderr.
        """
        ending = threading.Thread(target=self._pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
        ending.start()
        ending.join(ENDING)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the submitter's to handle
    own_allocator()  # before the first thread
    threading.Thread(target=_end_with_submitter, daemon=True).start()


def _end_with_submitter() -> None:
    """End this process at once when the submitter is gone: a kill must leave no writer behind."""
    submitter = multiprocessing.parent_process()
    assert submitter is not None
    submitter.join()  # a pipe that the kernel closes tells it, without a delay
    os._exit(1)
