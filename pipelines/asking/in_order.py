"""Many waits at once on a loop of their own, and what comes of them in order."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Start = Callable[[Coroutine[Any, Any, R]], Future[R]]
THREADS = 32  # at most, for what blocks


def in_order(
    items: Iterable[T], opened: AbstractAsyncContextManager[Callable[[T], Awaitable[R]]], most: int, threads: int
) -> Generator[R]:
    """Yield what a coroutine returns for each item, in the order of the items.

    The waits go on while the caller works on what it was given. When the caller leaves, all are cancelled.

    Args:
      opened: gives the coroutine; entered and left on the loop.
      most: items begun before the first of them was yielded.
      threads: for what blocks, up to `THREADS`.
    """
    waiting: deque[Future[R]] = deque()
    going: set[asyncio.Task[Any]] = set()  # those of the items alone: what they begin is theirs to end
    with _loop(min(threads, THREADS)) as start:
        stack = AsyncExitStack()
        work = start(stack.enter_async_context(opened)).result()

        async def one(item: T) -> R:
            going.add(task := _this_task())
            try:
                return await work(item)
            finally:
                going.remove(task)

        try:
            for item in items:
                waiting.append(start(one(item)))
                if len(waiting) == most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            start(_cancel(going)).result()
            start(stack.aclose()).result()


@contextmanager
def _loop(threads: int) -> Iterator[Start[Any]]:
    """Run a loop on a thread of its own; what it is given must have ended when the block is left."""
    loop = asyncio.new_event_loop()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ask-files")
    loop.set_default_executor(pool)
    thread = threading.Thread(target=loop.run_forever, name="ask", daemon=True)
    thread.start()
    try:
        yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def _cancel(going: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until each has ended; what the loop was handed before this has begun."""
    ending = list(going)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
