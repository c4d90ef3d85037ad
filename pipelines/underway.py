"""What a running job keeps beside its data set and takes away at its end: long units' parts, and what failed.

Each call has a folder of its own, so that two builds of one data set do not disturb each other.
"""

import json
import logging
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ..errors import RunFailed, UserError
from ..packing.report import Report, read_report
from ..packing.storage import Folder
from .engine_errors import AGAIN
from .job import Job, finished_report, run_unit
from .units import Part, Unit

UNDERWAY = "underway"
FAILED, PARTS = "failed", "parts"
RUNNING = "running"  # while it is there, the call that began the job waits for it
MOST_FAILED = 100  # failed units after which no further one is begun
MOST_BYTES = 512  # of an errand's parts; longer ones are read from a file
PAUSES = (1.0, 5.0)  # seconds before a unit is tried again
FOR_GOOD = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
NO_SPACE = (28, 122, 30)  # ENOSPC, EDQUOT, EROFS: waiting seconds mends none of them
LOG = logging.getLogger(__name__)


class Errand(NamedTuple):
    """A unit as it passes through an engine: under 1 KB, whatever it reads.

    Attributes:
      name, source, key: the unit's.
      parts: compressed, or b"" where they are in a file.
    """

    name: str
    source: str
    key: str
    parts: bytes


def errand(run: Folder, unit: Unit) -> Errand:
    """Make a unit small: the parts of one that reads many files go into a file of their own."""
    parts = zlib.compress(json.dumps(unit.parts).encode())
    if len(parts) > MOST_BYTES:
        run.overwrite(f"{PARTS}/{unit.name}", parts)
        parts = b""
    return Errand(unit.name, unit.source, unit.key, parts)


def unit_of(run: Folder, errand: Errand) -> Unit:
    """Make the unit of an errand again.

    Raises:
      RunFailed: if its parts are not where the submitter's worker put them.
    """
    parts = errand.parts or run.read(f"{PARTS}/{errand.name}")
    if parts is None:
        raise RunFailed(f"{run.path(PARTS)} does not say what it reads: does every worker see that folder?")
    return Unit(errand.name, errand.source, tuple(Part(*p) for p in json.loads(zlib.decompress(parts))), errand.key)


def attempt(job: Job, run: Folder, errand: Errand) -> Report | None:
    """Do a unit unless it is done, and again after an error that may pass. Returns its report; None if it failed.

    Why it failed is noted in `run`. An error that cannot be noted there is raised.

    Raises:
      RunFailed: if too many units failed for the rest to be worth a try, or nobody waits for them any more: not every
        engine ends a job that is cancelled.
    """
    done = finished_report(job, Unit(errand.name, errand.source, (), errand.key))
    if done:
        return done
    if run.size(RUNNING) is None:
        raise RunFailed("the call that began this job has ended, so that no other unit is begun")
    try:
        return patiently(lambda: run_unit(job, unit_of(run, errand)))
    except Exception as error:
        LOG.info("unit %s failed", errand.name, exc_info=True)
        try:
            run.overwrite(f"{FAILED}/{errand.name}", f"{errand.key}\n{cause(error)}".encode())
        except OSError:
            raise error from None
    if sum(1 for _ in run.names(FAILED)) >= MOST_FAILED:
        raise RunFailed(f"{MOST_FAILED} units failed, so that no other is begun")
    return None


def patiently(work: Callable[[], Report]) -> Report:
    """Do something again, a few times, after an error that may pass."""
    for pause in PAUSES:
        try:
            return work()
        except OSError as error:
            if not may_pass(error):
                raise
            time.sleep(pause)
    return work()


def may_pass(error: OSError) -> bool:
    """Is an error one of a network or a busy store, rather than of a file or a full disk?"""
    return not isinstance(error, FOR_GOOD) and error.errno not in NO_SPACE


def cause(error: Exception) -> str:
    """Say in one line what went wrong."""
    said = " ".join(str(error).split())
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"


@contextmanager
def underway(folder: Folder) -> Iterator[Folder]:
    """Give a running job a folder, and take it away at its end.

    Raises:
      RunFailed: if units failed: a line for each, and the remedy.
    """
    run = folder.sub(f"{UNDERWAY}/{uuid.uuid4().hex}")
    run.make(FAILED, PARTS)
    run.overwrite(RUNNING, b"")
    try:
        try:
            yield run
        except Exception as error:
            raise_failed(folder, run, cause(error))
            raise
        raise_failed(folder, run, "")
    finally:
        clear(folder, run)


def raise_failed(folder: Folder, run: Folder, engine: str) -> None:
    """Raise what is noted of units that failed and were not done by another try, and what the engine said."""
    lines = [line for name in sorted(run.names(FAILED)) if (line := line_of(folder, run, name))]
    if lines:
        units = "1 unit" if len(lines) == 1 else f"{len(lines)} units"
        last = engine or f"{units} failed"
        raise RunFailed("\n".join([*lines, last if last.endswith(AGAIN) else f"{last}: {AGAIN}"]))


def line_of(folder: Folder, run: Folder, unit: str) -> str:
    """Say why a unit failed, naming it once; "" where it was done all the same: an engine may ask for it twice."""
    key, _, why = (run.read(f"{FAILED}/{unit}") or b"").decode().partition("\n")
    report = read_report(folder, unit)
    if report is not None and report.key == key:
        return ""
    named = f"unit {unit}: "
    return why if why.startswith(named) else f"{named}{why}"


def clear(folder: Folder, run: Folder | None = None) -> None:
    """Take away what is kept for one running job, or for all: units that are done need none of it."""
    fs, whole = folder.fs, folder.path(UNDERWAY)
    with suppress(OSError):  # most often there is nothing, or a worker still writes into it
        fs.rm(run.path() if run else whole, recursive=True)
    if run:
        with suppress(OSError):  # another job's folder is in it
            fs.rmdir(whole)
