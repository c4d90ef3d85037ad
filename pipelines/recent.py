"""Pictures and clips that chats showed lately: a clip that ten of them ask about is decoded and encoded once."""

from collections import OrderedDict
from typing import Generic, TypeVar

from ..sources import ChatSource
from .records import Medium

T = TypeVar("T")
TOKENS = 2**26  # of the codes that are held, at 256 a frame: 128 MB


class Recent(Generic[T]):
    """Hold something of each picture and clip, the latest of them. Two that are asked alike in order hold alike.

    What is no file and no link is not held, nor a clip whose frames each chat draws for itself.
    """

    def __init__(self, source: ChatSource):
        self._most = max(1, TOKENS // (256 * source.frames))
        self._drawn = source.sampling == "window"
        self._held: OrderedDict[tuple[str, str, str], T] = OrderedDict()

    def find(self, medium: Medium) -> T | None:
        """Return what is held of a medium, which is the latest now."""
        key = self._key(medium)
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def hold(self, medium: Medium, value: T) -> T:
        """Hold a value of a medium, and let the one go that was asked for longest ago. Returns the value."""
        _, path, link, temporary = medium.media
        if (path or link) and not temporary and not (self._drawn and medium.kind == "video"):
            self._held[self._key(medium)] = value
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return value

    def _key(self, medium: Medium) -> tuple[str, str, str]:
        return medium.kind, medium.media.path, medium.media.link
