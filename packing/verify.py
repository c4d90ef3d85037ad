"""Prove a finished data set: every byte is the one written, every row keeps the rules, every count adds up."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UserError
from ..tokenizers.vocabulary import Vocabulary
from .check import Claim, Finding, check_file, check_shard
from .ledger import DROPPED, FAILED, Ledger, total
from .manifest import DUPLICATES, INDEX, INDEX_SCHEMA, MANIFEST, index_row, read_index, read_manifest
from .report import REJECTS, SHARDS, UNITS, Report, finished_units, report_name
from .shard import DIGEST_BYTES, EXAMPLES, Kind
from .storage import TEMPORARY, Folder
from .weights import Rule

AT_ONCE = 256  # units in hand, so that a million of them need no more memory
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """Say one thing that is wrong with a data set.

    Attributes:
      path: the file, relative to the folder that was verified.
      unit: the unit that it belongs to, or empty.
      row: the number of the row in its shard, or None where the file itself is wrong.
      what: a phrase that goes on from the path, and the row.
      last: the last row of several, None for one.
    """

    path: str
    unit: str
    row: int | None
    what: str
    last: int | None = None

    def __str__(self) -> str:
        if self.row is None:
            return f"{self.path} {self.what}"
        rows = f"row {self.row}" if self.last is None else f"each of the rows {self.row} to {self.last}"
        return f"{self.path}: {rows} {self.what}"

    @property
    def rows(self) -> range:
        """The rows that it names, none where it is the file itself."""
        if self.row is None:
            return range(0)
        return range(self.row, (self.row if self.last is None else self.last) + 1)


def data_sets(url: str) -> list[str]:
    """List the data sets in a folder by name: `""` for the folder itself, else those of a build in it.

    Raises:
      UserError: if there is none.
    """
    folder = Folder(url)
    if folder.exists(MANIFEST) or folder.exists(UNITS):
        return [""]
    fs = folder.fs
    try:
        entries = fs.ls(folder.path(), detail=True)
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    names = [e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory"]
    found = sorted(n for n in names if folder.exists(f"{n}/{MANIFEST}") or folder.exists(f"{n}/{UNITS}"))
    if not found:
        raise UserError(
            f"{url} is no data set and has none in it: name a directory that 'build' or 'pack' made, "
            "such as DIR, DIR/examples or DIR/packed-NAME"
        )
    return found


def verify(url: str, progress: Progress | None = None) -> list[Problem]:
    """Check a data set, or every one in a build's folder, and return all that is wrong.

    Args:
      progress: called with the bytes of shards checked so far and in all, for each data set anew.

    Raises:
      UserError: if there is no data set.
    """
    found, names = [], data_sets(url)
    for name in names:
        prefix = f"{name}/" if name else ""
        problems = _verify_one(Folder(url).sub(name) if name else Folder(url), progress)
        found += [replace(p, path=prefix + p.path) for p in problems]
    return found + _check_origins(Folder(url), names)


def _check_origins(folder: Folder, names: list[str]) -> list[Problem]:
    """Compare the examples that a build's sequences were packed from with those that lie beside them."""
    roots = {}
    for name in names:
        try:
            manifest = read_manifest(folder.sub(name) if name else folder)
            roots[name] = (manifest["kind"], manifest["root"], manifest.get("examples", {}).get("root"))
        except (UserError, KeyError, AttributeError):
            continue  # said already
    present = {root for kind, root, _ in roots.values() if kind == EXAMPLES.name}
    what = "was packed from other examples than those beside it: build again, or remove the folder"
    return [
        Problem(f"{name}/{MANIFEST}", "", None, what)
        for name, (kind, _, origin) in roots.items()
        if kind != EXAMPLES.name and origin and present and origin not in present
    ]


def _check_duplicates(folder: Folder, manifest: dict[str, Any]) -> list[Problem]:
    """Read the list of duplicates that packing relies on, page checksums and all."""
    if manifest["kind"] != EXAMPLES.name or manifest.get("duplicates", "none") == "none":
        return []
    try:
        with folder.fs.open(folder.path(DUPLICATES), "rb") as file:
            pq.read_table(pa.PythonFile(file, mode="r"), page_checksum_verification=True)
    except FileNotFoundError:
        return [Problem(DUPLICATES, "", None, "is missing: build again")]
    except (OSError, pa.ArrowException, ValueError) as error:
        return [Problem(DUPLICATES, "", None, f"cannot be read ({error}): remove it and build again")]
    return []


def _verify_one(folder: Folder, progress: Progress | None) -> list[Problem]:
    try:
        manifest = read_manifest(folder)
        vocabulary = Vocabulary(**manifest["vocabulary"])
        kind = Kind(str(manifest["kind"]), int(manifest["length"]))
        size = int(manifest["bytes"])
    except UserError as error:
        return [Problem(MANIFEST, "", None, f"cannot be used: {error}")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [Problem(MANIFEST, "", None, f"was damaged or edited: it cannot be read ({error!r})")]
    tally = _Tally()
    check = partial(_check_unit, folder, vocabulary, kind)
    found = list(_check_units(folder, tally, check, lambda done: progress(done, size) if progress else None))
    found += _check_index(folder, tally)
    found += _check_manifest(manifest, vocabulary, tally)
    return found + _check_duplicates(folder, manifest) + _strays(folder, tally)


class _Tally:
    """What the reports say when they are put together: the root, totals, and one index row a unit."""

    def __init__(self) -> None:
        self.root = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.sources: dict[str, Ledger] = {}
        self.index: dict[str, dict[str, Any]] = {}

    def add(self, report: Report) -> None:
        self.root.update(f"{report.unit} {report.shard.content}\n".encode())
        self.sources.setdefault(report.source, Ledger()).add(report.ledger)
        self.index[report.unit] = index_row(report)

    def sum(self, column: str) -> int:
        return sum(row[column] for row in self.index.values())


def _check_units(
    folder: Folder, tally: _Tally, check: Callable[[Report], list[Problem]], progress: Callable[[int], None]
) -> Iterator[Problem]:
    units = iter(sorted(finished_units(folder)))
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := list(islice(units, AT_ONCE)):
            read = [_read_report(folder, unit) for unit in some]
            yield from (r for r in read if isinstance(r, Problem))
            reports = [r for r in read if isinstance(r, Report)]
            for report, problems in zip(reports, pool.map(check, reports), strict=True):
                tally.add(report)
                yield from problems
                done += report.shard.bytes
                progress(done)


def _read_report(folder: Folder, unit: str) -> Report | Problem:
    path = report_name(unit)
    try:
        report = Report.from_bytes(folder.read(path) or b"")
        sane = _well_formed(report)
    except (ValueError, KeyError, TypeError, AttributeError):
        sane = False
    if not sane:
        return Problem(path, unit, None, "was damaged or edited: it is no unit report")
    return (
        report if report.unit == unit else Problem(path, unit, None, f"is the report of another unit: {report.unit!r}")
    )


def _well_formed(report: Report) -> bool:
    """Has everything in a report its type, so that one can reckon with it? A row's checksum alone takes 4 bytes."""
    infos, ledger = [info for info in (report.shard, report.rejects) if info], report.ledger
    tasks = [counts[name] for counts in ledger.tasks.values() for name in ("examples", "tokens", "trained")]
    counts = [ledger.read, ledger.kept, ledger.dropped, ledger.failed, *ledger.reasons.values(), *tasks]
    counts += [n for info in infos for n in (info.rows, info.tokens, info.bytes)]
    texts = [report.unit, report.source, *(text for info in infos for text in (info.path, info.content, info.file))]
    typed = all(type(n) is int and n >= 0 for n in counts) and all(isinstance(text, str) for text in texts)
    return typed and report.shard.rows * 4 <= report.shard.bytes


def _check_unit(folder: Folder, vocabulary: Vocabulary, kind: Kind, report: Report) -> list[Problem]:
    claim = Claim(report.shard, report.ledger.tasks, vocabulary, kind)
    found = _check_ledger(report)
    found += _check_fetched(folder, report.unit, report.shard.path, lambda file: check_shard(file, claim))
    if report.rejects is not None:
        found += _check_fetched(folder, report.unit, report.rejects.path, lambda file: _check_rejects(file, report))
    elif report.ledger.dropped + report.ledger.failed:
        lost = report.ledger.dropped + report.ledger.failed
        found.append(Problem(report_name(report.unit), report.unit, None, f"counts {lost:,} rejects but lists none"))
    return found


def _check_fetched(folder: Folder, unit: str, path: str, check: Callable[[Path], list[Finding]]) -> list[Problem]:
    try:
        with _fetched(folder, path) as file:
            findings = check(file)
    except FileNotFoundError:
        findings = [Finding("is missing, and the unit's report names it")]
    except OSError as error:
        findings = [Finding(f"cannot be read: {error}")]
    return [_problem(path, unit, finding) for finding in findings]


def _problem(path: str, unit: str, finding: Finding) -> Problem:
    what, rows = finding
    if not rows:
        return Problem(path, unit, None, what)
    return Problem(path, unit, rows[0], what, rows[-1] if len(rows) > 1 else None)


@contextmanager
def _fetched(folder: Folder, path: str) -> Iterator[Path]:
    """Lend a file as a local one: damaged files are only ever read from the disk, and only once from afar."""
    if folder.local:
        yield Path(folder.path(path))
        return
    with tempfile.TemporaryDirectory(prefix="worldloom-verify-") as scratch:
        copy = Path(scratch) / "file"
        folder.fs.get_file(folder.path(path), str(copy))
        yield copy


def _check_ledger(report: Report) -> list[Problem]:
    path, ledger = report_name(report.unit), report.ledger
    found = _check_balance(path, report.unit, f"the ledger of unit {report.unit}", ledger)
    said = f"{SHARDS}/{report.unit}-{report.shard.content}.arrow"
    if report.shard.path != said:
        found.append(Problem(path, report.unit, None, f"names the shard {report.shard.path!r} where {said!r} belongs"))
    tokens = sum(task["tokens"] for task in ledger.tasks.values())
    if tokens != report.shard.tokens:
        what = f"says that its tasks have {tokens:,} tokens and its shard {report.shard.tokens:,}"
        found.append(Problem(path, report.unit, None, what))
    return found


def _check_balance(path: str, unit: str, whose: str, ledger: Ledger) -> list[Problem]:
    if ledger.balanced:
        return []
    what = (
        f"does not add up in {whose}: {ledger.read:,} read are not "
        f"{ledger.kept:,} kept + {ledger.dropped:,} dropped + {ledger.failed:,} failed"
    )
    return [Problem(path, unit, None, what)]


def _check_rejects(file: Path, report: Report) -> list[Finding]:
    assert report.rejects is not None
    if found := check_file(file, report.rejects):
        return found
    table = pq.read_table(file, columns=["status", "reason"])
    ledger = report.ledger
    found = []
    if len(table) != report.rejects.rows:
        found.append(Finding(f"lists {len(table):,} records where its report says {report.rejects.rows:,}"))
    for status, n in ((DROPPED, ledger.dropped), (FAILED, ledger.failed)):
        listed = pc.sum(pc.equal(table.column("status"), status)).as_py() or 0
        if listed != n:
            found.append(Finding(f"lists {listed:,} {status} records where the unit's ledger counts {n:,}"))
    return found + _check_reasons(table, ledger)


def _check_reasons(table: pa.Table, ledger: Ledger) -> list[Finding]:
    counts = table.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
    listed = {f"{c['status']}: {c['reason']}": c["count_all"] for c in counts if c["reason"]}
    return [
        Finding(f"lists {listed.get(r, 0):,} records '{r}' where the unit's ledger counts {ledger.reasons.get(r, 0):,}")
        for r in sorted(listed.keys() | ledger.reasons.keys())
        if listed.get(r, 0) != ledger.reasons.get(r, 0)
    ]


def _check_index(folder: Folder, tally: _Tally) -> list[Problem]:
    try:
        rows = read_index(folder).cast(INDEX_SCHEMA).to_pylist()
    except FileNotFoundError:
        return [Problem(INDEX, "", None, "is missing: build again to write it")]
    except Exception:  # damage may surface as anything
        return [Problem(INDEX, "", None, "was damaged or edited: it is no index of shards")]
    found = []
    listed = {str(row["unit"]): row for row in rows}
    if [row["unit"] for row in rows] != sorted(listed):
        found.append(Problem(INDEX, "", None, "does not list each unit once, in the order of their names"))
    for unit in sorted(listed.keys() - tally.index.keys()):
        found.append(Problem(INDEX, unit, None, f"lists the unit {unit}, which has no report that can be read"))
    for unit, said in sorted(tally.index.items()):
        found += _check_index_row(unit, listed.get(unit), said)
    return found


def _check_index_row(unit: str, row: dict[str, Any] | None, said: dict[str, Any]) -> list[Problem]:
    if row is None:
        return [Problem(INDEX, unit, None, f"does not list the unit {unit}, which has a report")]
    return [
        Problem(
            INDEX, unit, None, f"says of the unit {unit} that its {name} is {row[name]!r}, its report {said[name]!r}"
        )
        for name in said
        if row[name] != said[name]
    ]


def _check_manifest(manifest: dict[str, Any], vocabulary: Vocabulary, tally: _Tally) -> list[Problem]:
    ledger = total(tally.sources.values())
    said: dict[str, Any] = {
        "root": tally.root.hexdigest(),
        "units": len(tally.index),
        **{name: tally.sum(name) for name in ("rows", "tokens", "bytes")},
        "ledger": ledger.to_json(),
        "sources": {name: tally.sources[name].to_json() for name in sorted(tally.sources)},
        "fingerprint": vocabulary.fingerprint,
    }
    found = [
        Problem(MANIFEST, "", None, f"says that {name} is {_short(manifest.get(name))}, the reports {_short(value)}")
        for name, value in said.items()
        if manifest.get(name) != value
    ]
    if manifest.get("weights") not in list(Rule):
        found.append(
            Problem(MANIFEST, "", None, f"names the rule of weights {manifest.get('weights')!r}: there is none")
        )
    for name, of_source in tally.sources.items():
        found += _check_balance(MANIFEST, "", f"the source {name}", of_source)
    return found + _check_balance(MANIFEST, "", "total", ledger)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _strays(folder: Folder, tally: _Tally) -> list[Problem]:
    """Find the files that no report names: what kills and lost races left, or what somebody put there."""
    named = {row[column] for row in tally.index.values() for column in ("path", "rejects")}
    return [
        Problem(path, "", None, "is a file that no report names: remove it")
        for part in ("", UNITS, SHARDS, REJECTS)
        for path in sorted(_paths(folder, part))
        if _is_stray(part, path, named)
    ]


def _paths(folder: Folder, part: str) -> Iterable[str]:
    return (f"{part}/{name}" if part else name for name in folder.names(part))


def _is_stray(part: str, path: str, named: set[str]) -> bool:
    if path.rpartition("/")[2].startswith(TEMPORARY):
        return True
    return (part in (SHARDS, REJECTS) and path not in named) or (part == UNITS and not path.endswith(".json"))
