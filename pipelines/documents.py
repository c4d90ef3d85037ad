"""Text documents: what each form of file holds, one record after the other, the bad ones named."""

import json
import reprlib
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..packing.ledger import DROPPED, FAILED
from ..recipe import BookColumns, BooksSource
from .archive import is_outside, members
from .files import SAVED, filesystem, form_of, hidden, is_storage_trouble, open_plain, open_raw
from .units import Part

BLOCK = 2**20
TABLE_ROWS = 64  # rows decoded at once: long texts make them large
DAMAGE = (OSError, EOFError, UnicodeError, pa.ArrowException, tarfile.TarError)  # what broken files and streams raise


@dataclass(frozen=True)
class TextDocument:
    """A text with its stable id, and where it was found."""

    record: str
    where: str
    text: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be read: a short reason that is counted, and the details."""

    record: str
    where: str
    reason: str
    error: str
    status: str = FAILED


Found = TextDocument | BadRecord


def read_part(source: BooksSource, part: Part) -> Iterator[Found]:
    """Yield every record of a part, in order; one that cannot be read comes as a `BadRecord`.

    Raises:
      OSError: if the storage is in trouble: then the unit fails and is done again, and nothing is committed.
    """
    readers = {"txt": _text_file, "jsonl": _json_lines, "parquet": _parquet, "tar": _tar}
    read = _rows if source.dataset else readers.get(form_of(part.url), _rows)
    try:
        yield from map(_storable, read(part, source, source.record_bytes))
    except DAMAGE as error:
        if is_storage_trouble(error):
            raise
        bad = BadRecord(f"{part.id}#damaged", part.url, "damaged file", f"{type(error).__name__}: {error}")
        yield _storable(bad)


def _storable(found: Found) -> Found:
    if found.record.isascii() and found.where.isascii():
        return found
    return replace(found, record=storable(found.record), where=storable(found.where))


def storable(name: str) -> str:
    """Escape what UTF-8 has no bytes for: file names may hold any bytes, and JSON half a surrogate pair."""
    return name.encode("utf-8", "backslashreplace").decode()


def _text_file(part: Part, source: BooksSource, record_bytes: int) -> Iterator[Found]:
    with open_plain(part.url) as file:
        yield _decoded(part.id, part.url, _read_capped(file, record_bytes), record_bytes)


def _read_capped(file: BinaryIO, most: int) -> bytes:
    """Read a stream, and no more than one byte over the cap."""
    blocks: list[bytes] = []
    left = most + 1
    while left > 0 and (block := file.read(min(BLOCK, left))):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def _decoded(record: str, where: str, data: bytes, record_bytes: int) -> Found:
    if len(data) > record_bytes:
        return BadRecord(record, where, "too large", f"more than record_bytes = {record_bytes} bytes")
    try:
        return TextDocument(record, where, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRecord(record, where, "not UTF-8", f"{error.reason} at byte {error.start}: convert it to UTF-8")


def _json_lines(part: Part, source: BooksSource, record_bytes: int) -> Iterator[Found]:
    """Read the lines whose first byte lies in the part, so that ranges share no line and miss none."""
    end = part.end if part.end >= 0 else sys.maxsize
    with open_plain(part.url) as file:
        offset = _seek_line(file, part.start, end)
        while offset < end and (line := file.readline(record_bytes + 1)):
            record, where = f"{part.id}@{offset}", f"{part.url} at byte {offset}"
            offset += len(line)
            if len(line) > record_bytes and not line.endswith(b"\n"):
                offset += _skip_line(file, end - offset)
                yield BadRecord(record, where, "too large", f"a line of over record_bytes = {record_bytes} bytes")
            elif line.strip():
                yield _json_line(record, where, line, source.columns)
    if not offset:  # an empty file is no record, but is not passed over in silence
        yield TextDocument(part.id, part.url, "")


def _seek_line(file: BinaryIO, start: int, end: int) -> int:
    """Go to the first line that begins at or after `start`. Returns its offset, or one from `end` on."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + _skip_line(file, end - start + 1)


def _skip_line(file: BinaryIO, most: int) -> int:
    """Read on to the end of the line, or over `most` bytes: a line of many parts is not read by each to its end."""
    skipped = 0
    while skipped < most and (line := file.readline(min(BLOCK, most - skipped))):
        skipped += len(line)
        if line.endswith(b"\n"):
            break
    return skipped


def _json_line(record: str, where: str, line: bytes, columns: BookColumns) -> Found:
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRecord(record, where, "not UTF-8", f"{error.reason} at byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith(b"\n") else "; the file ends inside this line"
        return BadRecord(record, where, "not JSON", f"{error}{cut}")
    return _row(record, where, data, columns)


def _row(record: str, where: str, data: Any, columns: BookColumns) -> Found:
    """Make a document of a row's columns."""
    if not isinstance(data, dict):
        return BadRecord(record, where, "no row", f"found {type(data).__name__} where columns are needed")
    if columns.id is not None:
        name = column(data, columns.id)
        if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
            return BadRecord(record, where, "no id", f"column {columns.id} holds {reprlib.repr(name)}")
        record = str(name)
    text = column(data, columns.text)
    if not isinstance(text, str):
        return BadRecord(record, where, "no text", f"column {columns.text} holds {type(text).__name__}, not a string")
    return TextDocument(record, where, text, data)


def column(row: dict[str, Any], name: str) -> Any:
    """Look up a column; dots lead into nested ones. None where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _parquet(part: Part, source: BooksSource, record_bytes: int) -> Iterator[Found]:
    with open_raw(part.url) as raw:
        file = pq.ParquetFile(pa.PythonFile(raw, mode="r"))
        if lack := missing_column(source, file.schema_arrow):
            yield BadRecord(f"{part.id}#columns", part.url, "no such column", lack)
            return
        groups = range(part.start, file.num_row_groups if part.end < 0 else part.end)
        first = sum(file.metadata.row_group(g).num_rows for g in range(part.start))
        columns = _top_columns(source, file.schema_arrow.names)
        batches = file.iter_batches(TABLE_ROWS, row_groups=list(groups), columns=columns)
        yield from _table_rows(batches, first, part, source, record_bytes)


def _table_rows(
    tables: Iterable[pa.Table | pa.RecordBatch], first: int, part: Part, source: BooksSource, record_bytes: int
) -> Iterator[Found]:
    """Make documents of tables' rows, one in Python at once; `first` is the number of the first."""
    for table in tables:
        columns = list(zip(table.column_names, table.columns, strict=True))
        for i in range(table.num_rows):
            record, where = f"{part.id}#{first + i}", f"{part.url} row {first + i}"
            try:
                found = _row(record, where, {name: c[i].as_py() for name, c in columns}, source.columns)
            except ValueError as error:  # Arrow checks no strings, and Python has no nanoseconds
                reason = "not UTF-8" if isinstance(error, UnicodeError) else "unreadable row"
                found = BadRecord(record, where, reason, str(error))
            yield _capped(found, record_bytes)
        first += table.num_rows


def missing_column(source: BooksSource, schema: pa.Schema) -> str:
    """Say which column that a source reads is not in a schema, and what is there; or ""."""
    lacks = [name for name in _read_columns(source) if not _has_column(schema, name)]
    return f"no column {lacks[0]}; it has {', '.join(map(_spelled, schema))}" if lacks else ""


def _read_columns(source: BooksSource) -> list[str]:
    return [source.columns.text, *filter(None, [source.columns.id]), *source.filters.equals]


def _has_column(schema: pa.Schema, name: str) -> bool:
    fields = {field.name: field.type for field in schema}
    if name in fields:
        return True
    top, *rest = name.split(".")
    kind = fields.get(top, pa.null())
    for part in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return False
        kind = kind.field(part).type
    return top in fields


def _spelled(field: pa.Field) -> str:
    inner = [f"{field.name}.{f.name}" for f in field.type] if pa.types.is_struct(field.type) else []
    return ", ".join([field.name, *inner])


def _top_columns(source: BooksSource, names: list[str]) -> list[str]:
    """Name the top-level columns that a source reads, given those that there are."""
    urls = [name for name in names if name.lower() == "url"]  # a deny list may name them
    return sorted({name if name in names else name.split(".")[0] for name in [*_read_columns(source), *urls]})


def _capped(found: Found, record_bytes: int) -> Found:
    if isinstance(found, TextDocument) and _is_longer(found.text, record_bytes):
        return BadRecord(found.record, found.where, "too large", f"over record_bytes = {record_bytes}")
    return found


def _is_longer(text: str, most: int) -> bool:
    """Has a text more bytes than `most` as UTF-8? A character has one to four."""
    return len(text) > most or (4 * len(text) > most and len(text.encode()) > most)


def _tar(part: Part, source: BooksSource, record_bytes: int) -> Iterator[Found]:
    with open_plain(part.url) as stream:
        for member, content in members(stream):
            record, where = f"{part.id}/{member.name}", f"{part.url} member {member.name}"
            if content is None or is_outside(member.name):
                yield BadRecord(record, where, "no plain member", "a link, a device, or a path outside the archive")
            elif not member.name.lower().endswith(".txt") or hidden(member.name.removeprefix("./")):
                yield BadRecord(record, where, "no text member", "no .txt, or hidden", DROPPED)
            else:
                yield _decoded(record, where, _read_capped(content, record_bytes), record_bytes)


def load_hugging_face(source: BooksSource) -> Any:
    """Open a Hugging Face dataset, named or saved on disk.

    Raises:
      UserError: if it is not there, or has no such split.
    """
    import datasets

    try:
        if source.dataset:
            return datasets.load_dataset(source.dataset, split=source.split)
        loaded = datasets.load_from_disk(source.paths[0])
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        name = source.dataset or source.paths[0]
        raise UserError(f"source {source.name}: the dataset {name} cannot be opened: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if source.split not in loaded:
            raise UserError(f"source {source.name}: no split {source.split}; it has {', '.join(loaded)}")
        return loaded[source.split]
    return loaded


def _rows(part: Part, source: BooksSource, record_bytes: int) -> Iterator[Found]:
    dataset = load_hugging_face(source)
    dataset = dataset.select_columns(_top_columns(source, dataset.column_names)).with_format("arrow")
    starts = range(part.start, part.end, TABLE_ROWS)
    tables = (dataset[low : min(low + TABLE_ROWS, part.end)] for low in starts)
    yield from _table_rows(tables, part.start, part, source, record_bytes)


def is_saved_dataset(path: str) -> bool:
    """Is this a folder that `save_to_disk` made?"""
    fs, root = filesystem(path)
    return any(fs.exists(f"{root}/{name}") for name in SAVED)
