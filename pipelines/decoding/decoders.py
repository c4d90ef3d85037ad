"""Decoding in processes of their own: a file that crashes or hangs its decoder costs one record, not the unit.

A decoder reads hostile files, and what it says is trusted no more than they are.
"""

import atexit
import contextlib
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import BinaryIO, TypeVar

from ...packing.ledger import FAILED
from ..media import Unfit
from .messages import (
    CRASHED,
    HEADER,
    MOST_BODY,
    MOST_HEADER,
    NO_MEMORY,
    Frames,
    Lost,
    Message,
    Request,
    checked,
    promised_by,
    write_message,
)

AHEAD = 4  # requests sent before the first is answered
SECONDS = 120.0  # without a word from a decoder, which speaks every ten, after which it is ended
LOOKS = 120  # in that time: those that a stopped job or a sleeping laptop misses are not counted
# For one file. An hour of 720p takes 140 s a pass where each frame must be decoded, in two passes, on two cores; only
# files and decoders that are made to take long take as long as this.
MOST_SECONDS = 3600.0
ENDING = 10.0  # seconds in which a decoder that has closed its pipe is gone, or never is
COMMAND = (sys.executable, "-m", "worldloom.pipelines.decoding.decoder")
# A decoder multiplies no matrices, and OpenBLAS would set memory apart for each core of the machine.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}

Item = TypeVar("Item")


class Decoders:
    """A number of decoder processes that answer in the order in which they are asked.

    Args:
      number: of processes.
      command: what is started; tests give one that misbehaves.
      seconds: for which a decoder may be silent while it is waited for.
    """

    def __init__(self, number: int = 1, command: tuple[str, ...] = COMMAND, seconds: float = SECONDS):
        self._decoders = [_Decoder(command, seconds) for _ in range(number)]

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, and forget what they were asked; a later request starts new ones."""
        for decoder in self._decoders:
            decoder.forget()

    def interrupt(self) -> None:
        """End the processes; whoever waits for one, on another thread, finds that it crashed."""
        for decoder in self._decoders:
            decoder.interrupt()

    def decode(
        self, items: Iterable[Item], request_of: Callable[[Item], Request | None]
    ) -> Iterator[tuple[Item, Iterator[Frames]]]:
        """Yield each item with its frames, which must be read before the next item is asked for.

        The frames raise `Unfit` where the file is. An item without a request has none.
        """
        try:
            yield from self._decode(items, request_of)
        except BaseException:  # one who asks for no more is one: what was sent must not answer a later request
            self.close()
            raise

    def _decode(
        self, items: Iterable[Item], request_of: Callable[[Item], Request | None]
    ) -> Iterator[tuple[Item, Iterator[Frames]]]:
        waiting: deque[tuple[Item, _Decoder | None]] = deque()
        turn = 0
        for item in items:
            request, decoder = request_of(item), None
            if request is not None:
                decoder = self._decoders[turn % len(self._decoders)]
                decoder.send(request)
                turn += 1
            waiting.append((item, decoder))
            if len(waiting) >= AHEAD * len(self._decoders):
                yield _answer(*waiting.popleft())
        while waiting:
            yield _answer(*waiting.popleft())


def _answer(item: Item, decoder: "_Decoder | None") -> tuple[Item, Iterator[Frames]]:
    return item, decoder.answer() if decoder else iter(())


# By process, which a fork makes another, and by their number. Lists are popped and appended to by one thread at a time.
_idle: defaultdict[tuple[int, int], list[Decoders]] = defaultdict(list)


@contextlib.contextmanager
def kept_decoders(number: int) -> Iterator[Decoders]:
    """Lend decoders, which live on for this process's next unit unless this one ends in an error.

    Units that run at the same time, as threads, get decoders of their own.
    """
    idle = _idle[os.getpid(), number]
    try:
        decoders = idle.pop()
    except IndexError:
        decoders = Decoders(number)
    try:
        yield decoders
    except BaseException:
        decoders.close()
        raise
    idle.append(decoders)


@atexit.register
def close_kept() -> None:
    """End the processes that are kept for this process's next unit."""
    for (process, _), idle in list(_idle.items()):
        while process == os.getpid() and idle:
            idle.pop().close()


class _Decoder:
    """One process, the requests that it has not answered, and the thread that sends them."""

    def __init__(self, command: tuple[str, ...], seconds: float):
        self._command, self._seconds = command, seconds
        self._open: deque[Request] = deque()
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, request: Request) -> None:
        if self._process and not self._open and self._process.poll() is not None:
            self.stop()  # it was ended while it was idle: no record is to blame
        self._open.append(request)
        if self._process is None:
            self._start()
        else:
            self._outbox.put(request)

    def interrupt(self) -> None:
        """End the process and no more: all else belongs to the thread that asks."""
        if process := self._process:
            process.kill()

    def _start(self) -> None:
        """Start a process and hand it all that is open."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | ENVIRONMENT,
        )
        self._outbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        for request in self._open:
            self._outbox.put(request)
        threading.Thread(target=_send, args=(self._process.stdin, self._outbox), daemon=True).start()

    def answer(self) -> Iterator[Frames]:
        """Yield the frames of the first open request."""
        try:
            unfit = yield from self._answer(self._open[0])
            if unfit and unfit.reason == NO_MEMORY:  # what it still holds nobody knows
                self.stop()
        except Lost as lost:
            self.stop()
            unfit = Unfit(FAILED, lost.reason, lost.detail)
        except BaseException:  # the reader leaves frames in the pipe
            self.stop()
            raise
        finally:
            if self._open:
                self._open.popleft()
            if self._process is None and self._open:
                self._start()
        if unfit:
            raise unfit

    def _answer(self, request: Request) -> Generator[Frames, None, Unfit | None]:
        """Yield the frames, and return what is wrong with the file."""
        self._end = time.monotonic() + MOST_SECONDS
        given = promised = 0
        while True:
            message = self._receive(request.limits["size"])
            if isinstance(message, Unfit):
                return message
            if isinstance(message, Frames):
                promised = promised or promised_by(request, message.info)
                given += len(message.frames)
            if given > promised or (message == "done" and not 0 < given == promised):
                raise Lost(CRASHED, f"it sent {given} of {promised} frames")
            if isinstance(message, Frames):
                paused = time.monotonic()
                yield message
                self._end += time.monotonic() - paused  # its reader's time is not the decoder's
            elif message == "done":
                return None

    def _receive(self, frame_size: int) -> Message:
        size, length = HEADER.unpack(self._read(HEADER.size))
        if size > MOST_HEADER or length > MOST_BODY:
            raise Lost(CRASHED, "it sent no message")
        return checked(self._read(size), self._read(length), frame_size)

    def _read(self, size: int) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        pipe, parts, left = self._process.stdout.fileno(), [], size
        while left:
            self._wait(pipe)
            if not (part := os.read(pipe, min(left, 2**20))):
                raise Lost(CRASHED, _ended(self._process))
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _wait(self, pipe: int) -> None:
        """Wait until there is something to read. Not with `select`, which knows the first 1,024 descriptors only."""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        if not any(poll.poll(1000 * self._seconds / LOOKS) for _ in range(LOOKS)):
            raise Lost("decoder hung", f"no word for {self._seconds:g} s")
        if time.monotonic() > self._end:
            raise Lost("decoder too slow", f"not done after {MOST_SECONDS:g} s")

    def forget(self) -> None:
        """End the process and all that it was asked."""
        self._open.clear()
        self.stop()

    def stop(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._outbox.put(None)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        self._process = None


def _send(stream: BinaryIO, outbox: "queue.SimpleQueue[Request | None]") -> None:
    """Write requests until there is none, or no reader."""
    with contextlib.suppress(OSError, ValueError):
        while (request := outbox.get()) is not None:
            header = {"kind": request.kind, "limits": request.limits, "path": request.path}
            write_message(stream, header, request.data)


def _ended(process: "subprocess.Popen[bytes]") -> str:
    """Say how a process ended that has closed its pipe."""
    try:
        code = process.wait(ENDING)
    except subprocess.TimeoutExpired:
        return "it stopped answering"
    return f"killed by signal {-code}" if code < 0 else f"ended with {code}"
