"""The decoder process: `python -m worldloom.pipelines.decoding.decoder` reads requests on stdin, answers on stdout."""

import contextlib
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...packing.ledger import DROPPED, FAILED
from ..media import Unfit
from .messages import HEADER, LONGEST_WORD, NO_MEMORY, Frames, write_message

# Bytes that a decoder may write to. A clip of 4096 x 4096 with 16 reference frames of 10 bits takes 2.1 GiB, a picture
# of 2**27 pixels 1.2.
MEMORY = 2**32
PULSE = 10.0  # seconds of work on a file between two words
STUCK = 120.0  # seconds of processor time

Decode = Callable[[dict[str, Any], str, bytes, Callable[[], None]], Iterator[Frames]]


def serve(stdin: BinaryIO, stdout: BinaryIO, decoders: dict[str, Decode]) -> None:
    """Answer requests until there is none. Whatever a file makes a decoder raise is that file's failure alone."""
    while head := stdin.read(HEADER.size):
        size, length = HEADER.unpack(head)
        header, data = json.loads(stdin.read(size)), stdin.read(length)
        try:
            for part in decoders[header["kind"]](header["limits"], header["path"], data, pulse(stdout)):
                body = np.ascontiguousarray(part.frames)
                write_message(stdout, {"shape": body.shape, "info": part.info}, body.data.cast("B"))
            write_message(stdout, {"done": True})
        except Exception as error:
            unfit = blame(error)
            words = unfit.status, unfit.reason, unfit.detail
            write_message(stdout, {"unfit": [word[:LONGEST_WORD] for word in words]})


def pulse(stdout: BinaryIO) -> Callable[[], None]:
    """Return what a decoder calls as often as it likes while it works: it tells now and then that there is life."""
    last = time.monotonic()

    def alive() -> None:
        nonlocal last
        if time.monotonic() - last > PULSE:
            write_message(stdout, {"alive": True})
            last = time.monotonic()

    return alive


def blame(error: Exception) -> Unfit:
    """Say of a file what it made a decoder raise."""
    if isinstance(error, Unfit) and error.status == DROPPED:
        return error
    if lacked_memory(error):
        return Unfit(FAILED, NO_MEMORY, f"its decoder takes more than {MEMORY >> 20} MiB")
    return error if isinstance(error, Unfit) else Unfit(FAILED, "decoder error", f"{type(error).__name__}: {error}")


def lacked_memory(error: BaseException) -> bool:
    """Find out whether memory that was refused made a decoder raise: codecs may call that damage, as H.264's does."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, MemoryError):
            return True
        cause = cause.__cause__
    with contextlib.suppress(OSError):  # Linux, where alone the limit holds
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return peak is not None and int(peak[1]) * 1024 > MEMORY - MEMORY // 8
    return False


def picture(limits: dict[str, Any], path: str, data: bytes, alive: Callable[[], None]) -> Iterator[Frames]:
    """Decode a picture to one frame."""
    from .pictures import PictureLimits, decode_picture

    found = decode_picture(data, PictureLimits(**limits))
    yield Frames(found.frame[None], {"width": found.width, "height": found.height})


def clip(limits: dict[str, Any], path: str, data: bytes, alive: Callable[[], None]) -> Iterator[Frames]:
    """Decode a clip to the frames that are kept of it."""
    from .clips import ClipLimits, read_clip

    info, batches = read_clip(path, ClipLimits(**limits), alive)
    told = info._asdict()
    for frames in batches:
        yield Frames(frames, told)
        told = {}


def main(decoders: dict[str, Decode]) -> None:
    """Be a decoder process: answer requests with bounded memory until there is none, or no one who asks."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print must not print into the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the submitter's to handle: the unit may still be finished
    with contextlib.suppress(ValueError):  # there is a lower limit
        # What is written to, not RLIMIT_AS: libraries and what allocators set apart for their threads are no use.
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    serve(sys.stdin.buffer, answers, decoders)


def _end_with_parent() -> None:
    """End this process when its parent is gone.

    Linux could do it (PR_SET_PDEATHSIG), but at the end of the thread that started us, which ends with its unit. Where
    a library holds the interpreter and this thread cannot look, the kernel's clock ends the process.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        signal.setitimer(signal.ITIMER_PROF, STUCK)
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main({"picture": picture, "clip": clip})
