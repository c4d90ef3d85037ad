"""The nouns of asking: a chunk, the pair that is asked of it, and what that cost."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..media import Unfit


class Chunk(NamedTuple):
    """A passage to ask about; its key is its book's name, `#` and which of the book's chunks it is."""

    key: str
    text: str

    @property
    def book(self) -> str:
        return self.key.rpartition("#")[0]


@dataclass(frozen=True)
class Usage:
    """What replies cost: how many there were, and the tokens that the server counted."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


class Pair(NamedTuple):
    """A question and its answer, and how they came about: the model, the digest of its prompt, seed and usage."""

    question: str
    answer: str
    told: dict[str, Any]


class Outcome(NamedTuple):
    """What became of a chunk. Its usage counts what its replies cost, whichever run paid for them."""

    chunk: Chunk
    found: Pair | Unfit
    usage: Usage = Usage()
