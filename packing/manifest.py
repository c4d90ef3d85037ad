"""The manifest: totals, ledger and root of a complete data set, written last, and its index of shards."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from .card import data_card
from .ledger import Ledger, total
from .report import REJECTS, SHARDS, UNITS, Report, read_report
from .shard import FORMAT, HashingFile
from .storage import TEMPORARY, Folder, abandoned

MANIFEST, INDEX, CARD = "manifest.json", "index.parquet", "README.md"
DUPLICATES = "duplicates.parquet"  # beside examples: those that packing drops
INDEX_SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
        ("content", pa.string()),
        ("file", pa.string()),
        ("rejects", pa.string()),
        ("rejects_file", pa.string()),
    ]
)
OURS = re.compile(r".+-[0-9a-f]{32}\.(arrow|parquet)")  # names that a content's digest decided
INDEX_GROUP = 65536  # index rows held in memory at once


class Summary(NamedTuple):
    """What the reports of all units add up to."""

    root: str
    units: int
    rows: int
    tokens: int
    bytes: int
    ledger: Ledger
    sources: dict[str, Ledger]


def write_index(folder: Folder, reports: Iterable[Report]) -> Summary:
    """Write the index of shards and add the reports up, in one pass and bounded memory.

    Args:
      reports: of every unit, in the order of their names.
    """
    root = hashlib.blake2b(digest_size=16)
    units = rows = tokens = size = 0
    sources: dict[str, Ledger] = {}
    with folder.adopted(INDEX) as draft:
        sink = HashingFile(draft)
        with pq.ParquetWriter(sink, INDEX_SCHEMA, compression="zstd") as writer:
            for group in _groups(reports, INDEX_GROUP):
                for report in group:
                    root.update(f"{report.unit} {report.shard.content}\n".encode())
                    units, rows = units + 1, rows + report.shard.rows
                    tokens, size = tokens + report.shard.tokens, size + report.shard.bytes
                    sources.setdefault(report.source, Ledger()).add(report.ledger)
                writer.write_table(pa.Table.from_pylist([index_row(r) for r in group], INDEX_SCHEMA))
        sink.close()
    return Summary(root.hexdigest(), units, rows, tokens, size, total(sources.values()), dict(sorted(sources.items())))


def index_row(report: Report) -> dict[str, Any]:
    """Return what the index says of a unit."""
    shard, rejects = report.shard, report.rejects
    return {
        "unit": report.unit,
        "source": report.source,
        **{name: getattr(shard, name) for name in ("path", "rows", "tokens", "bytes", "content", "file")},
        "rejects": rejects.path if rejects else None,
        "rejects_file": rejects.file if rejects else None,
    }


def _groups(items: Iterable[Report], size: int) -> Iterator[list[Report]]:
    group: list[Report] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def write_manifest(folder: Folder, summary: Summary, described: dict[str, Any]) -> dict[str, Any]:
    """Write the data card, then the manifest, which says that the data set is complete.

    Args:
      described: what the builder knows: kind, length, vocabulary, weights, versions, licences, …
    """
    manifest = {
        "format": FORMAT,
        **described,
        "root": summary.root,
        "units": summary.units,
        "rows": summary.rows,
        "tokens": summary.tokens,
        "bytes": summary.bytes,
        "ledger": summary.ledger.to_json(),
        "sources": {name: ledger.to_json() for name, ledger in summary.sources.items()},
    }
    folder.overwrite(CARD, data_card(manifest).encode())
    folder.overwrite(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def read_manifest(folder: Folder) -> dict[str, Any]:
    """Read the manifest of a complete data set.

    Raises:
      UserError: if there is none, it cannot be read, or its format is another.
    """
    data = folder.read(MANIFEST)
    if data is None:
        raise UserError(
            f"{folder.url} has no {MANIFEST}, so it is no complete data set: "
            "name a directory that 'build' or 'pack' finished (examples/ or packed-NAME/), or build it again"
        )
    try:
        manifest: dict[str, Any] = json.loads(data)
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder.path(MANIFEST)} was damaged or edited ({error!r}): remove it and build again"
        ) from error
    if version != FORMAT:
        raise UserError(f"{folder.url} has format version {version}; this worldloom reads {FORMAT}: build it again")
    return manifest


def read_index(folder: Folder) -> pa.Table:
    """Read the index of shards, in the order of their units."""
    with folder.fs.open(folder.path(INDEX), "rb") as file:
        return pq.read_table(pa.PythonFile(file, mode="r"))


def shards_of(folder: Folder, source: str) -> Iterator[tuple[str, str]]:
    """Yield the path of every shard of a source in a finished data set, and its unit's name."""
    with folder.fs.open(folder.path(INDEX), "rb") as file:
        index = pq.ParquetFile(pa.PythonFile(file, mode="r"))
        for batch in index.iter_batches(INDEX_GROUP, columns=["source", "path", "unit"]):
            for row in batch.to_pylist():
                if row["source"] == source:
                    yield row["path"], row["unit"]


def sweep(folder: Folder) -> int:
    """Remove every file that no report names: what kills, lost races and late workers left. Returns how many.

    Call it only when each unit has its report. What the index does not name is asked of the unit's report once more,
    which may have been replaced since; a file that a listing does not show yet stays until the next call.
    """
    index = read_index(folder)
    named = {path for column in ("path", "rejects") for path in index.column(column).to_pylist() if path}
    removed = 0
    with suppress(OSError):  # uploads may not be ours to list, and are no part of the data set
        removed += folder.abort_uploads()
    for part in ("", UNITS, SHARDS, REJECTS):
        names = list(folder.names(part))
        removed += _remove_drafts(folder, part, names)
        for name in names:
            path = f"{part}/{name}" if part else name
            ours = part in (SHARDS, REJECTS) and OURS.fullmatch(name)  # a user's own file is not ours to remove
            if ours and path not in named and not _is_reported(folder, path):
                folder.remove(path)
                removed += 1
    return removed


def _is_reported(folder: Folder, path: str) -> bool:
    """Does the present report of the unit that a file's name begins with name the file?"""
    report = read_report(folder, path.partition("/")[2].rpartition("-")[0])
    return report is not None and path in (report.shard.path, report.rejects.path if report.rejects else "")


def sweep_drafts(folder: Folder, part: str = "") -> int:
    """Remove the drafts in a part of a folder whose writers are gone. Returns how many."""
    return _remove_drafts(folder, part, list(folder.names(part)))


def _remove_drafts(folder: Folder, part: str, names: list[str]) -> int:
    drafts = [name for name in names if name.startswith(TEMPORARY) and abandoned(name)]
    for name in drafts:
        folder.remove(f"{part}/{name}" if part else name)
    return len(drafts)
