"""Retry: what failed is read again, and of all else no more than has changed; the rows that stay are copied.

A unit is made anew, of the rows that its old shard holds and of those that are read now, each at the place where a
clean build puts it. Nothing is trusted: the old report must have been written under the same settings, the old shard
must be the one that it describes, and every part of the input that is not the one that was read is read again.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..errors import RunFailed, UserError
from ..packing.ledger import FAILED, NO_REPLY, Ledger, total
from ..packing.report import (
    Reject,
    Report,
    ShardInfo,
    finished_units,
    read_inputs,
    read_rejects,
    read_report,
    report_name,
)
from ..packing.row import Row
from ..packing.shard import DIGEST_BYTES, Shard
from ..packing.storage import Folder
from ..recipe import Recipe
from ..schema import validate
from ..sources import BookQuestionsSource, BooksSource, ChatSource, Source
from . import books
from .admission import media_of
from .build import EXAMPLES, QUESTIONS, RECIPE, base, build, check, claim, count, describe_examples, question_job
from .deny import with_deny_lists
from .engine_flags import for_step
from .engines import engine
from .inputs import Input, told
from .job import Job, finish, pending, prepare, reopen
from .progress import ReportBar
from .reading.damage import DAMAGE
from .reading.files import BLOCK, codec_of, form_of
from .reading.samples import discard
from .reading.tables import offset_in
from .records import Found
from .remote import extras, need_reachable, with_device
from .tokenize import TokenizeJob, counted, facts_of, file_facts, file_marks, read, tokenize
from .units import Part, Unit

DAMAGED, NO_FILE = "damaged file", "no such file"
DECODER = {"decoder crashed", "decoder hung", "decoder error", "out of memory"}  # not the file alone
LISTED = 100  # records that still fail, told one by one


@dataclass(frozen=True)
class Piece:
    """What of one part is read.

    Attributes:
      stored: numbers of its outcomes among the old unit's, or None where all of the part is read.
      wanted: which of those are read again, counted from the part's first.
      offsets: where those begin, in bytes; empty where they are found by reading on.
    """

    part: Part
    stored: range | None = None
    wanted: frozenset[int] = frozenset()
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What of a unit is read: a piece a part, or all of it, and then why."""

    pieces: list[Piece] = field(default_factory=list)
    why: str = ""


@dataclass(frozen=True)
class RetryJob:
    """A tokenize job to whom a unit is done only if none of its failures may have healed."""

    job: TokenizeJob

    @property
    def folder(self) -> Folder:
        return self.job.folder

    def parts(self) -> list[str]:
        return self.job.parts()

    def units(self, part: str) -> Iterator[Unit]:
        return self.job.units(part)

    def names(self, part: str) -> Iterator[str]:
        return self.job.names(part)

    def agrees(self, unit: Unit, report: Report) -> bool:
        return self.job.agrees(unit, report) and not self._heals(report)

    def _heals(self, report: Report) -> bool:
        """Did records of a unit fail that may not fail again though its input is as it was?"""
        source = self.job.recipe.source(report.source)
        rejects = listed(self.folder, report) if report.ledger.failed else []
        return rejects is None or any(may_heal(source, reject) for reject in rejects)

    def settle(self, report: Report) -> Report:
        return self.job.settle(report)

    def run(self, unit: Unit) -> None:
        stale = self.folder.read(report_name(unit.name))
        report = _parsed(stale)
        planned = plan(self.job, unit, report)
        if report is None or planned.why or not all(map(self._is_sound, (report.shard, report.rejects))):
            self.job.run(unit)
        else:
            self.job.write(unit, stale, partial(_outcomes, self.job, report, planned.pieces))

    def _is_sound(self, info: ShardInfo | None) -> bool:
        """Has a file the bytes that were written? Damage must not be copied under a new checksum."""
        if info is None:
            return True
        try:
            with self.folder.fs.open(self.folder.path(info.path), "rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES))
        except FileNotFoundError:
            return False
        return found.hexdigest() == info.file


def listed(folder: Folder, report: Report) -> list[Reject] | None:
    """Read a unit's rejects, None where they are missing or damaged."""
    try:
        return list(read_rejects(folder, report))
    except DAMAGE:
        return None


def _parsed(data: bytes | None) -> Report | None:
    try:
        return Report.from_bytes(data) if data is not None else None
    except (ValueError, TypeError, KeyError):
        return None


def may_heal(source: Source, reject: Reject) -> bool:
    """May a record that failed not fail the next time, though the file that it is in has not changed?

    What a server said, a decoder that died and a file that was missing may; what the bytes at hand decided may not.
    """
    if reject.status != FAILED:
        return False
    if reject.stage == "read":
        return reject.reason in (DAMAGED, NO_FILE)
    if reject.stage == "decode":
        return isinstance(source, ChatSource) or bool(reject.url) or reject.reason in DECODER
    return reject.stage != "ask" or reject.reason == NO_REPLY


def plan(job: TokenizeJob, unit: Unit, report: Report | None) -> Plan:
    """Say what of a unit is to be read. A part that is as it was gives its old outcomes but for those that may heal."""
    source = job.recipe.source(unit.source)
    if report is None:
        return Plan(why="it has no report that can be read")
    if isinstance(source, BookQuestionsSource):
        return Plan(why="book questions are made of whole books; what was asked is not asked again")
    if report.settings != job.settings(source):
        return Plan(why="the recipe or a version has changed, or an older worldloom made it")
    if not job.agrees(unit, report):
        return Plan(why="the deny list has changed since")
    rejects = listed(job.folder, report)
    if rejects is None:
        return Plan(why="the list of its rejects is damaged")
    before, numbered, first = {}, _numbered(rejects), 0
    for known in _noted(job, unit, report):
        before[_name(known.facts)] = known, range(first, first + known.records)
        first += known.records
    return Plan([_piece(source, part, before.get((part.id, part.start, part.end)), numbered) for part in unit.parts])


def _noted(job: TokenizeJob, unit: Unit, report: Report) -> list[Input]:
    """Return what a unit read, as far as it is noted and is what the report's key digests; nothing otherwise."""
    source, inputs = job.recipe.source(unit.source), told(read_inputs(job.folder, report))
    key = job.key(source, unit.name, report.settings, [known.facts for known in inputs])
    same = key == report.key and sum(known.records for known in inputs) == report.ledger.read
    return inputs if same else []


def _numbered(rejects: Iterable[Reject]) -> dict[int, Reject]:
    """Number the rejects of a unit among all its outcomes."""
    return {reject.row + number: reject for number, reject in enumerate(rejects)}


def _name(facts: list[Any]) -> tuple[Any, ...]:
    return tuple(facts[:3])  # its file, and where in it


def _piece(source: Source, part: Part, before: tuple[Input, range] | None, rejects: dict[int, Reject]) -> Piece:
    """Compare a part with what was read of it, and the numbers of its outcomes."""
    if before is None or before[0].facts[:5] != file_facts(part):
        return Piece(part)
    known, own = before
    wanted = {n - own.start: rejects[n] for n in own if n in rejects and may_heal(source, rejects[n])}
    if any(reject.reason == DAMAGED for reject in wanted.values()):
        return Piece(part)
    marks = file_marks(source, part) if known.facts != facts_of(source, part) else known.marks
    if len(marks) != len(known.marks):
        return Piece(part)
    renewed = {n for n, (old, new) in enumerate(zip(known.marks, marks, strict=True)) if old != new}
    places = [offset_in(reject.where) for _, reject in sorted(wanted.items())]
    offsets = tuple(at for at in places if at is not None) if renewed <= wanted.keys() else ()
    seeks = _is_worth_seeking(part, len(wanted)) and len(offsets) == len(wanted)
    return Piece(part, own, frozenset(wanted.keys() | renewed), offsets if seeks else ())


def _is_worth_seeking(part: Part, records: int) -> bool:
    """Can single lines of a part be read, and is that less than to read it all?"""
    size = (part.end if part.end >= 0 else part.size) - part.start
    return form_of(part.url) == "jsonl" and not codec_of(part.url) and records * BLOCK < size


def _outcomes(
    job: TokenizeJob,
    report: Report,
    pieces: list[Piece],
    unit: Unit,
    denied: frozenset[str],
    folder: Path,
    ledger: Ledger,
    records: list[int],
) -> Generator[Row | Reject]:
    """Yield what becomes of each record of a unit, of some as it was; the arguments behind `pieces` as of `write`."""
    source, owners = job.recipe.source(unit.source), deque[int]()

    def reading() -> Iterator[Found]:
        for number, piece in enumerate(pieces):
            records[number] = 0 if piece.stored is None else len(piece.stored)
            for found in _read(source, piece, folder):
                records[number] += piece.stored is None
                owners.append(number)
                yield found

    items = counted(reading(), ledger)
    if isinstance(source, BooksSource):
        known = _texts(job.folder, report) if any(piece.stored is None for piece in pieces) else books.NONE
        outcomes: Generator[Row | Reject] = (books.row(job.recipe, source, item, denied, known) for item in items)
    else:
        outcomes = tokenize(job.recipe, source, items, denied, folder)
    with closing(outcomes):
        yield from merged(pieces, stored(job.folder, report), ((owners.popleft(), o) for o in outcomes), ledger)


def _read(source: Source, piece: Piece, folder: Path) -> Iterator[Found]:
    """Read a piece: all of its part, or what is wanted of it."""
    if piece.stored is None:
        yield from read(source, piece.part, folder)
    elif piece.offsets:
        for at in piece.offsets:
            yield from islice(read(source, piece.part._replace(start=at), folder), 1)
    elif piece.wanted:
        for number, found in enumerate(islice(read(source, piece.part, folder), max(piece.wanted) + 1)):
            if number in piece.wanted:
                yield found
            else:
                for media in media_of(found):
                    discard(media)


def _texts(folder: Folder, report: Report) -> books.Known:
    """Return the ids of a unit's texts by their content: without BOS and EOS, mapped and not copied."""
    return {row.exact: row.tokens[1:-1] for row in Shard(folder, report.shard.path).rows()}


def stored(folder: Folder, report: Report) -> Iterator[Row | Reject]:
    """Yield what became of each record of a finished unit, in the order in which they were read."""
    rows, done = Shard(folder, report.shard.path).rows(), 0
    for reject in read_rejects(folder, report):
        yield from islice(rows, reject.row - done)
        done = reject.row
        yield reject
    yield from rows


class _End(NamedTuple):
    number: int = -1
    outcome: Row | Reject | None = None


def merged(
    pieces: list[Piece], old: Iterator[Row | Reject], new: Iterator[tuple[int, Row | Reject]], ledger: Ledger
) -> Iterator[Row | Reject]:
    """Put old outcomes and new ones in the order of the unit's records.

    Args:
      old: all outcomes of the unit as it was; those that are yielded again are counted as read.
      new: those of what is read now, each with the number of its piece.

    Raises:
      RunFailed: if a record is not the one that stood at its place, since its file changes while it is read.
    """
    place, (number, outcome) = 0, next(new, _End())
    for this, piece in enumerate(pieces):
        if piece.stored is None:
            while number == this and outcome is not None:
                yield outcome
                number, outcome = next(new, _End())
            continue
        for _ in islice(old, piece.stored.start - place):
            pass
        place = piece.stored.stop
        for n, before in enumerate(islice(old, len(piece.stored))):
            if n not in piece.wanted:
                ledger.read += 1
                yield before
                continue
            if outcome is None or number != this or _record(outcome) != _record(before):
                raise RunFailed(f"{piece.part.url} changes while it is read: call the same command again")
            yield outcome
            number, outcome = next(new, _End())


def _record(outcome: Row | Reject) -> str:
    return outcome.record if isinstance(outcome, Reject) else outcome.segments[0].record


@dataclass(frozen=True)
class Again:
    """Say of a unit what of it was read again: single records, whole files, or all and why."""

    unit: str
    records: int
    files: list[str]
    why: str = ""

    def __str__(self) -> str:
        if self.why:
            return f"{self.unit}: all of it, since {self.why}"
        whole = ", ".join(self.files[:3]) + (f" and {len(self.files) - 3:,} more" if len(self.files) > 3 else "")
        records = "1 record" if self.records == 1 else f"{self.records:,} records"
        said = [records] * bool(self.records) + [f"what changed: {whole}"] * bool(whole)
        return f"{self.unit}: {' and '.join(said) or 'nothing, since files are gone from it'}"


@dataclass(frozen=True)
class Retried:
    """Say what came of a retry.

    Attributes:
      again: by data set, what was read again.
      before, after: by data set, the ledger of all units that are done.
      failing: the first of the examples' records that still fail.
      made: manifests by folder name.
    """

    again: dict[str, list[Again]]
    before: dict[str, Ledger]
    after: dict[str, Ledger]
    failing: list[Reject]
    made: dict[str, Any]

    def lines(self) -> list[str]:
        """Say it in words."""
        said = [line for name in self.again for line in self._of(name)]
        return [*said, *(f"still fails: {r.where or r.record}: {r.reason}: {r.error}" for r in self.failing)]

    def _of(self, name: str) -> list[str]:
        units, before, after = self.again[name], self.before[name], self.after[name]
        more = [f"{len(units) - LISTED:,} more units"] * (len(units) > LISTED)
        return [
            f"{name}: something to read again in {len(units):,} units",
            *(f"  {line}" for line in [*map(str, units[:LISTED]), *more]),
            f"  failed {before.failed:,}, now {after.failed:,}; kept {before.kept:,}, now {after.kept:,}; "
            f"dropped {before.dropped:,}, now {after.dropped:,}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        ledgers = {
            when: {name: counts.to_json() for name, counts in found.items()}
            for when, found in (("before", self.before), ("after", self.after))
        }
        again = {name: [asdict(unit) for unit in units] for name, units in self.again.items()}
        return {"again": again, **ledgers, "failing": [asdict(r) for r in self.failing], "made": self.made}


def stored_recipe(url: str) -> Recipe:
    """Read the effective recipe of a build's folder.

    Raises:
      UserError: if there is none, or it cannot be used.
    """
    folder = Folder(url)
    data = folder.read(RECIPE)
    if data is None:
        raise UserError(f"{url} has no {RECIPE}: name the folder that 'build' was given as --out")
    try:
        found = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise UserError(f"{folder.path(RECIPE)} was damaged or edited: call 'build' with the recipe again") from error
    return with_deny_lists(validate(Recipe, found, folder.path(RECIPE)))


def retry(out: str, flags: list[str], workers: int) -> Retried:
    """Do again what failed in a build's folder, and all that depends on it. Call it again after a kill.

    Raises:
      UserError: as `build`.
    """
    recipe, folder = with_device(stored_recipe(out), flags), Folder(out)
    need_reachable(recipe, flags)
    examples = TokenizeJob(recipe, folder.sub(EXAMPLES).url, questions=folder.sub(QUESTIONS).url)
    check(examples)
    claim(folder, recipe, examples.vocabulary.fingerprint)
    asking = question_job(recipe, folder)
    jobs = {QUESTIONS: asking} if asking.parts() else {}
    jobs[EXAMPLES] = examples
    before, again = {name: ledger(job) for name, job in jobs.items()}, {}
    with engine(flags, out, base(out), extras(recipe)) as complete:
        for name, job in jobs.items():
            again[name] = redo(job, name, complete, workers)
            if name == QUESTIONS and again[name]:  # or `build` would ask once more
                finish(job, {**describe_examples(job), "duplicates": "none"}, recipe.limits.failed)
    made = build(recipe, out, flags, workers)
    after = {name: ledger(job) for name, job in jobs.items()}
    return Retried(again, before, after, list(islice(failing(examples), LISTED)), made)


def redo(job: TokenizeJob, name: str, flags: list[str], workers: int) -> list[Again]:
    """Do a job's units that are not done or have failures that may have healed. Returns what was read again."""
    again = RetryJob(job)
    found = [said(job, unit) for part in job.parts() for unit in pending(again, part)]
    if found:
        reopen(job)
        do_rest(again, f"retry {name}", flags, workers)
    return found


def said(job: TokenizeJob, unit: Unit) -> Again:
    """Say what of a unit is read."""
    planned = plan(job, unit, read_report(job.folder, unit.name))
    files = sorted({piece.part.id for piece in planned.pieces if piece.stored is None})
    return Again(unit.name, sum(len(piece.wanted) for piece in planned.pieces), files, planned.why)


def do_rest(job: Job, title: str, flags: list[str], workers: int) -> None:
    """Do what is left of a job on Beam, and leave its index and manifest as they are."""
    units, waiting = count(job)
    if waiting:
        from .beam_jobs import run_job

        prepare(job)
        with ReportBar(title, job.folder, units, units - waiting):
            run_job(job, for_step(flags, title), min(workers, waiting))


def ledger(job: TokenizeJob) -> Ledger:
    """Add up what the reports of a job's units count."""
    reports = (read_report(job.folder, name) for name in finished_units(job.folder))
    return total(report.ledger for report in reports if report)


def failing(job: TokenizeJob) -> Iterator[Reject]:
    """Yield the records that failed, in the order of units."""
    for name in sorted(finished_units(job.folder)):
        report = read_report(job.folder, name)
        if report and report.ledger.failed:
            yield from (reject for reject in read_rejects(job.folder, report) if reject.status == FAILED)
