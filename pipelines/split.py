"""The split into train and eval: a side for each example, drawn for what it is made of, not for its name."""

import json
from collections.abc import Iterable
from typing import Literal

from ..packing.example import Span
from .units import fraction

Side = Literal["train", "eval", "both"]


def content_keys(spans: Iterable[Span], exact: bytes) -> frozenset[str]:
    """Return what decides an example's side: the pictures, clips and books in it by their hashes.

    Args:
      spans: those whose `ref` has a `content` tell it: a hash in hexadecimal.
      exact: hash of the whole, which decides where no span tells: of the text, or of a pair's frames.
    """
    refs = (json.loads(span.ref) for span in spans if '"content"' in span.ref)
    told = frozenset(ref["content"] for ref in refs if isinstance(ref, dict) and "content" in ref)
    return told or frozenset([exact.hex()])


def in_eval(seed: int, share: float, key: str) -> bool:
    """Is a content on the eval side? Whatever holds it, in whichever source, then is there too."""
    return fraction(seed, "eval", key) < share


def side_of(seed: int, share: float, keys: Iterable[str]) -> Side:
    """Return the side that an example is on, or `both` where its contents are on different ones."""
    sides = {in_eval(seed, share, key) for key in keys}
    if len(sides) > 1:
        return "both"
    return "eval" if sides.pop() else "train"
