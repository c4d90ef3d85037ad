"""Rows of tables: JSON, JSONL, CSV, parquet and Hugging Face datasets, one after the other, the bad ones named."""

import csv
import json
import re
import reprlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import UserError
from ...packing.ledger import DROPPED, FAILED
from ...sources import ChatSource, Source, TextSource
from ..media import Unfit
from ..records import BadRecord
from ..units import Part
from .columns import column, lacking, selected
from .files import BUFFER, SAVED, filesystem, form_of, open_plain, open_raw
from .json_arrays import read_elements
from .lines import BOM, Line, csv_records, read_lines

ROW_BYTES = 2**20  # a line of captions and scores is shorter; one of a book may be as long as record_bytes
CHAT_BYTES = 2**25  # a chat may hold its pictures, written out in letters
TABLE_ROWS = 64  # rows decoded at once: long texts make them large
PLACE = re.compile(r" at byte (\d+)\Z")
QUOTED = re.compile(r'"((?:[^"]|"")*)"')


class Row(NamedTuple):
    """A row of a table with its stable id, and where it was found."""

    record: str
    where: str
    values: dict[str, Any]


def read_rows(source: Source, part: Part) -> Generator[Row | BadRecord]:
    """Yield the rows of a part, in order; one that cannot be read comes as a `BadRecord`.

    Raises:
      OSError, pyarrow.ArrowException: if the file is damaged.
    """
    readers = {"json": _array_rows, "jsonl": _json_rows, "csv": _csv_rows, "tsv": _csv_rows, "parquet": _parquet_rows}
    read = _dataset_rows if source.dataset else readers.get(form_of(part.url), _dataset_rows)
    for row in read(source, part):
        yield _named(row, source.columns.id) if source.columns.id and isinstance(row, Row) else row


def _named(row: Row, name: str) -> Row | BadRecord:
    try:
        return row._replace(record=name_in(row.values, name))
    except Unfit as flaw:
        return BadRecord(row.record, row.where, flaw.reason, flaw.detail)


def name_in(values: dict[str, Any], name: str) -> str:
    """Return what a column names its record.

    Raises:
      Unfit: if that is no name.
    """
    value = column(values, name)
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise Unfit(FAILED, "no id", f"column {name} holds {reprlib.repr(value)}")
    return str(value)


def row_bytes(source: Source) -> int:
    """Return how long a line may be, or an element of an array."""
    if isinstance(source, TextSource):
        return source.record_bytes
    return CHAT_BYTES if isinstance(source, ChatSource) else min(source.record_bytes, ROW_BYTES)


def _json_rows(source: Source, part: Part) -> Iterator[Row | BadRecord]:
    most = row_bytes(source)
    with open_plain(part.url) as file:
        line = None
        for line in read_lines(file, part.start, part.end, most):
            record, where = _place(part, line)
            if not line.whole:
                yield BadRecord(record, where, "too large", f"a line of over {most} bytes")
            elif line.data.strip():
                yield _json_row(record, where, line.data)
    if not part.start and not line:
        yield _empty(part)


def _array_rows(source: Source, part: Part) -> Iterator[Row | BadRecord]:
    most = row_bytes(source)
    with open_plain(part.url) as file:
        line = None
        for line in read_elements(file, part.start, part.end, most):
            record, where = _place(part, line)
            if not line.whole:
                yield BadRecord(record, where, "too large", f"an element of over {most} bytes")
            elif line.data:
                yield _json_row(record, where, line.data + b"\n")
            else:
                yield BadRecord(record, where, "not JSON", "the file ends before its array does")
    if not part.start and not line:
        yield BadRecord(part.id, part.url, "empty", "an array of nothing", DROPPED)


def _place(part: Part, line: Line) -> tuple[str, str]:
    return f"{part.id}@{line.offset}", f"{part.url} at byte {line.offset}"


def offset_in(where: str) -> int | None:
    """Return the byte that a place in a file of lines or in an array names, None for other places."""
    found = PLACE.search(where)
    return int(found[1]) if found else None


def _empty(part: Part) -> BadRecord:
    return BadRecord(part.id, part.url, "empty", "a file of no bytes", DROPPED)


def _json_row(record: str, where: str, line: bytes) -> Row | BadRecord:
    values = parse_json(line)
    if isinstance(values, dict):
        return Row(record, where, values)
    reason, detail = values
    cut = "" if line.endswith(b"\n") or reason != "not JSON" else "; the file ends inside this line"
    return BadRecord(record, where, reason, detail + cut)


def parse_json(data: bytes) -> dict[str, Any] | tuple[str, str]:
    """Read a JSON object. Returns it, or a reason and details where it is none."""
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return "not UTF-8", f"{error.reason} at byte {error.start}"
    except (ValueError, RecursionError) as error:
        return "not JSON", str(error)
    if not isinstance(values, dict):
        return "no row", f"found {type(values).__name__} where columns are needed"
    return values


def _csv_rows(source: Source, part: Part) -> Iterator[Row | BadRecord]:
    most, form = row_bytes(source), form_of(part.url)
    header = read_header(part.url, most)
    if header is None:
        yield _empty(part)
        return
    if lack := lacking(source, text_schema(header)):
        yield BadRecord(f"{part.id}#columns", part.url, "no such column", lack)
        return
    with open_plain(part.url) as file:
        for line in table_lines(file, part, most):
            record, where = _place(part, line)
            if line.offset and (fields := _csv_fields(line, form, most)):
                yield _csv_row(record, where, header, fields)


def table_lines(file: BinaryIO, part: Part, most: int) -> Iterator[Line]:
    """Yield the records of a CSV or TSV file, the header among them. Only CSV's may hold line ends, in quotes."""
    lines = read_lines(file, part.start, part.end, most)
    return csv_records(lines, most) if form_of(part.url) == "csv" else lines


def read_header(url: str, most: int) -> list[str] | None:
    """Read the names of a CSV or TSV file's columns: none from an unreadable first line, None from an empty file."""
    with open_plain(url) as file:
        line = next(table_lines(file, Part("", url, 0, -1, 0, ""), most), None)
    if line is None:
        return None
    fields = _csv_fields(line, form_of(url), most)
    return fields if isinstance(fields, list) else []


def text_schema(names: list[str]) -> pa.Schema:
    """Return the schema of a table of strings."""
    return pa.schema([(name, pa.string()) for name in names])


def _csv_fields(line: Line, form: str, most: int) -> list[str] | tuple[str, str]:
    """Split a record of a CSV or TSV file. Returns its fields, or a reason and details where it cannot be."""
    if not line.whole:
        if len(line.data) > most:
            return "too large", f"it does not end within {most} bytes"
        return "unclosed quote", f"none closes it at a field's end within {most} bytes"
    try:
        text = line.data.removeprefix(BOM if line.offset == 0 else b"").decode()
        if form == "csv":
            return next(csv.reader([text]), [])
    except UnicodeDecodeError as error:
        return "not UTF-8", f"{error.reason} at byte {error.start} of the row"
    except csv.Error as error:
        return ("too large" if "limit" in str(error) else "not CSV"), str(error)
    text = text.rstrip("\r\n")
    return [_unquoted(field) for field in text.split("\t")] if text else []


def _unquoted(field: str) -> str:
    """Take off the quotes that pandas and spreadsheets put around a field of a TSV file; others are the text's."""
    if field.startswith('"') and (found := QUOTED.fullmatch(field)):
        return found[1].replace('""', '"')
    return field


def _csv_row(record: str, where: str, header: list[str], fields: list[str] | tuple[str, str]) -> Row | BadRecord:
    if isinstance(fields, tuple):
        return BadRecord(record, where, *fields)
    if len(fields) != len(header):
        return BadRecord(record, where, "ragged row", f"{len(fields)} fields where the header has {len(header)}")
    return Row(record, where, dict(zip(header, fields, strict=True)))


def _parquet_rows(source: Source, part: Part) -> Iterator[Row | BadRecord]:
    with open_raw(part.url) as raw:
        file = pq.ParquetFile(pa.PythonFile(raw, mode="r"), buffer_size=BUFFER)  # or it holds whole columns of a group
        if lack := lacking(source, file.schema_arrow):
            yield BadRecord(f"{part.id}#columns", part.url, "no such column", lack)
            return
        columns = selected(source, file.schema_arrow.names)
        groups, first, low, high = _span(source, part, file.metadata)
        at_once = rows_at_once(source, [file.schema_arrow.field(name).type for name in columns])
        batches = file.iter_batches(at_once, row_groups=list(groups), columns=columns)
        yield from _table_rows(_cut(batches, first, low, high), max(first, low), part)


def _span(source: Source, part: Part, footer: pq.FileMetaData) -> tuple[range, int, int, int]:
    """Find the row groups of a part, the number of their first row, and the first and last row that are wanted."""
    groups, ends = range(footer.num_row_groups), [0]
    for number in groups:
        ends.append(ends[-1] + footer.row_group(number).num_rows)
    if isinstance(source, TextSource):
        groups = range(part.start, footer.num_row_groups if part.end < 0 else part.end)
        return groups, ends[part.start], 0, ends[-1]
    low, high = part.start, ends[-1] if part.end < 0 else part.end
    wanted = [g for g in groups if ends[g] < high and ends[g + 1] > low]
    return range(wanted[0], wanted[-1] + 1) if wanted else range(0), ends[wanted[0]] if wanted else 0, low, high


def _cut(batches: Iterable[pa.RecordBatch], first: int, low: int, high: int) -> Iterator[pa.RecordBatch]:
    """Yield what of the batches lies in rows `[low, high)`; `first` is the number of the first batch's first row."""
    for batch in batches:
        if first >= high:
            return
        skip = max(0, low - first)
        if skip < batch.num_rows:
            yield batch.slice(skip, min(batch.num_rows, high - first) - skip)
        first += batch.num_rows


def rows_at_once(source: Source, kinds: list[pa.DataType]) -> int:
    """Return how many rows may be decoded at once: few, where they hold clips or pictures."""
    if isinstance(source, ChatSource):
        return 1 if any(map(holds_bytes, kinds)) else TABLE_ROWS
    heavy = any(pa.types.is_struct(kind) or is_bytes(kind) for kind in kinds)
    return TABLE_ROWS if not heavy or source.kind == "books" else 8 if source.kind == "image-text" else 1


def is_bytes(kind: pa.DataType) -> bool:
    """Does a column of this type hold bytes?"""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_bytes(kind: pa.DataType) -> bool:
    """Does a column of this type hold bytes, however deep?"""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return is_bytes(kind) or any(map(holds_bytes, inner))


def _table_rows(tables: Iterable[pa.Table | pa.RecordBatch], first: int, part: Part) -> Iterator[Row | BadRecord]:
    """Make rows of tables, one in Python at once; `first` is the number of the first."""
    for table in tables:
        columns = list(zip(table.column_names, table.columns, strict=True))
        for i in range(table.num_rows):
            record, where = f"{part.id}#{first + i}", f"{part.url} row {first + i}"
            try:
                yield Row(record, where, {name: c[i].as_py() for name, c in columns})
            except ValueError as error:  # Arrow checks no strings, and Python has no nanoseconds
                reason = "not UTF-8" if isinstance(error, UnicodeError) else "unreadable row"
                yield BadRecord(record, where, reason, str(error))
        first += table.num_rows


def _dataset_rows(source: Source, part: Part) -> Iterator[Row | BadRecord]:
    dataset = load_hugging_face(source)
    columns = selected(source, dataset.column_names)
    step = rows_at_once(source, [dataset.features.arrow_schema.field(name).type for name in columns])
    dataset = dataset.select_columns(columns).with_format("arrow")
    tables = (dataset[low : min(low + step, part.end)] for low in range(part.start, part.end, step))
    yield from _table_rows(tables, part.start, part)


def load_hugging_face(source: Source) -> Any:
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


def is_saved_dataset(path: str) -> bool:
    """Is this a folder that `save_to_disk` made?"""
    fs, root = filesystem(path)
    return any(fs.exists(f"{root}/{name}") for name in SAVED)
