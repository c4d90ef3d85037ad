"""Shards: Arrow IPC files of rows, mapped in place or read by range. The format is in docs/formats.md."""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..errors import UserError
from ..tokenizers.vocabulary import Vocabulary
from .example import Span
from .row import Row, Segment, payload
from .storage import Folder

FORMAT = 1  # version of the layout below; readers refuse another
BATCH_TOKENS = 2**20  # a record batch holds at most so many tokens, or one row
DIGEST_BYTES = 16
READ_AHEAD = 2**20  # bytes that a file elsewhere may fetch beyond a read: joins the small reads of a table
KEPT_LOCAL, KEPT_REMOTE = (
    4096,
    8,
)  # batches whose views are kept: mapped ones are free, others hold their bytes

SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("kind", pa.string()), ("ref", pa.string())])
SEGMENT = pa.struct(
    [
        ("length", pa.int32()),
        ("task", pa.string()),
        ("source", pa.string()),
        ("record", pa.string()),
        ("start", pa.int64()),
        ("trained_text", pa.int32()),
        ("trained_vision", pa.int32()),
        ("spans", pa.list_(SPAN)),
    ]
)


class Kind(NamedTuple):
    """What the rows of a shard are: `examples`, or `sequences` of one length."""

    name: str
    length: int = 0


EXAMPLES = Kind("examples")


class ShardInfo(NamedTuple):
    """What a report says of a finished file: `content` digests its rows, `file` its bytes."""

    path: str
    rows: int
    tokens: int
    bytes: int
    content: str
    file: str


def schema(vocabulary: Vocabulary, kind: Kind) -> pa.Schema:
    """Return the columns of a shard and the metadata that say how to read it."""
    fields = [
        ("tokens", pa.list_(pa.from_numpy_dtype(vocabulary.dtype))),
        ("segments", pa.list_(SEGMENT)),
        ("trained", pa.list_(pa.int32())),
    ]
    if kind == EXAMPLES:
        fields += [("exact", pa.binary()), ("near", pa.list_(pa.uint64()))]
    described = {
        "format": FORMAT,
        "kind": kind.name,
        "length": kind.length,
        "fingerprint": vocabulary.fingerprint,
        "vocabulary": asdict(vocabulary),
    }
    named = [pa.field(name, type_, nullable=False) for name, type_ in fields]
    return pa.schema(
        [*named, pa.field("crc32", pa.uint32(), nullable=False)],
        {"worldloom": json.dumps(described, sort_keys=True)},
    )


def described(schema: pa.Schema, path: str) -> tuple[Vocabulary, Kind]:
    """Read a shard's metadata.

    Raises:
      UserError: if it is no shard of ours, or of another format version.
    """
    raw = (schema.metadata or {}).get(b"worldloom")
    if raw is None:
        raise UserError(f"{path} is an Arrow file but no worldloom shard: its schema has no 'worldloom' metadata")
    data = json.loads(raw)
    if data["format"] != FORMAT:
        raise UserError(
            f"{path} has format version {data['format']}; this worldloom reads {FORMAT}: "
            "use the worldloom that wrote it, or build again"
        )
    return Vocabulary(**data["vocabulary"]), Kind(data["kind"], data["length"])


class ShardWriter:
    """Write rows to a local file in batches of bounded size, digesting rows and bytes on the way.

    Args:
      examine: called with each batch before it is written, and the number of its first row.
    """

    def __init__(
        self,
        path: Path,
        vocabulary: Vocabulary,
        kind: Kind,
        examine: Callable[["Batch", int], None] = lambda batch, first: None,
    ):
        self._examine = examine
        self._schema = schema(vocabulary, kind)
        self._sink = HashingFile(path)
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        self._content = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._rows: list[Row] = []
        self._sums: list[int] = []
        self._pending = 0
        self.rows = self.tokens = 0

    def add(self, row: Row) -> None:
        """Append a row."""
        if self._rows and self._pending + len(row.tokens) > BATCH_TOKENS:
            self._flush()
        data = payload(row)
        self._content.update(data)
        self._sums.append(zlib.crc32(data))
        self._rows.append(row)
        self._pending += len(row.tokens)
        self.rows += 1
        self.tokens += sum(s.length for s in row.segments)

    def info(self, path: str) -> ShardInfo:
        """Describe the closed file, to be known as `path`."""
        return ShardInfo(path, self.rows, self.tokens, self._sink.size, self.content, self._sink.hexdigest)

    @property
    def content(self) -> str:
        """Digest of the rows so far."""
        return self._content.hexdigest()

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()
        self._sink.close()

    def abandon(self) -> None:
        """Close the file as it is: whoever calls this removes it."""
        self._sink.close()

    def _flush(self) -> None:
        if self._rows:
            batch = record_batch(self._rows, self._sums, self._schema)
            self._examine(Batch(batch), self.rows - len(self._rows))
            self._writer.write_batch(batch)
        self._rows, self._sums, self._pending = [], [], 0


class HashingFile:
    """A file open for writing that digests what goes through it."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.size = 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    @property
    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def record_batch(rows: Sequence[Row], sums: Sequence[int], schema: pa.Schema) -> pa.RecordBatch:
    """Lay rows out in columns."""
    columns: dict[str, pa.Array] = {
        "tokens": _lists([r.tokens for r in rows], schema.field("tokens").type),
        "segments": _segments([r.segments for r in rows]),
        "trained": _lists([r.trained for r in rows], schema.field("trained").type),
        "crc32": pa.array(sums, pa.uint32()),
    }
    if "exact" in schema.names:
        columns["exact"] = pa.array([r.exact for r in rows], pa.binary())
        columns["near"] = _lists([r.near for r in rows], schema.field("near").type)
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _lists(arrays: Sequence[np.ndarray], type_: pa.DataType) -> pa.Array:
    return _list_array(map(len, arrays), pa.array(np.concatenate(arrays), type_.value_type), type_)


def _segments(rows: Sequence[tuple[Segment, ...]]) -> pa.Array:
    flat = list(chain.from_iterable(rows))
    spans = [s.spans for s in flat]
    columns = [pa.array([s[i] for s in flat], SEGMENT.field(i).type) for i in range(SEGMENT.num_fields - 1)]
    table = pa.StructArray.from_arrays([*columns, _spans(spans)], fields=list(SEGMENT))
    return _list_array(map(len, rows), table, pa.list_(SEGMENT))


def _spans(rows: Sequence[tuple[Span, ...]]) -> pa.Array:
    flat = list(chain.from_iterable(rows))
    columns = [pa.array([s[i] for s in flat], SPAN.field(i).type) for i in range(SPAN.num_fields)]
    table = pa.StructArray.from_arrays(columns, fields=list(SPAN))
    return _list_array(map(len, rows), table, pa.list_(SPAN))


def _list_array(lengths: Any, values: pa.Array, type_: pa.DataType) -> pa.Array:
    offsets = np.concatenate(([0], np.cumsum(list(lengths)))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=type_)


class Lists(NamedTuple):
    """Many lists end to end, and where each begins; one entry more than there are lists."""

    values: np.ndarray
    offsets: np.ndarray

    def row(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]


class Batch:
    """NumPy views on one record batch; offsets have one entry more than rows."""

    def __init__(self, batch: pa.RecordBatch):
        self.batch = batch
        self.rows = batch.num_rows
        if "tokens" in batch.schema.names:  # a table's batch has nothing but segments
            self.tokens, self.token_offsets = _views(batch.column("tokens"))
            self.trained, self.trained_offsets = _views(batch.column("trained"))
            # A memoryview gives out Python's integers, which slice faster than NumPy's.
            self._token_bounds, self._trained_bounds = self.token_offsets.data, self.trained_offsets.data
        segments = batch.column("segments")
        self.segment_offsets = _numpy(segments.offsets)
        self._segment_bounds = self.segment_offsets.data
        self._segments = segments.values
        self._columns: dict[str, np.ndarray] = {}

    def column(self, name: str) -> np.ndarray:
        """View a numeric column of the segments of all rows, end to end."""
        if name not in self._columns:
            self._columns[name] = _numpy(self._segments.field(name))
        return self._columns[name]

    def strings(self, name: str) -> pa.Array:
        """View a text column of the segments of all rows, end to end."""
        return self._segments.field(name)

    @cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.column("length"), self.column("trained_text"), self.column("trained_vision")

    def row_counts(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """View length, trained text and trained vision tokens of each segment of one row: three of int32."""
        row = slice(self._segment_bounds[i], self._segment_bounds[i + 1])
        lengths, text, vision = self._counts
        return lengths[row], text[row], vision[row]

    def row_tokens(self, i: int) -> np.ndarray:
        return self.tokens[self._token_bounds[i] : self._token_bounds[i + 1]]

    def row_trained(self, i: int) -> np.ndarray:
        return self.trained[self._trained_bounds[i] : self._trained_bounds[i + 1]]

    def flags(self) -> np.ndarray:
        """Write out which tokens of all rows, end to end, are trained: bool."""
        runs, offsets = self.trained, self.trained_offsets
        return np.repeat((np.arange(len(runs)) - np.repeat(offsets[:-1], np.diff(offsets))) % 2 == 1, runs)

    def row(self, i: int) -> Row:
        """Read one row in full."""
        low, high = int(self.segment_offsets[i]), int(self.segment_offsets[i + 1])
        segments = tuple(_segment(s) for s in self._segments.slice(low, high - low).to_pylist())
        if "exact" not in self.batch.schema.names:
            return Row(self.row_tokens(i), segments, self.row_trained(i))
        near = np.array(self.batch.column("near")[i].as_py(), np.uint64)
        return Row(self.row_tokens(i), segments, self.row_trained(i), self.batch.column("exact")[i].as_py(), near)

    def read(self) -> Iterator[Row]:
        """Read every row in full: a column at a time, so much faster than one by one."""
        exact, near = self.hashes()
        for i, segments in enumerate(self.segments()):
            yield Row(self.row_tokens(i), segments, self.row_trained(i), exact[i], near.row(i))

    def segments(self) -> list[tuple[Segment, ...]]:
        """Read the segments of every row."""
        columns = [_listed(self._segments.field(name)) for name in Segment._fields[:-1]]
        flat = list(map(Segment, *columns, _read_spans(self._segments.field("spans"))))
        return [tuple(flat[low:high]) for low, high in pairwise(self.segment_offsets.tolist())]

    def hashes(self) -> tuple[list[bytes], Lists]:
        """Read the exact and the near hashes of every row; sequences have none."""
        if "exact" not in self.batch.schema.names:
            return [b""] * self.rows, Lists(np.empty(0, np.uint64), np.zeros(self.rows + 1, np.int32))
        return self.batch.column("exact").to_pylist(), Lists(*_views(self.batch.column("near")))

    def crc32(self, i: int) -> int:
        return int(self.batch.column("crc32")[i].as_py())


class Shard:
    """A shard open for reading: mapped where it is local, read batch by batch elsewhere.

    Raises:
      UserError: if the file is missing, damaged, or no shard of this format.
    """

    def __init__(self, folder: Folder, name: str):
        self.path = folder.path(name)
        self._local = folder.local
        self._kept = KEPT_LOCAL if self._local else KEPT_REMOTE
        try:
            self._source = pa.memory_map(self.path) if self._local else _remote(folder, self.path)
            self._file = pa.ipc.open_file(self._source)
        except FileNotFoundError:
            raise UserError(f"the shard {self.path} is missing: run 'worldloom verify', then build again") from None
        except pa.ArrowException as error:
            raise UserError(f"the shard {self.path} cannot be read ({error}): run 'worldloom verify'") from error
        self.vocabulary, self.kind = described(self._file.schema, self.path)
        self._rows_each = max(1, BATCH_TOKENS // max(1, self.kind.length))
        self.batch_count: int = self._file.num_record_batches
        self._views: dict[int, Batch] = {}
        self._tables: dict[int, Batch] = {}
        self._lock = Lock()  # a loader's thread and its caller may read at once

    def batch(self, i: int) -> Batch:
        """Return the views of a batch; the last ones asked for are kept."""
        return self._views.get(i) or self._read(i, self._views, self._file)

    def table(self, i: int) -> Batch:
        """Return a batch whose segments alone can be read: where the shard is not mapped, the rest is not fetched."""
        if self._local:
            return self.batch(i)
        return self._views.get(i) or self._tables.get(i) or self._read(i, self._tables, self._segments_file)

    @cached_property
    def _segments_file(self) -> pa.RecordBatchFileReader:
        only = pa.ipc.IpcReadOptions(included_fields=[self._file.schema.get_field_index("segments")])
        return pa.ipc.open_file(self._source, options=only)

    def _read(self, i: int, kept: dict[int, Batch], file: pa.RecordBatchFileReader) -> Batch:
        with self._lock:
            if len(kept) >= self._kept:
                del kept[next(iter(kept))]
            kept[i] = view = Batch(file.get_batch(i))
        return view

    def batches(self) -> Iterator[Batch]:
        """Yield all batches in order."""
        return map(self.batch, range(self.batch_count))

    def rows(self) -> Iterator[Row]:
        """Yield all rows in order."""
        return chain.from_iterable(batch.read() for batch in self.batches())

    def locate(self, row: int) -> "Place":
        """Find a row: for sequences without reading, for examples batch after batch."""
        if self.kind.length:
            return Place(self, *divmod(row, self._rows_each))
        for i, batch in enumerate(self.batches()):
            if row < batch.rows:
                return Place(self, i, row)
            row -= batch.rows
        raise IndexError(f"{self.path} has {row} rows too few")


class Place(NamedTuple):
    """Where a row is: which row of which record batch. Nothing is read before it is asked for."""

    shard: Shard
    batch: int
    number: int

    @property
    def rows(self) -> Batch:
        return self.shard.batch(self.batch)

    @property
    def table(self) -> Batch:
        """The batch for the sake of its segments alone."""
        return self.shard.table(self.batch)


def _remote(folder: Folder, path: str) -> pa.PythonFile:
    return pa.PythonFile(folder.fs.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead"), mode="r")


def _segment(fields: dict[str, Any]) -> Segment:
    spans = tuple(Span(**s) for s in fields.pop("spans"))
    return Segment(**fields, spans=spans)


def _read_spans(column: pa.ListArray) -> Iterator[tuple[Span, ...]]:
    spans = list(map(Span, *(_listed(column.values.field(name)) for name in Span._fields)))
    offsets = _numpy(column.offsets).tolist()
    return (tuple(spans[low:high]) for low, high in pairwise(offsets))


def _listed(column: pa.Array) -> list[Any]:
    return column.to_pylist() if pa.types.is_string(column.type) else _numpy(column).tolist()


def _views(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    return _numpy(column.values), _numpy(column.offsets)


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=True)
