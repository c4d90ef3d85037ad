"""The one id space: what every token id means."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

CODES = 8192  # LWM's VQGAN codebook (paper §4.1; lwm/vision_llama.py)


@dataclass(frozen=True)
class Vocabulary:
    """Name the ids of text, picture codes and frame endings.

    Text ids are `[0, text_size)`. Where `codes` > 0 they are followed by that many picture codes, then
    `eof`, which ends a frame that is not the last, and `eov`, which ends an image or the last frame.

    Attributes:
      text_size: number of text pieces.
      bos, eos: text ids of the begin and end of sequence.
      codes: number of picture codes, 0 where there is only text.
      text_digest, vision_digest: digests of the models that gave the ids their meaning.
    """

    text_size: int
    bos: int
    eos: int
    text_digest: str
    codes: int = 0
    vision_digest: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.bos < self.text_size and 0 <= self.eos < self.text_size):
            raise ValueError(
                f"bos {self.bos} and eos {self.eos} must be text ids below {self.text_size}: "
                "use a text model that defines both"
            )

    @property
    def vision_size(self) -> int:
        """Picture codes and the two endings."""
        return self.codes + 2 if self.codes else 0

    @property
    def size(self) -> int:
        """Number of ids in all."""
        return self.text_size + self.vision_size

    @property
    def eof(self) -> int:
        return self.text_size + self.codes

    @property
    def eov(self) -> int:
        return self.text_size + self.codes + 1

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every id."""
        return _smallest_type(self.size - 1)

    @property
    def fingerprint(self) -> str:
        """Digest of everything that gives an id its meaning; shards and models must agree on it."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=16).hexdigest()

    def is_vision(self, tokens: np.ndarray) -> np.ndarray:
        """Mark picture codes and frame endings: bool, the shape of `tokens`."""
        return tokens >= self.text_size


@lru_cache(maxsize=16)
def _smallest_type(most: int) -> np.dtype:
    return np.min_scalar_type(most)
