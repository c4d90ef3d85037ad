"""Beam: the glue that runs a job's units, and finds duplicates, on any runner. No logic lives here."""

import logging
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from ..packing.report import read_report
from . import duplicates as found
from .duplicates import Duplicate, Member
from .job import Job, is_done, pending
from .tokenize import TokenizeJob
from .units import Unit

NAMESPACE = "worldloom"


def pipeline(flags: list[str], workers: int) -> beam.Pipeline:
    """Return an empty pipeline for the user's flags; where they name no runner, for Beam's in-memory one.

    Several workers are processes that it starts; small messages only pass through it.
    """
    if any(flag.startswith("--runner") for flag in flags):
        return beam.Pipeline(options=PipelineOptions(flags))
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    if workers == 1:
        return beam.Pipeline(FnApiRunner(), PipelineOptions(flags))
    command = f"{shlex.quote(sys.executable)} -m worldloom.pipelines.local_worker {os.getpid()}"
    runner = FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))
    return beam.Pipeline(runner, PipelineOptions([f"--direct_num_workers={workers}", *flags]))


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

    def process(self, unit: Unit) -> Iterator[str]:
        if not is_done(self._job, unit):
            self._job.run(unit)
        report = read_report(self._job.folder, unit.name)
        if report is None:
            raise RuntimeError(f"unit {unit.name} was run and has no report in {self._job.folder.url}")
        Metrics.counter(NAMESPACE, "units").inc()
        for name in ("read", "kept", "dropped", "failed"):
            Metrics.counter(NAMESPACE, name).inc(getattr(report.ledger, name))
        Metrics.counter(NAMESPACE, "tokens").inc(report.shard.tokens)
        yield unit.name


def run_job(job: Job, flags: list[str], workers: int) -> None:
    """Do all units of a job that are to be done. One element a part goes in, one name a unit comes out."""
    with pipeline(flags, workers) as p:
        _ = (
            p
            | "Parts" >> beam.Create(job.parts(), reshuffle=False)
            | "ListUnits" >> beam.ParDo(ListUnits(job))
            | "Spread" >> beam.Reshuffle()
            | "RunUnits" >> beam.ParDo(RunUnit(job))
        )


class ListShards(beam.DoFn):
    """List the example shards of a finished tokenize job."""

    def __init__(self, job: TokenizeJob):
        self._job = job

    def process(self, part: str) -> Iterator[tuple[str, str]]:
        for unit in self._job.units(part):
            report = read_report(self._job.folder, unit.name)
            assert report is not None, unit.name  # the job was finished
            yield report.shard.path, unit.name


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
    with pipeline(flags, workers=1) as p:
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
