"""Repair: what `verify` finds is made again from its sources, those units alone, and nothing else is touched.

A unit's new shard has the name of the old one, since its content decides both, and takes its place whole: who reads the
data set meanwhile sees the damaged file or the right one. A report is replaced only if it is still the one that was
read, and index and manifest are written only where they were wrong or a unit is no longer what they say. So a repair
may be killed anywhere: the next one finds what is left to do by the same look at every byte.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ..errors import RunFailed, UserError
from ..packing.ledger import check_failures
from ..packing.manifest import (
    DUPLICATES,
    INDEX,
    MANIFEST,
    read_index,
    read_manifest,
    sweep,
    write_index,
    write_manifest,
)
from ..packing.report import Report, finished_units, read_report, report_name
from ..packing.storage import Folder
from ..packing.verify import Problem, data_sets, verify
from ..recipe import Recipe
from .build import (
    EXAMPLES,
    QUESTIONS,
    RECIPE,
    base,
    describe_examples,
    describe_packed,
    find_duplicates,
    pack_job,
    question_job,
    with_eval_ngrams,
)
from .engines import engine
from .job import Job, finish, is_done
from .pack import PackJob
from .remote import extras, need_reachable
from .retry import do_rest, stored_recipe
from .tokenize import TokenizeJob
from .units import Unit

PACKED = "packed-"
NAMED = 10  # units that are named in one sentence
Look = Callable[[str], list[Problem]]


@dataclass(frozen=True)
class RepairJob:
    """Some units of a job, none of which counts as done."""

    job: Job
    chosen: frozenset[str]

    @property
    def folder(self) -> Folder:
        return self.job.folder

    def parts(self) -> list[str]:
        return self.job.parts()

    def units(self, part: str) -> Iterator[Unit]:
        return (unit for unit in self.job.units(part) if unit.name in self.chosen)

    def names(self, part: str) -> Iterator[str]:
        return self.job.names(part)

    def agrees(self, unit: Unit, report: Report) -> bool:
        return False

    def settle(self, report: Report) -> Report:
        return report

    def run(self, unit: Unit) -> None:
        self.job.run(unit)


@dataclass
class Repaired:
    """Say what came of a repair.

    Attributes:
      found: what was wrong at first.
      ran: by data set, the units that were made again.
      lost: what could not be done, a sentence each.
      left: what is still wrong.
      roots: of the data sets whose root is another than before: both, "" where no manifest could be read.
    """

    found: list[Problem] = field(default_factory=list)
    ran: dict[str, list[str]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    left: list[Problem] = field(default_factory=list)
    roots: dict[str, tuple[str, str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Say it in words."""
        said = [f"{len(self.found):,} problems found" if self.found else "every shard, row, count and digest is right"]
        for name, units in self.ran.items():
            if units:
                said.append(f"{name}: made again, {len(units):,} in number: {', '.join(units)}")
        for name, (before, after) in self.roots.items():
            said.append(f"{name}: its root was {before or 'not to be read'} and is {after or 'not there'}")
        said += [*self.lost, *map(str, self.left)]
        if self.found:
            said.append(f"{len(self.left):,} problems left" if self.left or self.lost else "all is right again")
        return said


@dataclass(frozen=True)
class _Place:
    """A build's folder, its recipe, and the data sets in it that are looked after, in the order of their making."""

    folder: Folder
    recipe: Recipe
    names: list[str]

    def problems(self, look: Look) -> list[Problem]:
        """List what is wrong, with paths that begin with the data set's name."""
        found = [p for p in look(self.folder.url) if p.path.partition("/")[0] in self.names]
        return sorted(found, key=lambda problem: self.names.index(problem.path.partition("/")[0]))

    def roots(self) -> dict[str, str]:
        return {name: str((_manifest(self.folder.sub(name)) or {}).get("root", "")) for name in self.names}


def repair(url: str, flags: list[str], workers: int, look: Look = verify) -> Repaired:
    """Make again what `verify` finds wrong with a build, or with one data set of it and what that was made from.

    Args:
      look: `verify`, perhaps with a bar around it.

    Raises:
      UserError: if there is nothing to verify, or no recipe beside it that says what it was made from.
    """
    place = place_of(url)
    need_reachable(place.recipe, flags)
    before, done = place.roots(), Repaired(found=place.problems(look))
    done.left = done.found
    if done.found:
        with engine(flags, place.folder.url, base(place.folder.url), extras(place.recipe)) as complete:
            _mend_all(place, done, look, complete, workers)
    done.roots = {name: (before[name], root) for name, root in place.roots().items() if root != before[name]}
    return done


def _mend_all(place: _Place, done: Repaired, look: Look, flags: list[str], workers: int) -> None:
    """Mend and look again, since what a broken manifest hides shows when that is mended, until nothing moves."""
    seen: list[Any] = []
    while done.left and (state := (done.left, dict(done.ran))) not in seen:
        seen.append(state)
        done.lost = []
        for name in place.names:
            if mine := [problem for problem in done.left if problem.path.startswith(f"{name}/")]:
                mend(place, name, mine, done, flags, workers)
            if done.lost and not name.startswith(PACKED):
                break  # nothing is made from damaged rows
        done.left = place.problems(look)


def place_of(url: str) -> _Place:
    """Find the build that a folder is, or is in.

    Raises:
      UserError: if there is none.
    """
    alone = data_sets(url) == [""]
    folder = Folder(url.rstrip("/").rpartition("/")[0] or ".") if alone else Folder(url)
    if alone and not folder.exists(RECIPE):
        raise UserError(
            f"{folder.url} has no {RECIPE} that says what {url} was made from: name a folder that 'build' made; what "
            "'pack' made alone is mended by removing the reports in units/ that 'verify' names and packing again"
        )
    names = sorted(data_sets(folder.url), key=lambda name: (name != QUESTIONS, name != EXAMPLES, name))
    if alone:
        own = names.index(base(url))
        names = [*(name for name in names[:own] if not name.startswith(PACKED)), names[own]]
    return _Place(folder, stored_recipe(folder.url), names)


def mend(place: _Place, name: str, problems: list[Problem], done: Repaired, flags: list[str], workers: int) -> None:
    """Make the damaged units of a data set again; where none is, or one became another, its index and manifest."""
    folder = place.folder.sub(name)
    try:
        job = _job(place, name, flags)
        damaged = _damaged(folder, problems)
        chosen, lost = choose(job, damaged) if damaged or isinstance(job, PackJob) else ([], [])
        before = {unit: read_report(folder, unit) for unit in chosen}
        if chosen:
            do_rest(RepairJob(job, frozenset(chosen)), f"repair {name}", flags, workers)
        done.ran[name] = sorted({*done.ran.get(name, []), *chosen})
        if lost:
            done.lost.append(_changed(folder, lost))
        elif not damaged or any(_content(read_report(folder, unit)) != _content(before[unit]) for unit in chosen):
            complete(place, job, flags, any(problem.path == f"{name}/{DUPLICATES}" for problem in problems))
    except UserError as error:
        done.lost.append(f"{folder.url} cannot be repaired: {error}")


def _damaged(folder: Folder, problems: list[Problem]) -> set[str]:
    """Name the units whose own files are wrong or missing; of what the index alone says of one, the index is wrong.

    A report that stands in no index that can be read is a stray: no unit of the data set.
    """
    of_index = {problem.unit for problem in problems if problem.path.endswith(f"/{INDEX}")}
    own = {problem.unit for problem in problems if not problem.path.endswith(f"/{INDEX}")}
    listed = _listed(folder)
    if _manifest(folder) is None:  # no unit was looked at
        of_index |= (listed or set()) | set(finished_units(folder))
    found = (own & listed if listed is not None else own) | {u for u in of_index if read_report(folder, u) is None}
    return found - {""}


def choose(job: Job, damaged: set[str]) -> tuple[list[str], list[str]]:
    """Choose the units to make again, and name those that cannot be, since their input is gone or another by now.

    Of sequences those are made as well that are not done, since the examples that they are of have changed.
    """
    chosen: list[str] = []
    lost: list[str] = []
    gone = set(damaged)
    for unit in (unit for part in job.parts() for unit in job.units(part)):
        gone.discard(unit.name)
        report = read_report(job.folder, unit.name)
        if isinstance(job, PackJob):
            chosen += [unit.name] * (unit.name in damaged or not is_done(job, unit))
        elif unit.name in damaged:
            (lost if report and report.key != unit.key else chosen).append(unit.name)
    return chosen, [*lost, *sorted(gone)] if not isinstance(job, PackJob) else []


def _changed(folder: Folder, lost: list[str]) -> str:
    named = ", ".join(lost[:NAMED]) + (f" and {len(lost) - NAMED:,} more" if len(lost) > NAMED else "")
    return (
        f"{named} of {folder.url} cannot be made again, since its input has changed or is gone: put it back as it was "
        "and repair again, or call 'build' to read what is there now; it was left as it is"
    )


def _content(report: Report | None) -> str:
    return report.shard.content if report else ""


def _manifest(folder: Folder) -> dict[str, Any] | None:
    try:
        return read_manifest(folder)
    except UserError:
        return None


def _job(place: _Place, name: str, flags: list[str]) -> TokenizeJob | PackJob:
    """Return the job that makes a data set.

    Raises:
      UserError: if the recipe says nothing of it, or what it is packed from is not complete.
    """
    folder, recipe = place.folder, place.recipe
    if name == QUESTIONS:
        return question_job(recipe, folder)
    if name == EXAMPLES:
        return TokenizeJob(recipe, folder.sub(EXAMPLES).url, questions=folder.sub(QUESTIONS).url)
    section = next((section for section in recipe.pack if f"{PACKED}{section.name}" == name), None)
    if section is None:
        raise UserError(f"{folder.path(RECIPE)} has no pack section {name.removeprefix(PACKED)}")
    if _manifest(folder.sub(name)) is None:
        folder.sub(name).remove(MANIFEST)  # nobody can read it, and packing would refuse it
    return with_eval_ngrams(pack_job(folder.sub(EXAMPLES).url, folder.sub(name).url, section), flags)


def complete(place: _Place, job: TokenizeJob | PackJob, flags: list[str], lists: bool) -> None:
    """Write what a data set says of all its units: index, manifest, and the list of duplicates, anew if it is to be.

    Raises:
      UserError: if units are missing.
    """
    if isinstance(job, PackJob):
        finish(job, describe_packed(job), 1.0)
        return
    described = describe_examples(job) | ({"duplicates": "none"} if job.replies else {})
    made = restate(job, described, place.recipe.limits.failed)
    if not job.replies:
        if lists:
            job.folder.remove(DUPLICATES)
        find_duplicates(job, made, flags)


def restate(job: TokenizeJob, described: dict[str, Any], limit: float) -> dict[str, Any]:
    """Write index and manifest from the reports, where those are known to be all: the sources may be gone since.

    Raises:
      UserError: if that cannot be known, and the sources do not tell.
    """
    folder, said, listed = job.folder, _manifest(job.folder), _listed(job.folder)
    units = sorted(finished_units(folder))
    strays = set(units) - listed if listed else set()
    if strays:
        for stray in strays - {name for part in job.parts() for name in job.names(part)}:
            folder.remove(report_name(stray))
            units.remove(stray)
    whole = listed == set(units) if listed else said is not None and said.get("units") == len(units)
    if not whole or not folder.exists(MANIFEST):
        return _finished(job, described, limit)
    summary = write_index(folder, (_report(folder, unit) for unit in units))
    check_failures(summary.ledger, limit)
    sweep(folder)
    keep = {name: said[name] for name in described} if said and said.keys() >= described.keys() else described
    return write_manifest(folder, summary, keep)


def _report(folder: Folder, unit: str) -> Report:
    report = read_report(folder, unit)
    if report is None:
        raise RunFailed(f"{folder.path(report_name(unit))} cannot be read")
    return report


def _finished(job: TokenizeJob, described: dict[str, Any], limit: float) -> dict[str, Any]:
    try:
        return finish(job, described, limit)
    except RunFailed as error:
        raise RunFailed(f"it is not complete, and no repair makes it so: call 'build' ({error})") from error


def _listed(folder: Folder) -> set[str] | None:
    """Name the units that the index lists, None where it cannot be read."""
    try:
        return set(read_index(folder).column("unit").to_pylist())
    except (OSError, pa.ArrowException, KeyError):
        return None
