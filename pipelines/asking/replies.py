"""The replies that were paid for: each is a file, kept before it is used and never asked for again."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ...packing.manifest import sweep_drafts
from ...packing.storage import Folder
from .outcome import Usage


@dataclass(frozen=True)
class Reply:
    """What a model wrote, and what that cost."""

    content: str
    usage: Usage


def name_of(request: dict[str, Any]) -> str:
    """Name the reply to a request by all that the model sees of it: its own name, the messages, sampling and seed.

    The name begins with one of `folders()`: a folder of 10^8 files would be slow.
    """
    seen = {"max_tokens" if key == "max_completion_tokens" else key: value for key, value in request.items()}
    digest = _digest(seen)
    return f"{digest[:2]}/{digest}.json"


def folders() -> Iterator[str]:
    """Yield the names of the folders that hold replies."""
    return (f"{number:02x}" for number in range(256))


def sweep(replies: Folder) -> int:
    """Remove the drafts that killed processes left among replies. Returns how many."""
    if not replies.local:  # elsewhere a file is there whole or not at all
        return 0
    return sum(sweep_drafts(replies, name) for name in folders())


@dataclass(frozen=True)
class Replies:
    """The replies in a folder. Many processes may use it at once: the first reply kept is everybody's."""

    folder: Folder

    def find(self, name: str) -> Reply | None:
        """Return a reply, or None where there is none; a torn or strange file is none."""
        data = self.folder.read(name)
        return None if data is None else _decode(name, data)

    def keep(self, name: str, reply: Reply) -> Reply:
        """Keep a reply and return it, or the one that was kept before."""
        data = _encode(name, reply)
        while not self._create(name, data):
            old = self.folder.read(name)
            if old is None:
                continue  # it was there a moment ago
            if before := _decode(name, old):
                return before
            if self.folder.replace(name, old, data):
                break
        return reply

    def _create(self, name: str, data: bytes) -> bool:
        try:
            return self.folder.create(name, data)
        except FileNotFoundError:  # the first reply in its folder
            self.folder.make(name.partition("/")[0])
            return self.folder.create(name, data)


def _encode(name: str, reply: Reply) -> bytes:
    fields = {"name": name, **asdict(reply)}
    return json.dumps({**fields, "digest": _digest(fields)}).encode()


def _decode(name: str, data: bytes) -> Reply | None:
    try:
        fields = json.loads(data)
        if fields.pop("digest") != _digest(fields) or fields["name"] != name:
            return None
        return Reply(fields["content"], Usage(**fields["usage"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()
