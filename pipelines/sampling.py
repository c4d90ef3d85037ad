"""A sample of a source: records from all over it, and how far into its bytes each of them leads."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..sources import ChatSource, Source, TextSource
from .reading.damage import DAMAGE
from .reading.files import TABLES, codec_of, form_of, open_raw
from .reading.listing import ROW_COST
from .reading.tables import offset_in
from .records import BadRecord, Chat, Fields, Found, ImageText
from .tokenize import read
from .units import Part

PARTS = 64  # that a sample is spread over first
MEMBER = 768  # bytes of a tar's member besides its content: a header, and what fills up its last block of 512
HEAD, PLAIN = 2**20, 2**26  # bytes of a compressed file that show how much it is compressed, and made of them at most

T = TypeVar("T")


def sample(source: Source, parts: list[tuple[Part, int]], folder: Path) -> Iterator[tuple[Found, float]]:
    """Yield a source's records, those of parts all over it first, each with the bytes read up to its end.

    The bytes are those of the parts, as listed: exact at the end of a part, and estimated within it.

    Args:
      folder: temporary files are made there.
    """
    done = 0
    for part, size in spread(parts):
        share, rows, squeezed = 0.0, rows_of(source, part, size), squeeze(part.url)
        plain = max(1, part.size if part.end < 0 else part.end - part.start) / squeezed
        for count, (found, last) in enumerate(marked(read(source, part, folder)), 1):
            offset = None if rows else offset_in(found.where)
            if offset is not None:  # those that cannot be read count when the next one is
                share = max(share, (offset - part.start) / plain)
            if offset is None or not isinstance(found, BadRecord):
                share += 1 / rows if rows else plain_bytes(found, form_of(part.url)) / plain
            yield found, done + size * (1.0 if last else min(share, count / (count + 1)))  # at least one is to come
        done += size


def spread(parts: list[T]) -> Iterator[T]:
    """Yield parts from all over a source: some 64 first, then those between, until all were."""
    order = np.argsort(np.arange(len(parts)) % max(1, len(parts) // PARTS), kind="stable")
    return (parts[i] for i in order)


def marked(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item and whether it is the last."""
    before: list[T] = []
    for item in items:
        if before:
            yield before.pop(), False
        before.append(item)
    for item in before:
        yield item, True


def rows_of(source: Source, part: Part, size: int) -> float:
    """Count the rows of a part, or estimate them as its listing does; 0 where they must be read to be counted."""
    form = form_of(part.url)
    if source.dataset or not form:
        return part.end - part.start
    if form == "parquet":
        return _parquet_rows(source, part)
    if form in TABLES and not isinstance(source, TextSource | ChatSource) and not codec_of(part.url):
        return size / ROW_COST[source.kind]
    return 0


def _parquet_rows(source: Source, part: Part) -> int:
    if not isinstance(source, TextSource) and part.end >= 0:
        return part.end - part.start
    with suppress(*DAMAGE), open_raw(part.url) as raw:
        footer = pq.ParquetFile(pa.PythonFile(raw, mode="r")).metadata
        groups = range(part.start, footer.num_row_groups if part.end < 0 else part.end)
        return sum(footer.row_group(group).num_rows for group in groups)
    return 0


def squeeze(url: str) -> float:
    """Return the bytes of a compressed file that hold one plain byte, by its beginning; 1 for any other file."""
    if not (codec := codec_of(url)):
        return 1.0
    plain = 0
    with suppress(*DAMAGE), open_raw(url) as raw:
        head = raw.read(HEAD)
        stream = pa.CompressedInputStream(pa.BufferReader(head), codec)
        with suppress(*DAMAGE):  # it is cut off
            while plain < PLAIN and (block := stream.read(2**16)):
                plain += len(block)
        return len(head) / plain if plain else 1.0
    return 1.0


def plain_bytes(found: Found, form: str) -> int:
    """Estimate the bytes that a record takes in a tar, in a file of lines or in an array."""
    if isinstance(found, BadRecord):
        return MEMBER
    if form in ("csv", "tsv"):
        return sum(_length(str(value)) + 1 for value in found.columns.values())
    columns = _length(str(found.columns)) if found.columns else 0
    if isinstance(found, Chat):
        return columns + sum(_length(turn.text) for turn in found.turns)
    if form == "jsonl" or isinstance(found, Fields):
        return columns
    members = [_length(found.text), *[columns] * bool(columns)]
    if isinstance(found, ImageText):
        members.append(_media_bytes(found))
    return sum(MEMBER + size for size in members)


def _media_bytes(found: ImageText) -> int:
    media = found.media
    return Path(media.path).stat().st_size if media.temporary else len(media.data)


def _length(text: str) -> int:
    return len(text.encode(errors="replace"))
