"""Run one stage on a thread of its own, a bounded number of results ahead of the stage that uses them."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS = 0.1  # between two looks at whether anyone still wants a result, and between two calls of `interrupt`


@contextmanager
def ahead(results: Iterator[T], most: int, interrupt: Callable[[], None] = lambda: None) -> Iterator[Iterator[T]]:
    """Give an iterator whose results are made by a thread, at most `most` of them in advance.

    What the stage raises is raised to whoever asks for the next result. When the block is left, the stage is closed
    on its own thread before this returns.

    Args:
      interrupt: breaks off what the stage waits for, so that it raises or goes on to its next result. Called where
        the block is left before the stage has ended, again and again until it has: it may begin another wait.
    """
    waiting: queue.Queue[Callable[[], T]] = queue.Queue(most)
    left, ended = threading.Event(), threading.Event()

    def offer(take: Callable[[], T]) -> bool:
        while not left.is_set():
            try:
                waiting.put(take, timeout=SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        end: BaseException = StopIteration()
        try:
            for result in results:
                if not offer(lambda result=result: result):  # type: ignore[misc]
                    break
            if close := getattr(results, "close", None):
                close()
        except BaseException as error:
            end = error
        ended.set()  # first: whoever has seen the end interrupts no more
        offer(_raiser(end))

    def taken() -> Iterator[T]:
        while True:
            try:
                yield waiting.get()()
            except StopIteration:
                return

    thread = threading.Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        left.set()
        while not ended.is_set():
            interrupt()
            ended.wait(SECONDS)
        thread.join()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def take() -> Any:
        raise error

    return take
