"""Duplicates among examples: found by their hashes alone, listed in one file that packing reads."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..packing.shard import HashingFile, Shard
from ..packing.storage import Folder

DUPLICATES = "duplicates.parquet"
SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("row", pa.int64()),
        ("source", pa.string()),
        ("record", pa.string()),
        ("kind", pa.string()),
        ("of_source", pa.string()),
        ("of_record", pa.string()),
    ]
)


class Member(NamedTuple):
    """An example by name and place. The smallest of those that share a hash survives."""

    source: str
    record: str
    unit: str
    row: int


class Duplicate(NamedTuple):
    """An example that packing drops, and the one that it duplicates; `kind` is `exact` or `near`."""

    unit: str
    row: int
    source: str
    record: str
    kind: str
    of_source: str
    of_record: str


def hashes(folder: Folder, path: str, unit: str, near: bool) -> Iterator[tuple[bytes, Member]]:
    """Yield every example of a shard under each of its hashes."""
    row = 0
    for batch in Shard(folder, path).batches():
        names = zip(batch.strings("source").to_pylist(), batch.strings("record").to_pylist(), strict=True)
        members = [Member(source, record, unit, row + i) for i, (source, record) in enumerate(names)]
        yield from zip((b"e" + h for h in batch.batch.column("exact").to_pylist()), members, strict=True)
        if near:
            bands = batch.batch.column("near").to_pylist()
            for member, values in zip(members, bands, strict=True):
                yield from ((b"n%d:" % i + v.to_bytes(8, "little"), member) for i, v in enumerate(values))
        row += batch.rows


def losers(key: bytes, members: Iterable[Member]) -> Iterator[Duplicate]:
    """Yield all examples that share a hash but the smallest."""
    first = min(members)
    kind = "exact" if key.startswith(b"e") else "near"
    for m in members:
        if m != first:
            yield Duplicate(m.unit, m.row, m.source, m.record, kind, first.source, first.record)


def strongest(duplicates: Iterable[Duplicate]) -> list[Duplicate]:
    """Sort duplicates by place and keep one of each: exact before near, then of the smallest."""
    found: dict[tuple[str, int], Duplicate] = {}
    for d in sorted(duplicates):
        found.setdefault((d.unit, d.row), d)
    return list(found.values())


def find_in_memory(members: Iterable[tuple[bytes, Member]]) -> list[Duplicate]:
    """Find duplicates without an engine: what every engine must equal."""
    groups: dict[bytes, list[Member]] = {}
    for key, member in members:
        groups.setdefault(key, []).append(member)
    return strongest(d for key, group in groups.items() for d in losers(key, group))


def write(folder: Folder, duplicates: list[Duplicate], key: str) -> None:
    """Write the list. `key` digests what it was made from, so that it need not be made again."""
    table = pa.Table.from_pylist([d._asdict() for d in duplicates], SCHEMA)
    draft = folder.scratch(DUPLICATES)
    sink = HashingFile(draft)
    pq.write_table(table.replace_schema_metadata({"key": key}), sink, compression="zstd")
    sink.close()
    folder.adopt(draft, DUPLICATES)


def read_key(folder: Folder) -> str:
    """Return the key of the list that is there, or ""."""
    if not folder.exists(DUPLICATES):
        return ""
    with folder.fs.open(folder.path(DUPLICATES), "rb") as file:
        metadata = pq.read_schema(pa.PythonFile(file, mode="r")).metadata or {}
    return str(metadata.get(b"key", b"").decode())


def read(folder: Folder) -> pa.Table:
    """Read the list; an empty one where there is none."""
    if not folder.exists(DUPLICATES):
        return SCHEMA.empty_table()
    with folder.fs.open(folder.path(DUPLICATES), "rb") as file:
        return pq.read_table(pa.PythonFile(file, mode="r"))


def of_units(table: pa.Table, units: Iterable[str]) -> pa.Table:
    """Take the duplicates of some units."""
    return table.filter(pc.is_in(table.column("unit"), pa.array(list(units), pa.string())))
