"""Records: what a source yields, one after the other, the bad ones named."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..packing.ledger import FAILED


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be read: a short reason that is counted, and the details."""

    record: str
    where: str
    reason: str
    error: str
    status: str = FAILED


@dataclass(frozen=True)
class TextDocument:
    """A text with its stable id, and where it was found."""

    record: str
    where: str
    text: str
    columns: dict[str, Any] = field(default_factory=dict)


class Media(NamedTuple):
    """Where the bytes of a picture or clip are: exactly one of the first three is given.

    Attributes:
      data: the bytes themselves.
      path: a file on a file system of the user's, as fsspec names it.
      link: an untrusted URL that is still to be fetched.
      temporary: is `path` a local copy that whoever reads it removes?
    """

    data: bytes = b""
    path: str = ""
    link: str = ""
    temporary: bool = False


@dataclass(frozen=True)
class ImageText:
    """An image with its caption, not yet decoded; `columns` holds all that the source says of it."""

    record: str
    where: str
    text: str
    media: Media
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VideoText(ImageText):
    """A clip with its caption: a whole video, or seconds `[start, end]` of one."""

    start: float | None = None
    end: float | None = None


class Medium(NamedTuple):
    """A picture or clip in a chat: `image` or `video`, and where it is."""

    kind: str
    media: Media


@dataclass(frozen=True)
class Turn:
    """What one side says: texts, pictures and clips in their order; neighbouring texts are one.

    Attributes:
      trained: is it an answer to learn? A row may say that one of its answers is not (`"weight": 0`).
    """

    role: str
    parts: tuple[str | Medium, ...]
    trained: bool = True

    @property
    def text(self) -> str:
        """All that is said in words."""
        return "\n".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Chat:
    """A conversation: perhaps a turn of `system`, then `user` and `assistant` in turn, the last word an answer."""

    record: str
    where: str
    turns: tuple[Turn, ...]
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> tuple[Medium, ...]:
        """Its pictures and clips in their order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Medium))


@dataclass(frozen=True)
class Fields:
    """A row of LWM's: texts, picture codes, and the specs that say how they follow each other."""

    record: str
    where: str
    columns: dict[str, Any]


Found = TextDocument | ImageText | Chat | Fields | BadRecord


def storable(name: str) -> str:
    """Escape what UTF-8 has no bytes for: file names may hold any bytes, and JSON half a surrogate pair."""
    return name.encode("utf-8", "backslashreplace").decode()
