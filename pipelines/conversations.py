"""Chats as they are published: what files and datasets hold, the bad ones named. Each row alone tells its shape.

UltraChat's data; the conversations of ShareGPT4V, LLaVA and Valley; Video-ChatGPT's q, a and video_id; OpenAI's
messages.
"""

import base64
import hashlib
import re
import reprlib
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..packing.ledger import DROPPED, FAILED
from ..sources import ChatSource, template_columns
from .media import Unfit
from .reading.columns import (
    CHAT_MEDIA,
    CONVERSATIONS,
    MESSAGES,
    SYSTEM_COLUMNS,
    VIDEO_CHATGPT,
    column,
    shape_of,
)
from .reading.damage import damage_passed_over, guarded
from .reading.files import BLOCK, FORMS, form_of, open_plain
from .reading.listing import begins_with
from .reading.naming import at, existing, filled, folder_of, held
from .reading.places import Root
from .reading.samples import discard, hold_bytes
from .reading.tables import Row, read_rows, row_bytes
from .reading.texts import checked
from .records import BadRecord, Chat, Media, Medium, Turn
from .units import Part

FORM_OF_MEDIUM = {"image": "picture", "video": "clip"}
KEYS = (("role", "from"), ("content", "value"))  # OpenAI's and ShareGPT's
CALLS = ("tool_calls", "function_call")  # what an answer does beside its words, which no rendering here shows
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt"), "assistant"),
}
# Where a picture or clip stands in a text: as LLaVA, Valley and InternLM write it.
TAG = r"<(image|im|ImageHere|video)>"
PLACE = re.compile(rf"(?:\r?\n)?{TAG}(?:\r?\n)?")
# A place that is not just spoken of: in a text without pictures it shows that one is missing.
BARE = re.compile(rf"\A\s*{TAG}|\n{TAG}\s*\Z")
LINK = re.compile(r"https?://", re.IGNORECASE)
DATA = re.compile(r"data:[^,]{0,256};base64,", re.IGNORECASE)
# Columns, of which a row that names a file has one; in JSON as bytes, or hidden by a letter that is escaped.
NAMING = (*MESSAGES, *CONVERSATIONS, "video_id", *sum(CHAT_MEDIA.values(), ()))
KEY = re.compile(b'"(?:%s)"' % "|".join(NAMING).encode())
ESCAPED = re.compile(rb"\\u00[4-7]")
REACH = max(map(len, NAMING)) + 1  # bytes, one less than the longest key has
FEATURES = ".pkl"  # Video-ChatGPT's training file names a clip's features, which bear the clip's name


class Place(NamedTuple):
    """Where a picture or clip stands that a column of the row names."""

    kind: str


class Named(NamedTuple):
    """A picture or clip, and what the row says of it: bytes, a path, a link, or Hugging Face's pair of them."""

    kind: str
    value: object


@dataclass
class Said:
    """A turn whose pictures and clips have not been looked for."""

    role: str
    parts: list[str | Place | Named] = field(default_factory=list)
    trained: bool = True


def read_part(source: ChatSource, part: Part, folder: Path | None = None) -> Iterator[Chat | BadRecord]:
    """Yield every chat of a part, in order; one that cannot be read comes as a `BadRecord`.

    Pictures in rows come as bytes, clips there as temporary files, which whoever takes the chat removes. They are made
    in `folder`, by default the system's. What lies on a file system of the user's comes as its URL, and what does not
    as an untrusted link.

    Raises:
      OSError: if the storage is in trouble: then the unit fails and is done again, and nothing is committed.
    """
    return guarded(part, _chats(source, part, folder))


def _chats(source: ChatSource, part: Part, folder: Path | None) -> Generator[Chat | BadRecord]:
    root = Root(source.media_root or folder_of(part))
    for row in read_rows(source, part):
        yield _of_row(source, row, root, folder) if isinstance(row, Row) else row


def named_versions(source: ChatSource, part: Part) -> str:
    """Digest the sizes and versions of the files that chats name: a file that is replaced makes a new unit.

    "" where none are named, and for a dataset, whose own fingerprint says what it holds.
    """
    if source.dataset or not form_of(part.url) or not _may_name_files(source, part):
        return ""
    marks, some = hashlib.blake2b(digest_size=16), False
    for found in file_versions(source, part):
        marks.update(f"{found}\n".encode())
        some = some or bool(found)
    return marks.hexdigest() if some else ""


def file_versions(source: ChatSource, part: Part) -> Iterator[list[str]]:
    """Yield what tells one content of the files that a chat names from another, one list for each chat."""
    root = Root(source.media_root or folder_of(part))
    with damage_passed_over():
        for row in read_rows(source, part):
            yield _versions(source, row.values, root) if isinstance(row, Row) else []


def _may_name_files(source: ChatSource, part: Part) -> bool:
    """May rows of a part name files? Told without parsing them: all of UltraChat's name none."""
    if source.media:  # its path may be made of any column
        return True
    if form_of(part.url) == "parquet":
        return not set(NAMING).isdisjoint(begins_with(source, part))
    with damage_passed_over(), open_plain(part.url) as file:
        return any(KEY.search(block) or ESCAPED.search(block) for block in _blocks(file, part, row_bytes(source)))
    return True  # as far as it can be read


def _blocks(file: BinaryIO, part: Part, most: int) -> Iterator[bytes]:
    """Yield the bytes of a part, and of the line that ends behind it up to `most`, in blocks that overlap by a key."""
    if part.start:  # what is compressed is one part, and cannot seek
        file.seek(part.start)
    left, last = part.end - part.start if part.end >= 0 else sys.maxsize, b""
    while left > 0 and (block := file.read(min(BLOCK, left))):
        yield (seen := last + block)
        left, last = left - len(block), seen[-REACH:]
    if form_of(part.url) == "jsonl":
        yield last + file.readline(most)


def _versions(source: ChatSource, values: dict[str, Any], root: Root) -> list[str]:
    """Tell one content of a row's files from another; of what is not in files, nothing."""
    try:
        said = conversation(values, source.media)
        named = [part for turn in said for part in turn.parts if isinstance(part, Named)]
        return [root.version(_file(n, source, values, root).path) for n in named if _in_file(n.value)]
    except Unfit as flaw:
        return [flaw.reason]


def _in_file(value: object) -> bool:
    return isinstance(value, str) and not LINK.match(value) and not DATA.match(value)


def _of_row(source: ChatSource, row: Row, root: Root, folder: Path | None) -> Chat | BadRecord:
    """Make a chat of a row, or say what is wrong with it and remove its temporary files."""
    made: list[Media] = []

    def obtained(part: str | Place | Named) -> str | Medium:
        if isinstance(part, Named):
            made.append(_media(part, source, row.values, root, folder))
            return Medium(part.kind, made[-1])
        return str(part)

    try:
        said = conversation(row.values, source.media)
        turns = tuple(Turn(turn.role, tuple(map(obtained, turn.parts)), turn.trained) for turn in said)
        return Chat(row.record, row.where, turns, _others(row.values))
    except Unfit as flaw:
        for media in made:
            discard(media)
        return BadRecord(row.record, row.where, flaw.reason, flaw.detail, flaw.status)


def _others(values: dict[str, Any]) -> dict[str, Any]:
    """Take out of a row what was said, and what holds media; names of media stay."""
    media = {name for names in CHAT_MEDIA.values() for name in names if not _in_file(values.get(name))}
    gone = media.union(shape_of(_given(values))) - {"video_id"}
    return {name: value for name, value in values.items() if name not in gone}


def _given(values: dict[str, Any]) -> list[str]:
    """Name the columns of a row that hold something: a table has columns that only other rows need."""
    return [name for name, value in values.items() if value is not None]


def conversation(values: dict[str, Any], template: str | None = None) -> list[Said]:
    """Tell who says what in a row, and where which pictures and clips stand.

    Args:
      template: path of a picture or clip, with columns in braces.

    Raises:
      Unfit: if the row is no chat, or not a whole one.
    """
    said = _with_system(values, _said(values))
    if said[0].role == "system" and not any(part.strip() if isinstance(part, str) else part for part in said[0].parts):
        said = said[1:]
    _check_roles([turn.role for turn in said])
    named = _in_columns(values, template, said)
    if shape_of(_given(values)) in (MESSAGES, CONVERSATIONS):
        for turn in said:
            turn.parts = _split(turn, bool(named))
    _set_in_places(said, named)
    for number, turn in enumerate(said):
        _check_turn(turn, number)
    return _up_to_trained(said)


def _up_to_trained(said: list[Said]) -> list[Said]:
    """Leave out what follows the last answer that is trained: nothing learns from it."""
    last = max((n for n, turn in enumerate(said) if turn.role == "assistant" and turn.trained), default=None)
    if last is None:
        raise Unfit(DROPPED, "nothing to train", "all answers have weight 0")
    return said[: last + 1]


def _said(values: dict[str, Any]) -> list[Said]:
    """Read the turns of a row of any shape."""
    shape = shape_of(_given(values))
    if not shape:
        raise Unfit(FAILED, "unknown shape", f"a row of {', '.join(map(reprlib.repr, values)) or 'no columns'}"[:999])
    turns: Any = [values["q"], values["a"]] if shape == VIDEO_CHATGPT else values[shape[0]]
    if not isinstance(turns, list) or not turns:
        raise Unfit(FAILED, "no turns", f"found {reprlib.repr(turns)} as {shape[0]}, where a list is needed")
    if shape in (MESSAGES, CONVERSATIONS):
        return [_message(turn, number) for number, turn in enumerate(turns)]
    for number, turn in enumerate(turns):
        if not isinstance(turn, str | None):
            raise Unfit(FAILED, "no text", f"found {reprlib.repr(turn)} in turn {number}")
    return [Said("assistant" if n % 2 else "user", [turn or ""]) for n, turn in enumerate(turns)]


def _with_system(values: dict[str, Any], said: list[Said]) -> list[Said]:
    """Put a system text that stands in a column of its own before the turns."""
    texts = [values[name] for name in SYSTEM_COLUMNS if isinstance(values.get(name), str) and values[name].strip()]
    if not texts:
        return said
    if len(texts) > 1 or said[0].role == "system":
        raise Unfit(FAILED, "two system texts", f"one is {reprlib.repr(texts[0])}")
    return [Said("system", [texts[0]]), *said]


def _message(message: object, number: int) -> Said:
    """Read a turn as OpenAI's (role, content) or ShareGPT's (from, value)."""
    if not isinstance(message, dict):
        raise Unfit(FAILED, "unknown shape", f"turn {number} is {reprlib.repr(message)}, not role and content")
    role, content = (message.get(a) if message.get(a) is not None else message.get(b) for a, b in KEYS)
    if not isinstance(role, str) or role not in ROLES:
        raise Unfit(FAILED, "unknown role", f"turn {number} is by {reprlib.repr(role)}; known are {', '.join(ROLES)}")
    if calls := [key for key in CALLS if message.get(key)]:
        raise Unfit(DROPPED, "tool calls", f"{calls[0]} in turn {number}")
    return Said(ROLES[role], _parts(content, number), _is_trained(message, number))


def _is_trained(message: dict[str, Any], number: int) -> bool:
    """Read the weight that OpenAI's fine-tuning files give an answer: 0 or 1."""
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise Unfit(FAILED, "unknown weight", f"found {reprlib.repr(weight)} in turn {number}, where 0 or 1 may stand")
    return weight is None or bool(weight)


def _parts(content: object, number: int) -> list[str | Place | Named]:
    """Read what is said in a turn: a text, or a list of texts, pictures and clips."""
    if content is None or isinstance(content, str):
        return [content or ""]
    if not isinstance(content, list):
        raise Unfit(FAILED, "no text", f"found {reprlib.repr(content)} in turn {number}")
    return [_part(part, number) for part in content] or [""]


def _part(part: object, number: int) -> str | Place | Named:
    """Read a part of a turn as OpenAI's: text, image_url, video_url, and what others call them."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise Unfit(FAILED, "unknown part", f"found {reprlib.repr(part)} in turn {number}")
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    medium = kind.removeprefix("input_").removesuffix("_url")
    if medium not in FORM_OF_MEDIUM:
        raise Unfit(FAILED, "unknown part", f"{reprlib.repr(part)} in turn {number}")
    value = next((part[key] for key in (f"{medium}_url", medium, "url", "path") if part.get(key)), None)
    if isinstance(value, dict) and "url" in value:
        value = value["url"]
    return Place(medium) if value is None else Named(medium, _unwrapped(value))


def _check_roles(roles: list[str]) -> None:
    first = 1 if roles[:1] == ["system"] else 0
    for number, role in enumerate(roles[first:]):
        if role != ("user", "assistant")[number % 2]:
            raise Unfit(FAILED, "roles out of order", f"turn {number + first} is the {role}'s")
    if len(roles) == first:
        raise Unfit(FAILED, "no turns", "nothing but the system's")
    if roles[-1] == "user":
        raise Unfit(DROPPED, "no last answer", f"the last of {len(roles)} turns is the user's")


def _in_columns(values: dict[str, Any], template: str | None, said: list[Said]) -> list[Named]:
    """List the pictures and then the clips that columns of a row name, or that the template does where none do."""
    named: list[Named] = []
    known = {"video": ("video_id",)} if shape_of(_given(values)) == VIDEO_CHATGPT else CHAT_MEDIA
    for kind, columns in known.items():
        name = next((name for name in columns if values.get(name)), "")
        found = values.get(name) or []
        for value in found if isinstance(found, list) else [found]:
            path = isinstance(value, str) and template and filled(template, {**values, name: value})
            named.append(Named(kind, path or _unwrapped(value)))
    return named or _by_template(values, template, said)


def _unwrapped(value: object) -> object:
    """Take the path out of Hugging Face's pair of bytes and path where there are no bytes."""
    return value.get("path") if isinstance(value, dict) and not value.get("bytes") else value


def _by_template(values: dict[str, Any], template: str | None, said: list[Said]) -> list[Named]:
    """Take the one picture or clip whose path the template makes, where the text has a place for it."""
    texts = [part for turn in said for part in turn.parts if isinstance(part, str) and turn.role == "user"]
    place = next((found for text in texts if (found := BARE.search(text))), None)
    if not template or not place or any(column(values, name) is None for name in template_columns(template)):
        return []
    return [Named(_kind(place), filled(template, values))]


def _kind(place: re.Match[str]) -> str:
    return "video" if "video" in place.groups() else "image"


def _split(turn: Said, pictured: bool) -> list[str | Place | Named]:
    """Cut the places out of what the user says, each with the line ends that part it from the text."""
    parts: list[str | Place | Named] = []
    for part in turn.parts:
        if turn.role != "user" or not isinstance(part, str):
            parts.append(part)
        elif pictured:
            parts += _cut(part)
        elif place := BARE.search(part):
            raise Unfit(FAILED, "no medium for a place", f"{place[0].strip()}, but the row names no picture or clip")
        else:
            parts.append(part)
    return parts


def _cut(text: str) -> Iterator[str | Place]:
    done = 0
    for place in PLACE.finditer(text):
        yield text[done : place.start()]
        yield Place(_kind(place))
        done = place.end()
    yield text[done:]


def _set_in_places(said: list[Said], named: list[Named]) -> None:
    """Put what columns name in the places for it; without any place, behind the first question's text.

    A place for a picture takes a clip where there are only clips: LLaVA's successors write `<image>` for both.
    """
    mixed = len({medium.kind for medium in named}) > 1
    left = list(named)
    if all(isinstance(part, str) for turn in said for part in turn.parts):
        next(turn for turn in said if turn.role == "user").parts += left
        return
    for turn in said:
        for i, part in enumerate(turn.parts):
            if isinstance(part, Place):
                fits = next((n for n in left if not mixed or n.kind == part.kind), None)
                if fits is None:
                    raise Unfit(FAILED, "no medium for a place", f"<{part.kind}>, after {len(named) - len(left)} media")
                left.remove(fits)
                turn.parts[i] = fits
    if left:
        raise Unfit(FAILED, "medium without a place", f"{len(left)} of {len(named)}")


def _check_turn(turn: Said, number: int) -> None:
    """Check the words of a turn, and join those that nothing parts."""
    parts: list[str | Place | Named] = []
    for part in turn.parts:
        if isinstance(part, str) and part and parts and isinstance(parts[-1], str):
            parts[-1] = f"{parts[-1]}\n{part}"
        elif part != "":
            parts.append(part)
    turn.parts = [part for part in parts if not isinstance(part, str) or part.strip()]
    for part in turn.parts:
        if isinstance(part, str):
            checked(part, f"turn {number}")
        elif turn.role != "user":
            raise Unfit(FAILED, "medium in an answer", f"turn {number} is the {turn.role}'s")
    if not turn.parts:
        raise Unfit(DROPPED, "empty answer" if turn.role == "assistant" else "empty question", f"turn {number}")


def _media(named: Named, source: ChatSource, values: dict[str, Any], root: Root, folder: Path | None) -> Media:
    """Say where a picture or clip is."""
    form, value = FORM_OF_MEDIUM[named.kind], named.value
    if isinstance(value, str) and LINK.match(value):
        return Media(link=value)
    if isinstance(value, str) and (head := DATA.match(value)):
        return hold_bytes(_decoded(value, head.end(), source.record_bytes), form, folder)
    if isinstance(value, str):
        return _file(named, source, values, root)
    return held(value, form, source.record_bytes, root, folder)


def _decoded(url: str, begin: int, most: int) -> bytes:
    if (size := (len(url) - begin) // 4 * 3) > most + 2:
        raise Unfit(FAILED, "too large", f"about {size} bytes, over record_bytes = {most}")
    try:
        data = base64.b64decode(url[begin:], validate=True)
    except ValueError as error:
        raise Unfit(FAILED, "bad data URL", str(error)) from None
    if not data or len(data) > most:
        raise Unfit(FAILED, "too large" if data else "bad data URL", f"{len(data)} bytes")
    return data


def _file(named: Named, source: ChatSource, values: dict[str, Any], root: Root) -> Media:
    """Find the file of a name: Valley's lie in a folder for each source, and a name may lack its suffix."""
    form, name = FORM_OF_MEDIUM[named.kind], str(named.value).removesuffix(FEATURES)
    folder = None if source.media or named.kind == "image" else values.get("source")
    names = [f"{folder}/{name}", name] if isinstance(folder, str) and folder else [name]
    suffixes = [] if form_of(name) else [suffix for suffix, known in FORMS.items() if known == form]
    return at(existing([name + suffix for name in names for suffix in ["", *suffixes]], root), form, root)
