"""What is said between a worker and its decoders: a length, a JSON header and raw bytes.

Nothing is unpickled, and what a decoder says is checked: it reads hostile files, and is trusted no more than they are.
"""

import json
import math
import struct
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from ...packing.ledger import DROPPED, FAILED
from ..media import Unfit
from ..records import storable

HEADER = struct.Struct("<IQ")  # bytes of the JSON, and of what follows it
MOST_HEADER, MOST_BODY = 2**16, 2**25  # eight frames of 1024 pixels
LONGEST_WORD = 500  # characters of a reason or a detail
CRASHED, NO_MEMORY = "decoder crashed", "out of memory"
FACTS = {"picture": {"width", "height"}, "clip": {"width", "height", "start", "rate", "chosen", "total"}}


class Request(NamedTuple):
    """What is to be decoded: `kind` is `picture`, of `data`, or `clip`, of the local file `path`.

    The limits hold `size`, the side of the squares, and for a clip `budget`, the frames at most.
    """

    kind: str
    limits: dict[str, Any]
    data: bytes = b""
    path: str = ""


class Frames(NamedTuple):
    """Frames `uint8[n, size, size, 3]`, and on the first message of a file what is known of it: FACTS, numbers."""

    frames: np.ndarray
    info: dict[str, Any]


Message = Frames | Unfit | Literal["done", "alive"]


class Lost(Exception):
    """Say why a decoder is no more, or is of no use."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def write_message(stream: BinaryIO, header: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """Send one message."""
    text = json.dumps(header).encode()
    stream.write(HEADER.pack(len(text), len(body)) + text)
    stream.write(body)
    stream.flush()


def checked(text: bytes, body: bytes, size: int) -> Message:
    """Return what a message says. Raises `Lost` where it is nothing that a decoder may say."""
    match _parsed(text):
        case {"unfit": [str(status), str(reason), str(detail)]} if status in (DROPPED, FAILED):
            return Unfit(status, _short(reason), _short(detail))
        case {"shape": [int(n), int(height), int(width), 3], "info": dict(info)}:
            if n > 0 and height == width == size and len(body) == n * size * size * 3 and _are_numbers(info):
                return Frames(np.frombuffer(body, np.uint8).reshape(n, size, size, 3), info)
        case {"done": True}:
            return "done"
        case {"alive": True}:
            return "alive"
    raise Lost(CRASHED, "it sent no message")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _short(word: str) -> str:
    return storable(word[:LONGEST_WORD])


def _are_numbers(info: dict[str, Any]) -> bool:
    return all(type(value) in (int, float) and abs(value) < math.inf for value in info.values())


def promised_by(request: Request, info: dict[str, Any]) -> int:
    """Return how many frames a file's first message promises."""
    if not FACTS[request.kind] <= info.keys():
        raise Lost(CRASHED, "it sent no message")
    if request.kind == "picture":
        return 1
    if not 1 <= info["chosen"] <= request.limits["budget"]:
        raise Lost(CRASHED, f"it promised {info['chosen']} frames of {request.limits['budget']}")
    return int(info["chosen"])
