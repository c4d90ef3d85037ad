"""The decoder process: `python -m worldloom.pipelines.decoding.decoder` reads requests on stdin, answers on stdout."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from ...packing.ledger import FAILED
from ..media import Unfit
from .decoders import HEADER, Frames, write_message

Decode = Callable[[dict[str, Any], str, bytes], Iterator[Frames]]


def serve(stdin: BinaryIO, stdout: BinaryIO, decoders: dict[str, Decode]) -> None:
    """Answer requests until there is none. Whatever a file makes a decoder raise is that file's failure alone."""
    while head := stdin.read(HEADER.size):
        size, length = HEADER.unpack(head)
        header, data = json.loads(stdin.read(size)), stdin.read(length)
        try:
            for part in decoders[header["kind"]](header["limits"], header["path"], data):
                body = np.ascontiguousarray(part.frames)
                write_message(stdout, {"shape": body.shape, "info": part.info}, body.data.cast("B"))
            write_message(stdout, {"done": True})
        except Unfit as unfit:
            write_message(stdout, {"unfit": [unfit.status, unfit.reason, unfit.detail]})
        except Exception as error:
            write_message(stdout, {"unfit": [FAILED, "decoder error", f"{type(error).__name__}: {error}"[:500]]})


def picture(limits: dict[str, Any], path: str, data: bytes) -> Iterator[Frames]:
    """Decode a picture to one frame."""
    from .pictures import PictureLimits, decode_picture

    found = decode_picture(data, PictureLimits(**limits))
    yield Frames(found.frame[None], {"width": found.width, "height": found.height})


def clip(limits: dict[str, Any], path: str, data: bytes) -> Iterator[Frames]:
    """Decode a clip to the frames that are kept of it."""
    from .clips import ClipLimits, read_clip

    info, batches = read_clip(path, ClipLimits(**limits))
    told = info._asdict()
    for frames in batches:
        yield Frames(frames, told)
        told = {}


if __name__ == "__main__":
    # Libraries that print must not print into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers, {"picture": picture, "clip": clip})
