"""Beam: the glue that runs a job's units, and finds duplicates, on any runner. No logic lives here."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from ..errors import RunFailed, UserError
from ..packing.manifest import shards_of
from ..packing.report import Report
from ..packing.storage import TEMPORARY, Folder
from . import duplicates as found
from . import eval_ngrams
from .duplicates import Duplicate, Member
from .eval_ngrams import Listed, Search
from .job import Job, pending, run_unit
from .local_workers import LocalWorkers
from .tokenize import TokenizeJob
from .units import Unit

NAMESPACE = "worldloom"
OS_ERRORS = {"OSError", "FileNotFoundError", "PermissionError", "BlockingIOError", "ConnectionError", "TimeoutError"}
SLICE = 2**13  # examples whose hashes the in-memory runner holds at once, some megabytes
RUNS = 2**22  # runs of tokens in a slice, whose hashes a worker sorts at once: 32 MB


def is_local(flags: list[str]) -> bool:
    """Do the flags leave the choice of the engine, and of its processes, to worldloom?"""
    return not any(flag.startswith(("--runner", "--direct_")) for flag in flags)


def pipeline(flags: list[str]) -> beam.Pipeline:
    """Return an empty pipeline for the user's flags; where they name no runner, for Beam's in-memory one."""
    if any(flag.startswith("--runner") for flag in flags):
        try:
            return beam.Pipeline(options=PipelineOptions(flags))
        except ValueError as error:
            raise UserError(f"Beam refuses {' '.join(flags)}: {error}") from error
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # it would print what it raises anyway
    return beam.Pipeline(FnApiRunner(), PipelineOptions(flags))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Take Beam's wrapping, a step's name and perhaps a type's, off what a user can mend and off Ctrl-C."""
    try:
        yield
    except Exception as error:
        text = str(error).partition(" [while running ")[0]
        kind, _, rest = text.partition(": ")
        if "KeyboardInterrupt" in kind:
            raise KeyboardInterrupt from None
        if isinstance(error, UserError):
            raise type(error)(text) from None
        if isinstance(error, OSError) or (type(error) is RuntimeError and kind in OS_ERRORS):
            said = text if isinstance(error, OSError) else rest
            raise RunFailed(f"a worker failed: {said}: mend it and call the same command again") from error
        raise


class ListUnits(beam.DoFn):
    """List the units of a part that are still to be done."""

    def __init__(self, job: Job):
        self._job = job

    def process(self, part: str) -> Iterator[Unit]:
        yield from pending(self._job, part)


class RunUnit(beam.DoFn):
    """Do a unit, and count what came of it."""

    def __init__(self, job: Job):
        self._job = job

    def process(self, unit: Unit) -> None:
        count(run_unit(self._job, unit))


class RunUnitsLocally(beam.DoFn):
    """Do units in several processes of this machine, and count what came of them."""

    def __init__(self, job: Job, workers: int):
        self._job, self._number = job, workers

    def start_bundle(self) -> None:
        self._workers = LocalWorkers(self._number)

    def process(self, unit: Unit) -> None:
        for report in self._workers.submit(run_unit, self._job, unit):
            count(report)

    def finish_bundle(self) -> None:
        for report in self._workers.drain():
            count(report)
        self._workers.close()


def count(report: Report) -> None:
    """Add a unit's ledger to Beam's counters."""
    Metrics.counter(NAMESPACE, "units").inc()
    for name in ("read", "kept", "dropped", "failed"):
        Metrics.counter(NAMESPACE, name).inc(getattr(report.ledger, name))
    Metrics.counter(NAMESPACE, "tokens").inc(report.shard.tokens)


def run_job(job: Job, flags: list[str], workers: int) -> None:
    """Do all units of a job that are to be done. One element a part goes in; only units pass through.

    Args:
      workers: processes of the in-memory runner's machine; other runners have flags of their own for it.
    """
    work = RunUnitsLocally(job, workers) if workers > 1 and is_local(flags) else RunUnit(job)
    with plain_errors(), pipeline(flags) as p:
        _ = (
            p
            | "Parts" >> beam.Create(job.parts(), reshuffle=False)
            | "ListUnits" >> beam.ParDo(ListUnits(job))
            | "Spread" >> beam.Reshuffle()
            | "RunUnits" >> beam.ParDo(work)
        )


class ListShards(beam.DoFn):
    """List the shards of finished examples, and their units."""

    def __init__(self, folder: Folder):
        self._folder = folder

    def process(self, part: str) -> Iterator[tuple[str, str]]:
        yield from shards_of(self._folder, part)


class Hashes(beam.DoFn):
    """Read those hashes of a shard's examples that fall into one of several slices."""

    def __init__(self, job: TokenizeJob, number: int, slices: int):
        self._job, self._number, self._slices = job, number, slices

    def process(self, shard: tuple[str, str]) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
        near = self._job.recipe.duplicates == "near"
        for key, member in found.hashes(self._job.folder, *shard, near, self._number, self._slices):
            yield key, tuple(member)


def losers(group: tuple[bytes, Iterable[tuple[Any, ...]]]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield all of a group but the survivor, under one key."""
    key, members = group
    for duplicate in found.losers(key, [Member(*m) for m in members]):
        yield 0, tuple(duplicate)


class WriteDuplicates(beam.DoFn):
    """Write one slice's list of duplicates; the same list again does no harm."""

    def __init__(self, job: TokenizeJob, name: str, key: str):
        self._job, self._name, self._key = job, name, key

    def process(self, group: tuple[int, Iterable[tuple[Any, ...]]]) -> None:
        listed = found.strongest(Duplicate(*d) for d in group[1] if d)
        found.write(self._job.folder, listed, self._key, self._name)


def run_duplicates(job: TokenizeJob, flags: list[str], key: str, records: int) -> None:
    """Find the duplicates of a finished tokenize job. Only hashes and names are shuffled.

    The in-memory runner holds what it shuffles, so it takes the hashes in slices of bounded size.

    Args:
      key: digest of what the list is made from.
      records: number of examples.

    Raises:
      RunFailed: if a worker wrote its list elsewhere.
    """
    slices = max(1, records // SLICE) if is_local(flags) else 1
    names = [f"{TEMPORARY}duplicates-{number}" for number in range(slices)]
    for number, name in enumerate(names):
        with plain_errors(), pipeline(flags) as p:
            hashed = (
                p
                | "Parts" >> beam.Create(job.parts(), reshuffle=False)
                | "ListShards" >> beam.ParDo(ListShards(job.folder))
                | "Spread" >> beam.Reshuffle()
                | "Hashes" >> beam.ParDo(Hashes(job, number, slices))
                | "ByHash" >> beam.GroupByKey()
                | "Losers" >> beam.FlatMap(losers)
            )
            none = p | "None" >> beam.Create([(0, ())], reshuffle=False)  # so that an empty list is written too
            _ = (
                (hashed, none)
                | beam.Flatten()
                | "Gather" >> beam.GroupByKey()
                | "Write" >> beam.ParDo(WriteDuplicates(job, name, key))
            )
    found.merge(job.folder, names, key)


class WriteShard(beam.DoFn):
    """Write the hashes of a shard's runs of tokens on the eval side."""

    def __init__(self, search: Search, slices: int):
        self._search, self._slices = search, slices

    def process(self, shard: tuple[str, str]) -> Iterator[str]:
        yield eval_ngrams.write_shard(self._search, shard[0], self._slices)


class WriteSlice(beam.DoFn):
    """Write one slice of the list of runs, of all shards' hashes."""

    def __init__(self, search: Search, slices: int):
        self._search, self._slices = search, slices

    def process(self, number: int, drafts: Sequence[str]) -> None:
        eval_ngrams.write_slice(self._search, number, self._slices, drafts)


def run_eval_ngrams(search: Search, flags: list[str], tokens: int) -> Listed:
    """List the runs of tokens on the eval side. Each shard is read once, and only names pass through the engine.

    Hashes go through files, 8 bytes a token of the eval side, twice over: a worker holds a shard's, then a slice's.

    Args:
      tokens: about how many the eval side has.

    Raises:
      RunFailed: if a worker wrote its list elsewhere.
    """
    slices = max(1, tokens // RUNS)
    with plain_errors(), pipeline(flags) as p:
        drafts = (
            p
            | "Parts" >> beam.Create(search.parts(), reshuffle=False)
            | "ListShards" >> beam.ParDo(ListShards(search.folder))
            | "Spread" >> beam.Reshuffle()
            | "WriteShards" >> beam.ParDo(WriteShard(search, slices))
        )
        numbers = p | "Slices" >> beam.Create(range(slices))
        _ = numbers | "WriteSlices" >> beam.ParDo(WriteSlice(search, slices), beam.pvalue.AsList(drafts))
    return eval_ngrams.merge(search, slices)
