"""Columns: what a recipe names, what published tables call it, and what a table at hand has."""

from collections.abc import Collection
from typing import Any, NamedTuple

import pyarrow as pa

from ...sources import ChatSource, MediaSource, Source, TextSource, template_columns

# What published tables call things, the first that is there: LAION, COYO, img2dataset, ImageFolder, WebVid, InternVid.
CAPTIONS = {"image-text": ("caption", "TEXT", "text"), "video-text": ("caption", "Caption", "text", "TEXT", "name")}
MEDIA = {
    "image-text": ("image", "jpg", "png", "webp", "file_name", "file"),
    "video-text": ("video", "mp4", "webm", "file_name", "file"),
}
URLS = {"image-text": ("url", "URL"), "video-text": ("url", "URL", "contentUrl")}
START, END = "Start_timestamp", "End_timestamp"
INTERNVID = ("{YoutubeID}.mp4",)
WEBVID = ("{page_dir}/{videoid}.mp4", "{videoid}.mp4")  # as video2dataset and as the first downloaders wrote them

# By which columns the rows of published chats are known, the first that are all there: OpenAI's and later editions of
# UltraChat; ShareGPT4V, LLaVA and Valley; UltraChat; Video-ChatGPT.
MESSAGES, CONVERSATIONS, ULTRACHAT, VIDEO_CHATGPT = ("messages",), ("conversations",), ("data",), ("q", "a", "video_id")
SHAPES = (MESSAGES, CONVERSATIONS, ULTRACHAT, VIDEO_CHATGPT)
SYSTEM_COLUMNS = ("system", "system_prompt")
CHAT_MEDIA = {"image": ("image", "images"), "video": ("video", "videos")}


class Roles(NamedTuple):
    """Which column says what. Exactly one of `paths`, `media` and `url` says where the picture or clip is, if any.

    Attributes:
      paths: templates of a file's path, of which the first that leads to a file is taken.
    """

    caption: str | None
    paths: tuple[str, ...] = ()
    media: str | None = None
    url: str | None = None
    start: str | None = None
    end: str | None = None


def roles(source: MediaSource, names: Collection[str]) -> Roles:
    """Tell the columns of a table apart: by the recipe, else by the names that were published."""
    caption = source.columns.caption or _first(CAPTIONS[source.kind], names)
    found = _origin(source, names)._replace(caption=caption)
    if source.kind == "image-text":
        return found
    if found.paths == INTERNVID or found.url:  # whole videos, of which a row is a part
        found = found._replace(start=_first((START,), names), end=_first((END,), names))
    columns = source.columns
    start, end = (found.start if columns.start is None else columns.start), columns.end
    return found._replace(start=start or None, end=(found.end if end is None else end) or None)


def _unsaid(source: MediaSource, names: Collection[str]) -> bool:
    """Are there InternVid's times beside files of another name, of which nobody says whether they are cut already?"""
    if source.kind != "video-text" or START not in names or source.columns.start is not None:
        return False
    named = [column for path in roles(source, names).paths for column in template_columns(path)]
    return not roles(source, names).start and START not in named


def _origin(source: MediaSource, names: Collection[str]) -> Roles:
    if source.media:
        return Roles(None, paths=(source.media,))
    if source.columns.media or source.columns.url:
        return Roles(None, media=source.columns.media, url=None if source.columns.media else source.columns.url)
    if media := _first(MEDIA[source.kind], names):
        return Roles(None, media=media)
    if source.kind == "video-text" and "YoutubeID" in names:
        return Roles(None, paths=INTERNVID)
    if source.kind == "video-text" and source.media_root and {"page_dir", "videoid"} <= set(names):
        return Roles(None, paths=WEBVID)
    return Roles(None, url=_first(URLS[source.kind], names))


def _first(published: tuple[str, ...], names: Collection[str]) -> str | None:
    return next((name for name in published if name in names), None)


def shape_of(names: Collection[str]) -> tuple[str, ...]:
    """Tell which published chats have such columns. Returns those of the shape that tell it; () if none has."""
    return next((shape for shape in SHAPES if all(name in names for name in shape)), ())


def column(row: dict[str, Any], name: str) -> Any:
    """Look up a column; dots lead into nested ones. None where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def lacking(source: Source, schema: pa.Schema) -> str:
    """Say which column that a source reads is not in a schema, or twice, and what is there; or ""."""
    there = f"it has {', '.join(map(_spelled, schema)) or 'none that can be read'}"
    for name in _read_columns(source, schema.names):
        if not _has_column(schema, name):
            return f"no column {name}; {there}"
        if schema.names.count(name) > 1:
            return f"two columns {name}; {there}"
    if isinstance(source, TextSource):
        return _untextual(schema, source.columns.text)
    if isinstance(source, ChatSource):
        known = "; ".join(" and ".join(shape) for shape in SHAPES)
        return "" if shape_of(schema.names) else f"no columns of a known shape of chats ({known}); {there}"
    found = roles(source, schema.names)
    if _unsaid(source, schema.names):
        return f'the times {START} and {END}, by which the files may be cut already (columns.start and end: "") or not'
    if not found.caption:
        return f"no column that is known to hold captions ({', '.join(CAPTIONS[source.kind])}); {there}"
    if not (found.paths or found.media or found.url):
        known = ", ".join(MEDIA[source.kind] + URLS[source.kind])
        return f"no column that is known to hold media, paths or URLs ({known}); {there}"
    return _untextual(schema, found.caption) or (_untextual(schema, found.url) if found.url else "")


def _untextual(schema: pa.Schema, name: str) -> str:
    """Say that a column holds no text where its type tells; or ""."""
    kind = _type_of(schema, name)
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return "" if any(check(inner) for check in checks) else f"a column {name} of type {kind}, where text is needed"


def selected(source: Source, names: list[str]) -> list[str]:
    """Name the top-level columns that a source reads, given those that there are."""
    urls = [name for name in names if name.lower() == "url"]  # a deny list may name them
    wanted = [*_read_columns(source, names), *urls]
    if isinstance(source, ChatSource):
        known = {"source", *SYSTEM_COLUMNS, *sum(SHAPES, ()), *sum(CHAT_MEDIA.values(), ())}
        wanted += known & set(names)
    return sorted({name if name in names else name.split(".")[0] for name in wanted})


def _read_columns(source: Source, names: list[str]) -> list[str]:
    if isinstance(source, TextSource):
        return [source.columns.text, *filter(None, [source.columns.id]), *source.filters.equals]
    if isinstance(source, ChatSource):
        placed = template_columns(source.media or "")
        return [*filter(None, [source.columns.id]), *placed, *source.filters.equals]
    found, columns, filters = roles(source, names), source.columns, source.filters
    placed = [name for path in found.paths for name in template_columns(path)]
    named = filter(None, [columns.id, columns.url, found.caption, found.media, found.url, found.start, found.end])
    return [*named, *placed, *filters.equals, *filters.at_least, *filters.at_most]


def _has_column(schema: pa.Schema, name: str) -> bool:
    return _type_of(schema, name) is not None


def _type_of(schema: pa.Schema, name: str) -> Any:
    """Return a column's type, None where there is none; dots lead into nested ones."""
    fields = {field.name: field.type for field in schema}
    if name in fields:
        return fields[name]
    top, *rest = name.split(".")
    kind = fields.get(top)
    for part in rest:
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return kind


def _spelled(field: pa.Field) -> str:
    inner = [f"{field.name}.{f.name}" for f in field.type] if pa.types.is_struct(field.type) else []
    return ", ".join([field.name, *inner])
