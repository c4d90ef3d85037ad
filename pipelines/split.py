"""The split into train and eval: a side for each example, drawn for what it is made of, not for its name."""

from collections.abc import Iterable
from typing import Literal

from ..packing.example import Span
from ..packing.turns import facts
from .units import fraction

Side = Literal["train", "eval", "both"]


def content_keys(spans: Iterable[Span], exact: bytes) -> frozenset[str]:
    """Return what decides an example's side: the pictures, clips and books in it by their hashes.

    Args:
      spans: those whose `ref` has a `content` tell it: a hash in hexadecimal. A ref that is no JSON object, and a
        content that is no string, tell nothing.
      exact: hash of the whole, which decides where no span tells: of the text, or of a pair's frames.
    """
    contents = (facts(span.ref).get("content") for span in spans if '"content"' in span.ref)
    told = frozenset(content for content in contents if isinstance(content, str))
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
