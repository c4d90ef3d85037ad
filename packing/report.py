"""Unit reports: one small file says that a unit is done, and its presence is the commit."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RunFailed
from ..tokenizers.vocabulary import Vocabulary
from .ledger import Ledger
from .lint import broken_rules
from .row import Row
from .shard import EXAMPLES, Batch, HashingFile, Kind, ShardInfo, ShardWriter
from .storage import FULL, Folder, full

UNITS, SHARDS, REJECTS = "units", "shards", "rejects"
REJECT_FIELDS = ("source", "record", "stage", "status", "reason", "error", "where", "exact", "url")
REJECT_SCHEMA = pa.schema([*((name, pa.string()) for name in REJECT_FIELDS), ("row", pa.int64())])
INPUTS = b"inputs"  # what a unit with failed records read, in the metadata of its rejects
REJECTS_AT_ONCE = 16384


@dataclass(frozen=True)
class Reject:
    """Say of one record that is in no shard why, and where it can be found.

    Attributes:
      source, record: which one.
      stage: `read`, `filter`, `tokenize` or `pack`.
      status: `dropped` or `failed`.
      reason: a short phrase that is counted; `error` has the details.
      where: the file and the place in it.
      exact: hash of the record's content in hexadecimal, where it was read.
      url: where its source says that it came from, or "".
      row: how many rows of the shard were written before it: with those, the order in which a unit was read.
    """

    source: str
    record: str
    stage: str
    status: str
    reason: str
    error: str = ""
    where: str = ""
    exact: str = ""
    url: str = ""
    row: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Report:
    """Say what one finished unit read and wrote.

    Attributes:
      unit, source: its name, and the source's (or the packed data set's) name.
      key: digest of all that the unit's rows depend on; a report with another key is stale.
      shard, rejects: the files it wrote; `rejects` is None where every record was kept.
      ledger: its counts.
      deny: digest of the deny list that its rows agree with.
      settings: digest of all that they depend on besides the unit's input, or "" where nobody asks for it.
    """

    unit: str
    source: str
    key: str
    shard: ShardInfo
    rejects: ShardInfo | None
    ledger: Ledger
    deny: str = ""
    settings: str = ""

    def to_bytes(self) -> bytes:
        data = {
            "unit": self.unit,
            "source": self.source,
            "key": self.key,
            "shard": self.shard._asdict(),
            "rejects": self.rejects._asdict() if self.rejects else None,
            "ledger": self.ledger.to_json(),
            "deny": self.deny,
            "settings": self.settings,
        }
        return (json.dumps(data, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        fields: dict[str, Any] = json.loads(data)
        fields["shard"] = ShardInfo(**fields["shard"])
        fields["rejects"] = ShardInfo(**fields["rejects"]) if fields["rejects"] else None
        fields["ledger"] = Ledger(**fields["ledger"])
        return cls(**fields)


def report_name(unit: str) -> str:
    return f"{UNITS}/{unit}.json"


def read_report(folder: Folder, unit: str) -> Report | None:
    """Read a unit's report, or None where the unit is not done, or its report cannot be read: then it is done again."""
    data = folder.read(report_name(unit))
    try:
        return Report.from_bytes(data) if data is not None else None
    except (ValueError, TypeError, KeyError):
        return None


def finished_units(folder: Folder) -> Iterator[str]:
    """Yield the names of the units that have a report, in no order."""
    return (name.removesuffix(".json") for name in folder.names(UNITS) if name.endswith(".json"))


class UnitWriter:
    """Write one unit's rows and rejects, then commit them with its report.

    Use as a context manager: without `commit` nothing appears in the data set. It ends with RunFailed where the disk is
    full, its own or that of temporary files.
    """

    def __init__(self, folder: Folder, unit: str, vocabulary: Vocabulary, kind: Kind):
        self._folder, self._unit, self._kind = folder, unit, kind
        self._drafts: list[Path] = [folder.scratch(f"{SHARDS}/{unit}"), folder.scratch(f"{REJECTS}/{unit}")]
        self._vocabulary = vocabulary
        self._shard = ShardWriter(self._drafts[0], vocabulary, kind, self._lint)
        self._rejects: _RejectWriter | None = None
        self.ledger = Ledger()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for part in (self._shard, self._rejects):
            with suppress(OSError):  # there may be no room for what it still holds
                if part is not None:
                    part.abandon()
        for draft in self._drafts:
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise full(self._folder) from error

    def add(self, row: Row) -> None:
        """Write a row and count its segments.

        Raises:
          RunFailed: if a row breaks a rule; it may be an earlier one, for they are looked at some together.
        """
        self._shard.add(row)
        for s in row.segments:
            self.ledger.count_task(s.task, s.length, s.trained_text + s.trained_vision)

    def _lint(self, batch: Batch, first: int) -> None:
        for row, what, record in broken_rules(batch, self._vocabulary, self._kind):
            named = f" (record {record})" if record else ""
            raise RunFailed(
                f"unit {self._unit}: row {first + row}{named} {what}: this is a bug of worldloom, not of the input; "
                "report it with the recipe and the record. Nothing of this unit was written"
            )

    def reject(self, reject: Reject) -> None:
        """List a record that is in no shard, and count it."""
        self.ledger.count(reject.status, reject.reason)
        if self._rejects is None:
            self._rejects = _RejectWriter(self._drafts[1])
        self._rejects.add(replace(reject, row=self._shard.rows))

    def commit(
        self,
        source: str,
        key: str,
        deny: str = "",
        stale: bytes | None = None,
        settings: str = "",
        inputs: str = "",
    ) -> bool:
        """Make the unit done, atomically. Returns whether this call did: an earlier report stays.

        Args:
          stale: the bytes of a report that this one is to replace, of another key or of records that failed.
          inputs: what was read, to be kept with the rejects, if there are some.

        Raises:
          ValueError: if the ledger does not add up, or not with what was written.
        """
        self._check()
        name = report_name(self._unit)
        try:
            files = self._adopt_shard(), self._adopt_rejects(inputs)
            report = Report(self._unit, source, key, *files, self.ledger, deny, settings)
        except FileNotFoundError:
            if self._folder.read(name) in (None, stale):
                raise
            return False  # another build committed the unit, finished, and swept this one's drafts
        data = report.to_bytes()
        if stale is None:
            return self._folder.create(name, data)
        return stale == data or self._folder.replace(name, stale, data)

    def _check(self) -> None:
        """Hold the ledger, which counts what was read and decided, against the rows and rejects that were written."""
        ledger, rejects = self.ledger, self._rejects.rows if self._rejects else 0
        if self._kind == EXAMPLES:
            written = ledger.kept == self._shard.rows
        else:
            written = ledger.tokens_read == self._shard.tokens + ledger.tokens_dropped
        if not (ledger.balanced and written and rejects == ledger.dropped + ledger.failed):
            raise ValueError(
                f"unit {self._unit}: the ledger does not add up with {self._shard.rows} rows, {self._shard.tokens} "
                f"tokens and {rejects} rejects: {ledger.to_json()}"
            )

    def _adopt_shard(self) -> ShardInfo:
        self._shard.close()
        info = self._shard.info(f"{SHARDS}/{self._unit}-{self._shard.content}.arrow")
        self._folder.adopt(self._drafts[0], info.path)
        return info

    def _adopt_rejects(self, inputs: str) -> ShardInfo | None:
        if self._rejects is None:
            return None
        info = self._rejects.close(f"{REJECTS}/{self._unit}", inputs)
        self._folder.adopt(self._drafts[1], info.path)
        return info


class _RejectWriter:
    """Write rejects to a local parquet file, some thousands at once."""

    def __init__(self, path: Path):
        self._sink = HashingFile(path)
        self._writer = pq.ParquetWriter(self._sink, REJECT_SCHEMA, compression="zstd")
        self._pending: list[Reject] = []
        self.rows = 0

    def add(self, reject: Reject) -> None:
        self._pending.append(reject)
        self.rows += 1
        if len(self._pending) == REJECTS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        columns = [[getattr(r, name) for r in self._pending] for name in REJECT_SCHEMA.names]
        self._writer.write_table(pa.table(columns, schema=REJECT_SCHEMA))
        self._pending = []

    def abandon(self) -> None:
        """Close the file as it is: whoever calls this removes it."""
        try:
            self._writer.close()
        finally:
            self._sink.close()

    def close(self, stem: str, inputs: str) -> ShardInfo:
        if self._pending:
            self._flush()
        if inputs:
            self._writer.add_key_value_metadata({INPUTS: inputs})
        self._writer.close()
        self._sink.close()
        digest = self._sink.hexdigest
        return ShardInfo(f"{stem}-{digest}.parquet", self.rows, 0, self._sink.size, digest, digest)


def read_rejects(folder: Folder, report: Report) -> Iterable[Reject]:
    """Yield a unit's rejects, in the order in which they were read."""
    if report.rejects is None:
        return
    with folder.fs.open(folder.path(report.rejects.path), "rb") as file:
        for batch in pq.ParquetFile(pa.PythonFile(file, mode="r")).iter_batches(REJECTS_AT_ONCE):
            yield from (Reject(**row) for row in batch.to_pylist())


def read_inputs(folder: Folder, report: Report) -> str:
    """Read what a unit noted of its input when it was committed, "" where nothing is noted."""
    if report.rejects is None:
        return ""
    with folder.fs.open(folder.path(report.rejects.path), "rb") as file:
        metadata = pq.ParquetFile(pa.PythonFile(file, mode="r")).metadata.metadata or {}
    return bytes(metadata.get(INPUTS, b"")).decode()
