"""Frames become codes, in batches that reach across records."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..tokenizers.vision import VisionTokenizer
from .media import Unfit
from .records import ImageText

Other = TypeVar("Other")

BATCH = 64  # frames encoded at once; the tokenizer has a batch of its own inside


@dataclass
class Pending:
    """A record on its way: what was learned of its frames, and their codes as they come.

    Attributes:
      file: digest of a clip's file, "" of a picture.
      hash: of the frames that are stored.
    """

    found: ImageText
    file: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    codes: list[np.ndarray] = field(default_factory=list)
    waiting: int = 0
    whole: bool = False
    unfit: Unfit | None = None

    @property
    def content(self) -> str:
        """What tells this picture or clip from others, however many of its frames are stored: 32 hexadecimal digits."""
        return self.file or str(self.hash.hexdigest())


class Piece(NamedTuple):
    """Some frames of a record; `last` also says that no more come."""

    owner: Pending
    frames: np.ndarray | None
    last: bool


def encode(pieces: Iterable[Piece | Other], tokenizer: VisionTokenizer) -> Iterator[Pending | Other]:
    """Encode frames in batches across records. Yields the records whole, in order; anything else passes as it is."""
    order: deque[Pending | Other] = deque()
    batch: list[Piece] = []
    held = 0
    for piece in pieces:
        if not isinstance(piece, Piece):
            order.append(piece)
        else:
            if not order or order[-1] is not piece.owner:
                order.append(piece.owner)
            held += _take(piece, batch)
        if held >= BATCH:
            _encode_batch(batch, tokenizer)
            batch, held = [], 0
        while order and _is_ready(order[0]):
            yield order.popleft()
    _encode_batch(batch, tokenizer)
    yield from order


def _take(piece: Piece, batch: list[Piece]) -> int:
    """Put a piece's frames into the batch. Returns their number."""
    piece.owner.whole |= piece.last
    if piece.frames is None:
        return 0
    piece.owner.hash.update(piece.frames)
    piece.owner.waiting += len(piece.frames)
    batch.append(piece)
    return len(piece.frames)


def _encode_batch(batch: list[Piece], tokenizer: VisionTokenizer) -> None:
    if not batch:
        return
    frames = [piece.frames for piece in batch if piece.frames is not None]
    codes = tokenizer.encode(np.concatenate(frames))
    low = 0
    for piece, part in zip(batch, frames, strict=True):
        piece.owner.codes.append(codes[low : low + len(part)])
        piece.owner.waiting -= len(part)
        low += len(part)


def _is_ready(item: object) -> bool:
    return not isinstance(item, Pending) or (item.whole and (not item.waiting or item.unfit is not None))
