"""Duplicates among examples: found by their hashes alone, listed in one file that packing reads."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import RunFailed
from ..packing.manifest import DUPLICATES
from ..packing.shard import Shard
from ..packing.storage import Folder

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


def hashes(
    folder: Folder, path: str, unit: str, near: bool, number: int = 0, slices: int = 1
) -> Iterator[tuple[bytes, Member]]:
    """Yield every example of a shard under each of its hashes that falls into slice `number` of `slices`."""
    first = 0
    for batch in Shard(folder, path).batches():
        sources, records = batch.strings("source"), batch.strings("record")
        columns = [(b"e", batch.batch.column("exact").to_pylist())]
        if near:
            bands = np.stack(batch.batch.column("near").to_numpy(zero_copy_only=False)).astype("<u8")
            columns += [(b"n%d:" % i, [value.tobytes() for value in band]) for i, band in enumerate(bands.T)]
        for kind, values in columns:
            for i, value in enumerate(values):
                if int.from_bytes(value[:4], "little") % slices == number:
                    yield kind + value, Member(sources[i].as_py(), records[i].as_py(), unit, first + i)
        first += batch.rows


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


def write(folder: Folder, duplicates: list[Duplicate], key: str, name: str = DUPLICATES) -> None:
    """Write a list. `key` digests what it was made from, so that it need not be made again."""
    _write(folder, pa.Table.from_pylist([d._asdict() for d in duplicates], SCHEMA), key, name)


def _write(folder: Folder, table: pa.Table, key: str, name: str) -> None:
    table = table.replace_schema_metadata({"key": key})
    with folder.adopted(name) as draft:
        pq.write_table(table, draft, compression="zstd", write_page_checksum=True)


def merge(folder: Folder, names: list[str], key: str) -> None:
    """Make one list of the slices' lists, and remove them.

    Raises:
      RunFailed: if one is not there, or of other examples.
    """
    tables = [read(folder, name) for name in names]
    for name, table in zip(names, tables, strict=True):
        if (table.schema.metadata or {}).get(b"key") != key.encode():
            raise RunFailed(f"{folder.path(name)} was not written: can every worker write to {folder.url}?")
    if len(tables) == 1:
        listed = tables[0]
    else:
        listed = pa.Table.from_pylist(
            [d._asdict() for d in strongest(Duplicate(**row) for t in tables for row in t.to_pylist())], SCHEMA
        )
    _write(folder, listed, key, DUPLICATES)
    for name in names:
        folder.remove(name)


def read_key(folder: Folder) -> str:
    """Return the key of the list that is there, or ""."""
    if not folder.exists(DUPLICATES):
        return ""
    with folder.fs.open(folder.path(DUPLICATES), "rb") as file:
        metadata = pq.read_schema(pa.PythonFile(file, mode="r")).metadata or {}
    return str(metadata.get(b"key", b"").decode())


def read(folder: Folder, name: str = DUPLICATES) -> pa.Table:
    """Read a list; an empty one where there is none."""
    if not folder.exists(name):
        return SCHEMA.empty_table()
    with folder.fs.open(folder.path(name), "rb") as file:
        return pq.read_table(pa.PythonFile(file, mode="r"))


def of_units(table: pa.Table, units: Iterable[str]) -> pa.Table:
    """Take the duplicates of some units."""
    return table.filter(pc.is_in(table.column("unit"), pa.array(list(units), pa.string())))
