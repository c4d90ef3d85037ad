"""What every job is, whatever engine runs it: units, those still to be done, and the data set they make."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

from ..errors import RunFailed
from ..packing.ledger import check_failures
from ..packing.manifest import MANIFEST, Summary, sweep, write_index, write_manifest
from ..packing.report import REJECTS, SHARDS, UNITS, Report, finished_units, read_report, report_name
from ..packing.storage import Folder
from .units import Unit


class Job(Protocol):
    """A job turns units into committed shards of one data set.

    It is small, can be sent to a worker, and each method gives the same answer on every machine.
    """

    @property
    def folder(self) -> Folder:
        """Where the data set is."""
        ...

    def parts(self) -> list[str]:
        """Name the independent lists of units, for example one a source."""
        ...

    def units(self, part: str) -> Iterator[Unit]:
        """List the units of a part, in the order of their names."""
        ...

    def names(self, part: str) -> Iterator[str]:
        """List the names of a part's units in their order, without looking at what their keys depend on."""
        ...

    def agrees(self, unit: Unit, report: Report) -> bool:
        """Do the rows of a finished unit with the right key still agree with the recipe?"""
        ...

    def settle(self, report: Report) -> Report:
        """Bring what a report says of its own validity up to date. Returns the report as it now is."""
        ...

    def run(self, unit: Unit) -> None:
        """Read a unit, write its shard and commit it."""
        ...


def pending(job: Job, part: str, number: int = 0, shares: int = 1) -> Iterator[Unit]:
    """Yield the units of a part that have no report, or a stale one; of several shares, those of one."""
    return (unit for unit in islice(job.units(part), number, None, shares) if not is_done(job, unit))


def is_done(job: Job, unit: Unit) -> bool:
    """Is there a report of this unit, with its key, that agrees with the recipe, and whose files are there?"""
    return finished_report(job, unit) is not None


def finished_report(job: Job, unit: Unit) -> Report | None:
    """Return the report of a unit that is done, else None."""
    report = read_report(job.folder, unit.name)
    if report is None or report.key != unit.key:
        return None
    files = [report.shard] + ([report.rejects] if report.rejects else [])
    whole = all(job.folder.size(file.path) == file.bytes for file in files)
    return report if whole and job.agrees(unit, report) else None


def run_unit(job: Job, unit: Unit) -> Report:
    """Do a unit unless it is done: engines may ask for it twice, even at once. Returns its report."""
    if not is_done(job, unit):
        job.run(unit)
    report = read_report(job.folder, unit.name)
    if report is None:
        raise RuntimeError(f"unit {unit.name} was run and has no report in {job.folder.url}")
    return report


def run_in_memory(job: Job) -> None:
    """Do all that is to be done, in this process and without an engine: what every engine must equal."""
    prepare(job)
    for part in job.parts():
        for unit in pending(job, part):
            run_unit(job, unit)


def prepare(job: Job) -> None:
    """Make the data set's folders."""
    job.folder.make(UNITS, SHARDS, REJECTS)


def reopen(job: Job) -> None:
    """Say that the data set is no longer complete."""
    job.folder.remove(MANIFEST)


def finish(job: Job, described: dict[str, Any], failure_limit: float) -> dict[str, Any]:
    """Check that every unit is done, index the shards, sweep, and write the manifest.

    Raises:
      RunFailed: if a unit has no report, or more records failed than the limit allows.
    """
    if strays := stray_units(job):
        reopen(job)
        for name in strays:
            job.folder.remove(report_name(name))
    summary: Summary = write_index(job.folder, _reports(job))
    check_failures(summary.ledger, failure_limit)
    sweep(job.folder)
    return write_manifest(job.folder, summary, described)


def _reports(job: Job) -> Iterator[Report]:
    for part in job.parts():
        for unit in job.units(part):
            report = finished_report(job, unit)
            if report is None:
                raise RunFailed(
                    f"unit {unit.name} of {job.folder.url} is not done, or its input changed while the job ran: "
                    "call the same command again; finished units are kept"
                )
            yield job.settle(report)


def stray_units(job: Job) -> list[str]:
    """List the units that have a report and no longer exist, for example of files that were taken away."""
    expected = {name for part in job.parts() for name in job.names(part)}
    return [name for name in finished_units(job.folder) if name not in expected]
