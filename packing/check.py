"""What may be wrong with one shard: damage to its bytes, and rows that break a rule.

A damaged file is read with care. Arrow itself refuses metadata that points outside the file; what it lets through is
validated in full before a buffer is touched, and no row is believed whose checksum differs. Where the footer is
gone, the batches are read in the order in which they lie in the file, which needs no footer.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..tokenizers.vocabulary import Vocabulary
from . import shard as layout
from .lint import Breach, broken_rules
from .shard import DIGEST_BYTES, Batch, Kind, ShardInfo, schema

MAGIC_BYTES = 8  # "ARROW1" and two zeros stand before the first message
READ_BYTES = 1 << 22  # hashed at once
NO_SUMS = np.empty(0, np.uint32)
ESCAPED = r"[^ !#-\[\]-~]"  # what JSON writes otherwise: quotes, backslashes, controls and what is not ASCII


class Finding(NamedTuple):
    """Say what is wrong, and with which rows of the shard; none where it is the shard itself."""

    what: str
    rows: range = range(0)


@dataclass(frozen=True)
class Claim:
    """What a unit's report and the manifest say of a shard.

    Attributes:
      tasks: per task the counts of segments, tokens and trained tokens that the unit's ledger has.
    """

    info: ShardInfo
    tasks: dict[str, dict[str, int]]
    vocabulary: Vocabulary
    kind: Kind


def check_file(file: Path, info: ShardInfo) -> list[Finding]:
    """Compare a file's size and digest with what its report says."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    size = 0
    with file.open("rb") as stream:
        while data := stream.read(READ_BYTES):
            digest.update(data)
            size += len(data)
    if size != info.bytes:
        return [Finding(f"has {size:,} bytes where its report says {info.bytes:,}")]
    if digest.hexdigest() != info.file:
        return [Finding("has other bytes than were written: its digest is not the one in its report")]
    return []


def check_shard(file: Path, claim: Claim) -> list[Finding]:
    """Find everything that is wrong with a local shard: damaged bytes, wrong rows, counts that differ.

    Every row whose content changed is named, except where a whole shard was replaced by a sound one.
    """
    found = check_file(file, claim.info)
    source = pa.memory_map(str(file)) if file.stat().st_size else pa.BufferReader(b"")
    reading, notes = _read(source, claim, damaged=bool(found))
    found += notes
    rows = _check_rows(reading, claim)
    found += rows or _check_content(reading, source, claim)
    if not (found or rows):
        found += _check_tasks(reading, claim)
    return found


class Part(NamedTuple):
    """What one record batch holds: each row's checksum as it is and as it was stored, and rules broken by row."""

    sums: np.ndarray
    stored: np.ndarray
    broken: list[Breach]
    tasks: dict[str, np.ndarray]


class Reading(NamedTuple):
    """What a shard holds, batch by batch, None where one cannot be read; and the digest of the rows that can."""

    parts: list[Part | None]
    content: str


def _read(source: pa.NativeFile, claim: Claim, damaged: bool) -> tuple[Reading, list[Finding]]:
    """Read a shard by its footer, as every reader does, or where that is broken in the order of the file."""
    ours = schema(claim.vocabulary, claim.kind)
    try:
        reader = pa.ipc.open_file(source)
        theirs = reader.schema
    except Exception as error:  # damage may surface as anything
        return _examine(_by_stream(source, ours), claim), [
            Finding(f"has a footer that cannot be read ({_first_line(error)})")
        ]
    notes = []
    if theirs.metadata != ours.metadata:
        notes.append(Finding("has metadata (format, kind, length, vocabulary) that is not what the manifest says"))
    if not theirs.equals(ours):
        notes.append(Finding("has other columns than the manifest's kind and vocabulary demand"))
        return (Reading([], "") if damaged else _examine(_by_footer(reader), claim)), notes
    return _examine(_by_footer(reader), claim), notes


def _by_footer(reader: pa.ipc.RecordBatchFileReader) -> Iterator[Callable[[], pa.RecordBatch]]:
    return (partial(reader.get_batch, i) for i in range(reader.num_record_batches))


def _by_stream(source: pa.NativeFile, ours: pa.Schema) -> Iterator[Callable[[], pa.RecordBatch]]:
    """Yield the batches that follow the schema, as far as messages can be told apart."""
    try:
        source.seek(MAGIC_BYTES)
        messages = pa.ipc.MessageReader.open_stream(source)
        messages.read_next_message()
        while (message := messages.read_next_message()).type == "record batch":
            yield partial(pa.ipc.read_record_batch, message, ours)
    except Exception:  # the end of the stream, or of what can be read of it
        return


def _examine(batches: Iterable[Callable[[], pa.RecordBatch]], claim: Claim) -> Reading:
    content = hashlib.blake2b(digest_size=DIGEST_BYTES)
    parts: list[Part | None] = []
    for read in batches:
        try:
            parts.append(_examine_batch(read(), claim, content))
        except Exception:  # damage may surface as anything
            parts.append(None)
    return Reading(parts, content.hexdigest())


def _examine_batch(record: pa.RecordBatch, claim: Claim, content: "hashlib.blake2b") -> Part:
    record.validate(full=True)
    if any(column.null_count for column in record.columns):
        raise ValueError("a row without a value")
    batch = Batch(record)
    rows = payloads(batch)
    content.update(b"".join(rows))
    sums = np.fromiter(map(zlib.crc32, rows), np.uint32, batch.rows)
    stored = record.column("crc32").to_numpy()
    sound = np.array_equal(sums, stored)
    broken = broken_rules(batch, claim.vocabulary, claim.kind) if sound else []
    return Part(sums, stored, broken, _count_tasks(batch) if sound else {})


def payloads(batch: Batch) -> list[bytes]:
    """Return `row.payload` of every row, many times faster than one by one; a test holds the two equal."""
    exact, near = batch.hashes()
    parts: list[Sequence[bytes | memoryview]] = [
        _cut(batch.tokens, batch.token_offsets),
        _json_lists(batch.batch.column("segments")).cast(pa.binary()).to_pylist(),
        _cut(batch.trained, batch.trained_offsets),
        exact,
        _cut(near.values, near.offsets),
    ]
    sizes = np.array([list(map(len, part)) for part in parts], "<u8").T
    headers = _cut(sizes.ravel(), np.arange(0, sizes.size + 1, len(parts)))
    return list(map(b"".join, zip(headers, *parts, strict=True)))


def _cut(values: np.ndarray, offsets: np.ndarray) -> list[memoryview]:
    """View each row's little-endian bytes."""
    data = values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8).data
    borders = (offsets.astype(np.int64) * values.itemsize).tolist()
    return [data[low:high] for low, high in pairwise(borders)]


def _json_lists(column: pa.ListArray) -> pa.Array:
    """Write each list of structs as `row.payload` does: compact ASCII JSON, structs as arrays."""
    fields = [_json(column.values.field(i)) for i in range(column.values.type.num_fields)]
    structs = _wrap("[", pc.binary_join_element_wise(*fields, ","), "]")
    return _wrap("[", pc.binary_join(pa.ListArray.from_arrays(column.offsets, structs), ","), "]")


def _json(column: pa.Array) -> pa.Array:
    if pa.types.is_list(column.type):
        return _json_lists(column)
    if not pa.types.is_string(column.type):
        return column.cast(pa.string())
    if pc.any(pc.match_substring_regex(column, ESCAPED)).as_py():
        return pa.array(map(json.dumps, column.to_pylist()), pa.string())
    return _wrap('"', column, '"')


def _wrap(before: str, column: pa.Array, after: str) -> pa.Array:
    return pc.binary_join_element_wise(before, column, after, "")


def _count_tasks(batch: Batch) -> dict[str, np.ndarray]:
    tasks = batch.strings("task").dictionary_encode()
    numbers = tasks.indices.to_numpy()
    trained = batch.column("trained_text").astype(np.int64) + batch.column("trained_vision")
    counts = [np.bincount(numbers, values) for values in (None, batch.column("length"), trained)]
    return dict(zip(tasks.dictionary.to_pylist(), np.array(counts, np.int64).T, strict=True))


def _check_rows(reading: Reading, claim: Claim) -> list[Finding]:
    """Name the rows that cannot be read, differ from their checksums, or break a rule."""
    rows = claim.info.rows
    total = sum(len(p.sums) for p in reading.parts if p)
    found = [Finding(f"holds {total:,} rows where its report says {rows:,}")] if total != rows else []
    covered, changed = np.zeros(rows, bool), np.zeros(rows, bool)
    for start, part in zip(_starts(reading.parts, claim), reading.parts, strict=True):
        if part is None:
            continue
        place = slice(start, start + len(part.sums))
        covered[place] = True
        changed[place] |= (part.sums != part.stored)[: len(changed[place])]
        found += [_broken(breach, start) for breach in part.broken]
        if claim.kind.length and place.stop != min(start + _batch_rows(claim.kind), rows):
            what = f"has a batch of {len(part.sums):,} rows at row {start:,}: its rows cannot be found by number"
            found.append(Finding(what))
    found += [Finding("cannot be read", r) for r in _ranges(~covered)]
    return found + [Finding("differs from its checksum", r) for r in _ranges(changed)]


def _broken(breach: Breach, start: int) -> Finding:
    what = f"{breach.what} (record {breach.record})" if breach.record else breach.what
    return Finding(what, range(start + breach.row, start + breach.row + 1))


def _starts(parts: list[Part | None], claim: Claim) -> list[int]:
    """Number the first row of each batch: in sequences by the layout, else from both ends of the shard."""
    if claim.kind.length:
        return [i * _batch_rows(claim.kind) for i in range(len(parts))]
    starts, at = [0] * len(parts), 0
    for i, part in enumerate(parts):
        starts[i] = at
        at += len(part.sums) if part else 0
    at = claim.info.rows
    last_lost = max((i for i, part in enumerate(parts) if part is None), default=len(parts))
    for i in range(len(parts) - 1, last_lost, -1):
        at -= len(parts[i].sums)  # type: ignore[union-attr]
        starts[i] = max(at, 0)
    return starts


def _batch_rows(kind: Kind) -> int:
    return max(1, layout.BATCH_TOKENS // kind.length)


def _ranges(flags: np.ndarray) -> list[range]:
    """Return the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [range(low, high) for low, high in edges.reshape(-1, 2).tolist()]


def _check_content(reading: Reading, source: pa.NativeFile, claim: Claim) -> list[Finding]:
    """Find rows that agree with their own checksums but are not the ones written at their place.

    A footer that lists a batch twice does that; the order of the batches in the file then tells.
    """
    if reading.content == claim.info.content:
        return []
    stream = _examine(_by_stream(source, schema(claim.vocabulary, claim.kind)), claim)
    theirs, ours = (np.concatenate([NO_SUMS, *(p.sums for p in r.parts if p)]) for r in (reading, stream))
    if stream.content == claim.info.content and len(theirs) == len(ours):
        return [Finding("is not the row that was written there", r) for r in _ranges(theirs != ours)]
    return [
        Finding(
            "holds rows that agree with their checksums, but that are not the rows that its report describes: "
            "it is another shard, or the digest in its report was edited"
        )
    ]


def _check_tasks(reading: Reading, claim: Claim) -> list[Finding]:
    """Compare the segments by task, and their tokens, with the unit's ledger and report."""
    counts: dict[str, np.ndarray] = {}
    for part in reading.parts:
        for task, n in part.tasks.items() if part else ():
            counts[task] = counts.get(task, 0) + n
    found = []
    tokens = sum(int(n[1]) for n in counts.values())
    if tokens != claim.info.tokens:
        found.append(Finding(f"holds {tokens:,} tokens where its report says {claim.info.tokens:,}"))
    for task in sorted(counts.keys() | claim.tasks.keys()):
        names = ("examples", "tokens", "trained")
        here = dict(zip(names, map(int, counts.get(task, (0, 0, 0))), strict=True))
        said = {name: claim.tasks.get(task, {}).get(name, 0) for name in names}
        found += [
            Finding(f"holds {here[n]:,} {n} of the task {task!r} where its report says {said[n]:,}")
            for n in names
            if here[n] != said[n]
        ]
    return found


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
