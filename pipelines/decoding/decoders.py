"""Decoding in processes of their own: a file that crashes or hangs its decoder costs one record, not the unit.

Messages are a length, a JSON header and raw bytes. Nothing is unpickled: the decoder reads hostile files, and what it
says is trusted no more than they are.
"""

import atexit
import contextlib
import json
import os
import queue
import select
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from ...packing.ledger import FAILED
from ..media import Unfit

AHEAD = 4  # requests sent before the first is answered
SECONDS = 120.0  # without a word from the decoder, after which it is ended
HEADER = struct.Struct("<IQ")  # bytes of the JSON, and of what follows it
MOST_HEADER, MOST_BODY = 2**20, 2**28
COMMAND = (sys.executable, "-m", "worldloom.pipelines.decoding.decoder")

Item = TypeVar("Item")


class Request(NamedTuple):
    """What is to be decoded: `kind` is `picture`, of `data`, or `clip`, of the local file `path`."""

    kind: str
    limits: dict[str, Any]
    data: bytes = b""
    path: str = ""


class Frames(NamedTuple):
    """Frames `uint8[n, size, size, 3]`, and on the first message of a file what is known of it."""

    frames: np.ndarray
    info: dict[str, Any]


def write_message(stream: BinaryIO, header: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """Send one message."""
    text = json.dumps(header).encode()
    stream.write(HEADER.pack(len(text), len(body)) + text)
    stream.write(body)
    stream.flush()


class Decoders:
    """A number of decoder processes that answer in the order in which they are asked.

    Args:
      number: of processes.
      command: what is started; tests give one that misbehaves.
      seconds: for which a decoder may be silent.
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

    def decode(
        self, items: Iterable[Item], request_of: Callable[[Item], Request | None]
    ) -> Iterator[tuple[Item, Iterator[Frames]]]:
        """Yield each item with its frames, which must be read before the next item is asked for.

        The frames raise `Unfit` where the file is. An item without a request has none.
        """
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


@lru_cache(maxsize=1)
def _kept(number: int) -> Decoders:
    decoders = Decoders(number)
    atexit.register(decoders.close)
    return decoders


@contextlib.contextmanager
def kept_decoders(number: int) -> Iterator[Decoders]:
    """Give this process's decoders, which live on for its next unit unless this one ends in an error."""
    decoders = _kept(number)
    try:
        yield decoders
    except BaseException:
        decoders.close()
        raise


class _Decoder:
    """One process, the requests that it has not answered, and the thread that sends them."""

    def __init__(self, command: tuple[str, ...], seconds: float):
        self._command, self._seconds = command, seconds
        self._open: deque[Request] = deque()
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, request: Request) -> None:
        self._open.append(request)
        if self._process is None:
            self._start()
        else:
            self._outbox.put(request)

    def _start(self) -> None:
        """Start a process and hand it all that is open."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._outbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        for request in self._open:
            self._outbox.put(request)
        threading.Thread(target=_send, args=(self._process.stdin, self._outbox), daemon=True).start()

    def answer(self) -> Iterator[Frames]:
        """Yield the frames of the first open request."""
        try:
            while True:
                header, body = self._receive()
                if "unfit" in header:
                    raise Unfit(*map(str, header["unfit"]))
                if "shape" in header:
                    yield Frames(np.frombuffer(body, np.uint8).reshape(header["shape"]), header.get("info", {}))
                if header.get("done"):
                    return
        except _Lost as lost:
            self.stop()
            raise Unfit(FAILED, lost.reason, lost.detail) from None
        finally:
            if self._open:
                self._open.popleft()
            if self._process is None and self._open:
                self._start()

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        size, length = HEADER.unpack(self._read(HEADER.size))
        if size > MOST_HEADER or length > MOST_BODY:
            raise _Lost("decoder crashed", "it sent no message")
        return json.loads(self._read(size)), self._read(length)

    def _read(self, size: int) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + self._seconds
        parts, left = [], size
        while left:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _Lost("decoder hung", f"no word for {self._seconds:g} s")
            if not (part := os.read(pipe, min(left, 2**20))):
                raise _Lost("decoder crashed", _ended(self._process))
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

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


class _Lost(Exception):
    """The decoder is no more, or is of no use."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def _send(stream: BinaryIO, outbox: "queue.SimpleQueue[Request | None]") -> None:
    """Write requests until there is none, or no reader."""
    with contextlib.suppress(OSError, ValueError):
        while (request := outbox.get()) is not None:
            header = {"kind": request.kind, "limits": request.limits, "path": request.path}
            write_message(stream, header, request.data)


def _ended(process: "subprocess.Popen[bytes]") -> str:
    """Say how a process ended."""
    code = process.wait()
    return f"killed by signal {-code}" if code < 0 else f"ended with {code}"
