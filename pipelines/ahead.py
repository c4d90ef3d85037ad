"""Run one stage on a thread of its own, a bounded number of results ahead of the stage that uses them."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS = 0.1  # between two looks at whether anyone still wants a result


@contextmanager
def ahead(results: Iterator[T], most: int) -> Iterator[Iterator[T]]:
    """Give an iterator whose results are made by a thread, at most `most` of them in advance.

    What the stage raises is raised to whoever asks for the next result. When the block is left, the stage is closed
    on its own thread before this returns.
    """
    waiting: queue.Queue[Callable[[], T]] = queue.Queue(most)
    left = threading.Event()

    def offer(take: Callable[[], T]) -> bool:
        while not left.is_set():
            try:
                waiting.put(take, timeout=SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for result in results:
                if not offer(lambda result=result: result):  # type: ignore[misc]
                    break
            else:
                offer(_raiser(StopIteration()))
        except BaseException as error:
            offer(_raiser(error))
        finally:
            close = getattr(results, "close", None)
            if close:
                close()

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
        thread.join()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def take() -> Any:
        raise error

    return take
