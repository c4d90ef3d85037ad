"""Export: packed sequences as dense rows for other trainers, weights written out; one file a shard.

A sample of a WebDataset tar has `tokens.npy`, `targets.npy`, `positions.npy`, `segments.npy`, `weights.npy`,
`examples.cls` and `json`; a parquet file has the same as columns. `export.json`, written last, says what they hold.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import UserError
from .packing.dense import COLUMNS, DenseRows
from .packing.manifest import sweep_drafts
from .packing.storage import Folder
from .packing.weights import Rule

Form = Literal["webdataset", "parquet"]
SUFFIX: dict[Form, str] = {"webdataset": "tar", "parquet": "parquet"}
TOLD = "export.json"
GROUP_TOKENS = 2**20  # of a row group, or one row
DIVISOR = {True: "the sum of `examples`", False: "the sum of `weights`"}


@dataclass(frozen=True)
class Export:
    """What to write: the rows of the data set at `data`, whose digest is `root`, to the folder `out`."""

    data: str
    root: str
    out: str
    to: Form
    rule: Rule

    @property
    def folder(self) -> Folder:
        return Folder(self.out)

    @property
    def rows(self) -> DenseRows:
        return _rows(self.data, self.root, self.rule)

    def name(self, shard: int) -> str:
        """Name the file of a shard: its unit, and a digest of its rows."""
        unit, content = (self.rows.dataset.index.column(name)[shard].as_py() for name in ("unit", "content"))
        return f"{unit}-{content}.{SUFFIX[self.to]}"


@lru_cache(maxsize=2)
def _rows(data: str, root: str, rule: Rule) -> DenseRows:
    return DenseRows(data, rule)


def export(
    data: str,
    out: str,
    to: Form,
    weights: Rule | str | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write a packed data set as dense rows. Returns what `export.json` says.

    Files that are there already are kept, so that the same call after a kill does the rest.

    Args:
      out: a new folder, or that of an earlier export of the same rows; a path or URL.
      weights: rule of the loss weights; left out, the data set's own.
      progress: is called with the files done and the number of all.

    Raises:
      UserError: if `data` holds no packed sequences, or `out` something else.
    """
    rows = DenseRows(data, weights)
    job = Export(data, rows.dataset.root, out, to, rows.rule)
    told = describe(job)
    claim(job.folder, told)
    total = len(rows.dataset.index)
    for done, _ in enumerate(_written(job, total, workers), 1):
        progress(done, total)
    sweep_drafts(job.folder)
    job.folder.overwrite(TOLD, (json.dumps(told, indent=1) + "\n").encode())
    return told


def _written(job: Export, shards: int, workers: int) -> Iterator[None]:
    """Write the files of all shards, in this process or in some, and yield after each."""
    if workers == 1:
        for shard in range(shards):
            write_shard(job, shard)
            yield
        return
    from .pipelines.local_workers import LocalWorkers

    with closing(LocalWorkers(workers)) as pool:
        for shard in range(shards):
            yield from pool.submit(write_shard, job, shard)
        yield from pool.drain()


def describe(job: Export) -> dict[str, Any]:
    """Say what an export holds, and how its weights are used."""
    dataset = job.rows.dataset
    return {
        "form": job.to,
        "root": job.root,
        "rows": dataset.rows,
        "length": dataset.length,
        "weights": str(job.rule),
        "divide_by": DIVISOR[job.rule.by_examples],
        "vocabulary": dataset.manifest["vocabulary"],
        "fingerprint": dataset.manifest["fingerprint"],
        "files": [job.name(shard) for shard in range(len(dataset.index))],
    }


def claim(folder: Folder, told: dict[str, Any]) -> None:
    """Make the output folder this export's.

    Raises:
      UserError: if it holds something else, or cannot be written.
    """
    found = folder.read(TOLD)
    others = set(folder.names()) - {TOLD, *told["files"]}
    if found is not None and json.loads(found) != told:
        raise UserError(f"{folder.url} holds another export (of other rows, weights or form): choose another --out")
    if others := {name for name in others if not name.startswith(".")}:
        raise UserError(f"{folder.url} holds {min(others)}, which is none of this export's files: choose another --out")
    try:
        folder.make()
    except OSError as error:
        raise UserError(f"{folder.url} cannot be written ({error.strerror or error}): choose another --out") from error


def write_shard(job: Export, shard: int) -> None:
    """Write the rows of one shard, whole or not at all, unless they are there."""
    if job.folder.exists(name := job.name(shard)):
        return
    draft = job.folder.scratch(name)
    try:
        (_write_tar if job.to == "webdataset" else _write_parquet)(job.rows, shard, draft)
        job.folder.adopt(draft, name)
    finally:
        draft.unlink(missing_ok=True)


def _numbered(rows: DenseRows, shard: int) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Yield each row of a shard with what it is: its number, and where its segments come from."""
    dataset = rows.dataset
    for row in range(int(dataset.starts[shard]), int(dataset.starts[shard + 1])):
        records = [{"source": s.source, "record": s.record, "task": s.task} for s in dataset.row(row).segments]
        yield rows[row], {"row": row, "records": records}


def _write_tar(rows: DenseRows, shard: int, draft: Path) -> None:
    from webdataset import TarWriter

    with draft.open("wb") as file, closing(TarWriter(file, user="worldloom", group="worldloom", mtime=0)) as tar:
        for arrays, told in _numbered(rows, shard):
            columns = {f"{name}.npy": arrays[name] for name in COLUMNS}
            tar.write(
                {"__key__": f"{told['row']:09d}", **columns, "examples.cls": int(arrays["examples"]), "json": told}
            )


def _write_parquet(rows: DenseRows, shard: int, draft: Path) -> None:
    length = rows.dataset.length
    record = pa.struct([(name, pa.string()) for name in ("source", "record", "task")])
    types = {name: pa.list_(pa.float32() if name == "weights" else pa.int32()) for name in COLUMNS}
    schema = pa.schema([("row", pa.int64()), ("examples", pa.int32()), ("records", pa.list_(record)), *types.items()])
    each = max(1, GROUP_TOKENS // length)
    with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
        for group in _by(each, _numbered(rows, shard)):
            arrays, told = zip(*group, strict=True)
            offsets = np.arange(len(group) + 1, dtype=np.int32) * length
            columns = [pa.ListArray.from_arrays(offsets, np.concatenate([a[name] for a in arrays])) for name in COLUMNS]
            facts = [[t["row"] for t in told], [a["examples"].item() for a in arrays], [t["records"] for t in told]]
            first = [pa.array(fact, schema.field(i).type) for i, fact in enumerate(facts)]
            writer.write_table(pa.table([*first, *columns], schema=schema))


def _by(size: int, items: Iterator[Any]) -> Iterator[list[Any]]:
    while group := list(islice(items, size)):
        yield group
