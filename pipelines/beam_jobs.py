"""Beam: the glue that runs a job's units, and finds duplicates, on any runner. No logic lives here."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from ..packing.report import Report
from . import duplicates as found
from .duplicates import Duplicate, Member
from .job import Job, finished_shards, pending, run_unit
from .local_workers import LocalWorkers
from .tokenize import TokenizeJob
from .units import Unit

NAMESPACE = "worldloom"


def pipeline(flags: list[str]) -> beam.Pipeline:
    """Return an empty pipeline for the user's flags; where they name no runner, for Beam's in-memory one."""
    if any(flag.startswith("--runner") for flag in flags):
        return beam.Pipeline(options=PipelineOptions(flags))
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    return beam.Pipeline(FnApiRunner(), PipelineOptions(flags))


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
    work = RunUnitsLocally(job, workers) if workers > 1 and not flags else RunUnit(job)
    with pipeline(flags) as p:
        _ = (
            p
            | "Parts" >> beam.Create(job.parts(), reshuffle=False)
            | "ListUnits" >> beam.ParDo(ListUnits(job))
            | "Spread" >> beam.Reshuffle()
            | "RunUnits" >> beam.ParDo(work)
        )


class ListShards(beam.DoFn):
    """List the example shards of a finished tokenize job."""

    def __init__(self, job: TokenizeJob):
        self._job = job

    def process(self, part: str) -> Iterator[tuple[str, str]]:
        yield from finished_shards(self._job, part)


class Hashes(beam.DoFn):
    """Read the hashes of a shard's examples."""

    def __init__(self, job: TokenizeJob):
        self._job = job

    def process(self, shard: tuple[str, str]) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
        near = self._job.recipe.duplicates == "near"
        for key, member in found.hashes(self._job.folder, *shard, near):
            yield key, tuple(member)


def losers(group: tuple[bytes, Iterable[tuple[Any, ...]]]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield all of a group but the survivor, under one key."""
    key, members = group
    for duplicate in found.losers(key, [Member(*m) for m in members]):
        yield 0, tuple(duplicate)


class WriteDuplicates(beam.DoFn):
    """Write the one list of duplicates; the same list again does no harm."""

    def __init__(self, job: TokenizeJob, key: str):
        self._job, self._key = job, key

    def process(self, group: tuple[int, Iterable[tuple[Any, ...]]]) -> None:
        found.write(self._job.folder, found.strongest(Duplicate(*d) for d in group[1]), self._key)


def run_duplicates(job: TokenizeJob, flags: list[str], key: str) -> None:
    """Find the duplicates of a finished tokenize job. Only hashes and names are shuffled."""
    found.write(job.folder, [], key="")  # where there are none, no group is written
    with pipeline(flags) as p:
        _ = (
            p
            | "Parts" >> beam.Create(job.parts(), reshuffle=False)
            | "ListShards" >> beam.ParDo(ListShards(job))
            | "Spread" >> beam.Reshuffle()
            | "Hashes" >> beam.ParDo(Hashes(job))
            | "ByHash" >> beam.GroupByKey()
            | "Losers" >> beam.FlatMap(losers)
            | "Gather" >> beam.GroupByKey()
            | "Write" >> beam.ParDo(WriteDuplicates(job, key))
        )
    if found.read_key(job.folder) != key:
        found.write(job.folder, [], key)
