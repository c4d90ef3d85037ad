"""The replies that were paid for: each is a file, kept before it is used and never asked for again."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from ...packing.storage import Folder
from .outcome import Usage


@dataclass(frozen=True)
class Reply:
    """What a model wrote, and what that cost."""

    content: str
    usage: Usage


def name_of(request: dict[str, Any]) -> str:
    """Name the reply to a request by all that the model sees of it: its own name, the messages, sampling and seed."""
    return f"{_digest(request)}.json"


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
        while not self.folder.create(name, data):
            old = self.folder.read(name)
            if old is None:
                continue  # it was there a moment ago
            if before := _decode(name, old):
                return before
            if self.folder.replace(name, old, data):
                break
        return reply


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
