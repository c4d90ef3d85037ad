"""Pictures to codes and back: what every vision tokenizer offers, and how one is loaded."""

from typing import Literal, Protocol, get_args

import numpy as np

from ..errors import UserError

Kind = Literal["codebook", "vqgan"]


class VisionTokenizer(Protocol):
    """Turn square pictures into a grid of codes each, and codes into pictures.

    Attributes:
      size: side of a picture in pixels, 256 for LWM's.
      grid: codes a side, 16 for LWM's.
      codes: number of different codes.
      digest: 32 hexadecimal characters that change with anything that decides a code.
      device: what it computes on, `cpu` or `cuda`.
    """

    @property
    def size(self) -> int: ...

    @property
    def grid(self) -> int: ...

    @property
    def codes(self) -> int: ...

    @property
    def digest(self) -> str: ...

    @property
    def device(self) -> str: ...

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Return codes `uint16[n, grid * grid]`, row-major, of RGB pictures `uint8[n, size, size, 3]`.

        A picture's codes depend on that picture alone, not on those beside it.
        """
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return RGB pictures `uint8[n, size, size, 3]` of codes `[n, grid * grid]`, each in `[0, codes)`."""
        ...


def load(kind: str, path: str, pixel_range: str | None = None, device: str | None = None) -> VisionTokenizer:
    """Load a patch codebook, or a VQGAN with the pixel range that its config or the caller names.

    Raises UserError where the kind is unknown, the files are missing or damaged, or the pixel range is
    unknown, unnamed, contradicted, or given to a codebook, which has none and makes the same codes on any device.
    """
    if kind == "vqgan":
        from .vqgan import VQGAN  # torch and diffusers take seconds to load

        return VQGAN.load(path, pixel_range, device)
    if kind != "codebook":
        raise UserError(f"The vision tokenizer's kind is {kind!r}: give one of {', '.join(get_args(Kind))}.")
    if pixel_range is not None:
        raise UserError(f"A codebook has no pixel range, but {pixel_range!r} is given: leave pixel_range out.")
    if device is not None:
        raise UserError(f"A codebook makes the same codes anywhere, but {device!r} is given: leave device out.")
    from . import codebook

    return codebook.load(path)
