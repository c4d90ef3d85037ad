"""Text documents: what each form of file holds, one record after the other, the bad ones named."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..recipe import BookColumns, BooksSource
from .files import SAVED, form_of, open_plain, open_raw
from .units import Part

BLOCK = 2**20
PARQUET_ROWS = 64  # rows decoded at once: long texts make them large
DAMAGE = (OSError, EOFError, pa.ArrowException, tarfile.TarError)  # what broken files and streams raise


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


Found = TextDocument | BadRecord


def read_part(source: BooksSource, part: Part, record_bytes: int) -> Iterator[Found]:
    """Yield every record of a part, in order; one that cannot be read comes as a `BadRecord`.

    Args:
      record_bytes: a record with more bytes is bad.
    """
    if source.dataset or form_of(part.url) == "":
        yield from _rows(load_hugging_face(source), part, source.columns)
        return
    readers = {"txt": _text_file, "jsonl": _json_lines, "parquet": _parquet, "tar": _tar}
    try:
        yield from readers[form_of(part.url)](part, source, record_bytes)
    except DAMAGE as error:
        yield BadRecord(f"{part.id}#damaged", part.url, "damaged file", f"{type(error).__name__}: {error}")


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
        return BadRecord(record, where, "too large", f"more than limits.record_bytes = {record_bytes} bytes")
    try:
        return TextDocument(record, where, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRecord(record, where, "not UTF-8", f"{error.reason} at byte {error.start}: convert it to UTF-8")


def _json_lines(part: Part, source: BooksSource, record_bytes: int) -> Iterator[Found]:
    """Read the lines whose first byte lies in the part, so that ranges share no line and miss none."""
    with open_plain(part.url) as file:
        offset = _seek_line(file, part.start)
        while (part.end < 0 or offset < part.end) and (line := file.readline(record_bytes + 1)):
            record, where = f"{part.id}@{offset}", f"{part.url} at byte {offset}"
            offset += len(line)
            if len(line) > record_bytes and not line.endswith(b"\n"):
                offset += _skip_line(file)
                yield BadRecord(
                    record, where, "too large", f"a line of over limits.record_bytes = {record_bytes} bytes"
                )
            elif line.strip():
                yield _json_line(record, where, line, source.columns)


def _seek_line(file: BinaryIO, start: int) -> int:
    """Go to the first line that begins at or after `start`. Returns its offset."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + _skip_line(file)


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while line := file.readline(BLOCK):
        skipped += len(line)
        if line.endswith(b"\n"):
            break
    return skipped


def _json_line(record: str, where: str, line: bytes, columns: BookColumns) -> Found:
    try:
        data = json.loads(line)
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
        if not isinstance(name, str | int) or name == "":
            return BadRecord(record, where, "no id", f"column {columns.id} holds {name!r:.80}")
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
        wanted = top_columns(source, file.schema_arrow.names)
        if missing := sorted(set(wanted) - set(file.schema_arrow.names)):
            have = ", ".join(file.schema_arrow.names)
            yield BadRecord(f"{part.id}#columns", part.url, "no such column", f"no {missing[0]}; it has {have}")
            return
        groups = range(part.start, file.num_row_groups if part.end < 0 else part.end)
        first = sum(file.metadata.row_group(g).num_rows for g in range(part.start))
        batches = file.iter_batches(PARQUET_ROWS, row_groups=list(groups), columns=wanted)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, first):
            yield _capped(_row(f"{part.id}#{number}", f"{part.url} row {number}", row, source.columns), record_bytes)


def top_columns(source: BooksSource, names: list[str]) -> list[str]:
    """Name the top-level columns that a source reads, given those that there are."""
    urls = [name for name in names if name.lower() == "url"]  # a deny list may name them
    read = [source.columns.text, *filter(None, [source.columns.id]), *source.filters.equals, *urls]
    return sorted({name if name in names else name.split(".")[0] for name in read})


def _capped(found: Found, record_bytes: int) -> Found:
    if isinstance(found, TextDocument) and len(found.text) > record_bytes:
        return BadRecord(found.record, found.where, "too large", f"over limits.record_bytes = {record_bytes}")
    return found


def _tar(part: Part, source: BooksSource, record_bytes: int) -> Iterator[Found]:
    with open_plain(part.url) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.isdir():
                continue
            record, where = f"{part.id}/{member.name}", f"{part.url} member {member.name}"
            if not member.isfile() or ".." in member.name.split("/") or member.name.startswith("/"):
                yield BadRecord(record, where, "no plain member", "a link, a device, or a path outside the archive")
            elif not member.name.lower().endswith(".txt"):
                yield BadRecord(record, where, "no text member", "only .txt members are read")
            else:
                content = archive.extractfile(member)
                assert content is not None, member.name  # isfile() was true
                yield _decoded(record, where, _read_capped(content, record_bytes), record_bytes)  # type: ignore[arg-type]


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
    except (OSError, ValueError) as error:
        name = source.dataset or source.paths[0]
        raise UserError(f"source {source.name}: the dataset {name} cannot be opened: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if source.split not in loaded:
            raise UserError(f"source {source.name}: no split {source.split}; it has {', '.join(loaded)}")
        return loaded[source.split]
    return loaded


def _rows(dataset: Any, part: Part, columns: BookColumns) -> Iterator[Found]:
    for number in range(part.start, part.end):
        yield _row(f"{part.id}#{number}", f"{part.url} row {number}", dataset[number], columns)


def is_saved_dataset(path: str) -> bool:
    """Is this a folder that `save_to_disk` made?"""
    fs, root = fsspec.core.url_to_fs(path)
    return any(fs.exists(f"{root}/{name}") for name in SAVED)
