"""Beam: the glue that runs a job's units, and finds duplicates, on any runner. No logic lives here."""

import logging
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from itertools import islice, product
from types import FrameType
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.internal import pickler
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineState

from ..errors import UserError
from ..packing.manifest import shards_of
from ..packing.report import Report
from ..packing.storage import TEMPORARY, Folder
from . import duplicates as found
from . import eval_ngrams
from .dataflow import for_hints, hints
from .duplicates import Duplicate, Member
from .engine_errors import said_by
from .engine_flags import is_default, is_in_process, runner, shares
from .eval_ngrams import Listed, Search
from .job import Job, pending
from .job_servers import served
from .local_workers import LocalWorkers
from .same_code import Sealed, opened
from .tokenize import TokenizeJob
from .underway import Errand, attempt, errand, underway

NAMESPACE = "worldloom"
SLICE = 2**13  # examples whose hashes the in-memory runner holds at once, some megabytes
RUNS = 2**22  # runs of tokens in a slice, whose hashes a worker sorts at once: 32 MB
CANCELLING = 60.0  # seconds that an engine gets to end a job
Share = tuple[str, int, int]  # a part, and which of how many shares of its units or shards


@contextmanager
def running(flags: list[str]) -> Iterator[beam.Pipeline]:
    """Give an empty pipeline for the user's flags, and run it to its end.

    Raises:
      KeyboardInterrupt: once the engine has ended the job.
      UserError, RunFailed: if a worker raised it, or the job failed otherwise.
    """
    here = is_in_process(flags)
    with said_by("" if here else runner(flags)), quiet(), served(flags) as complete:
        p = pipeline(complete)
        yield p
        result: PipelineResult | None = None
        try:
            with nullcontext() if here else held_back():
                result = p.result = p.run()
            result.wait_until_finish()
        except BaseException:
            cancel(result)
            raise
        finally:
            close(result)


def pipeline(flags: list[str]) -> beam.Pipeline:
    """Return an empty pipeline for the user's flags; where they name no runner, for Beam's in-memory one.

    Raises:
      UserError: if Beam refuses the flags.
    """
    try:
        return beam.Pipeline(FnApiRunner() if is_in_process(flags) else None, PipelineOptions(for_hints(flags, {})))
    except (ValueError, ImportError) as error:
        raise UserError(f"Beam refuses {' '.join(flags)}: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what Beam prints at length and raises anyway; workers in this process print even after their job."""

    def is_other(record: logging.LogRecord) -> bool:
        return record.module != "portable_runner"  # which prints by the root logger

    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    bear_lost_engines()
    logging.getLogger().addFilter(is_other)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_other)


@cache
def bear_lost_engines() -> None:
    """Have Beam's threads say nothing, from now on, when an engine that has ended leaves them: they print all of it."""
    otherwise = threading.excepthook

    def hook(thrown: threading.ExceptHookArgs) -> None:
        if not isinstance(thrown.exc_value, grpc.RpcError):
            otherwise(thrown)

    threading.excepthook = hook


@contextmanager
def held_back() -> Iterator[None]:
    """Hold the first Ctrl-C back while a job is sent off: one that nobody has heard of could not be cancelled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def hold(number: int, frame: FrameType | None) -> None:
        if held and callable(before):
            before(number, frame)
        held.append(number)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


def cancel(result: PipelineResult | None) -> None:
    """End a job on its engine, and wait until it has ended, for a while."""
    with suppress(Exception):  # an engine that is gone, or has ended the job itself
        if result is None or PipelineState.is_terminal(result.state):
            return
        result.cancel()
        until = time.monotonic() + CANCELLING
        while not PipelineState.is_terminal(result.state) and time.monotonic() < until:
            time.sleep(0.2)


def close(result: PipelineResult | None) -> None:
    """Leave Dask's scheduler, and end it where it was started for this job: its processes would outlive ours."""
    client = getattr(result, "client", None)
    if client is not None:
        own = client.cluster
        client.close()
        if own is not None:
            own.close()


def parts_of(p: beam.Pipeline, parts: Iterable[str], flags: list[str]) -> beam.PCollection[Share]:
    """Begin a pipeline with a job's parts, in shares where the engine would do all of a part's units in one place."""
    number = shares(flags)
    return p | "Parts" >> beam.Create([(part, i, number) for part, i in product(parts, range(number))], reshuffle=False)


class Sent(beam.DoFn):
    """A step that is sealed on its way to workers, and opened there only by the same code.

    Not as soon as it arrives: Flink would wait minutes for a worker that refuses so early.
    """

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if "sealed" in self.__dict__ else {"sealed": Sealed(pickler.dumps(self.__dict__))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def start_bundle(self) -> None:
        if "sealed" in self.__dict__:
            self.__dict__.update(pickler.loads(opened(self.__dict__.pop("sealed"))))


class ListUnits(Sent):
    """List a share of the units of a part that are still to be done, as errands."""

    def __init__(self, job: Job, run: Folder):
        self._job, self._run = job, run

    def process(self, share: Share) -> Iterator[tuple[Any, ...]]:
        for unit in pending(self._job, *share):
            yield tuple(errand(self._run, unit))


class RunUnit(Sent):
    """Do a unit, and count what came of it."""

    def __init__(self, job: Job, run: Folder):
        self._job, self._run = job, run

    def process(self, told: tuple[Any, ...]) -> None:
        count(attempt(self._job, self._run, Errand(*told)))


class RunUnitsLocally(beam.DoFn):
    """Do units in several processes of this machine, and count what came of them."""

    def __init__(self, job: Job, run: Folder, workers: int):
        self._job, self._run, self._number = job, run, workers

    def start_bundle(self) -> None:
        self._workers = LocalWorkers(self._number)

    def process(self, told: tuple[Any, ...]) -> None:
        for report in self._workers.submit(attempt, self._job, self._run, Errand(*told)):
            count(report)

    def finish_bundle(self) -> None:
        for report in self._workers.drain():
            count(report)
        self._workers.close()


def count(report: Report | None) -> None:
    """Add a unit's ledger to Beam's counters."""
    Metrics.counter(NAMESPACE, "units" if report else "failed_units").inc()
    if report:
        for name in ("read", "kept", "dropped", "failed"):
            Metrics.counter(NAMESPACE, name).inc(getattr(report.ledger, name))
        Metrics.counter(NAMESPACE, "tokens").inc(report.shard.tokens)


def run_job(job: Job, flags: list[str], workers: int) -> None:
    """Do all units of a job that are to be done. One element a share of a part goes in; only units pass through.

    Args:
      workers: processes of the in-memory runner's machine; other runners have flags of their own for it.

    Raises:
      RunFailed: if units failed, with a line for each.
    """
    with underway(job.folder) as run:
        work = RunUnitsLocally(job, run, workers) if workers > 1 and is_default(flags) else RunUnit(job, run)
        given = hints(job, flags)
        with running(for_hints(flags, given)) as p:
            _ = (
                parts_of(p, job.parts(), flags)
                | "ListUnits" >> beam.ParDo(ListUnits(job, run))
                | "Spread" >> beam.Reshuffle()
                | "RunUnits" >> beam.ParDo(work).with_resource_hints(**given)
            )


class ListShards(Sent):
    """List a share of the shards of finished examples, and their units."""

    def __init__(self, folder: Folder):
        self._folder = folder

    def process(self, share: Share) -> Iterator[tuple[str, str]]:
        part, number, shares = share
        yield from islice(shards_of(self._folder, part), number, None, shares)


class Hashes(Sent):
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


class WriteDuplicates(Sent):
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
    slices = max(1, records // SLICE) if is_default(flags) else 1
    names = [f"{TEMPORARY}duplicates-{number}" for number in range(slices)]
    for number, name in enumerate(names):
        with running(flags) as p:
            hashed = (
                parts_of(p, job.parts(), flags)
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


class WriteShard(Sent):
    """Write the hashes of a shard's runs of tokens on the eval side."""

    def __init__(self, search: Search, slices: int):
        self._search, self._slices = search, slices

    def process(self, shard: tuple[str, str]) -> Iterator[str]:
        yield eval_ngrams.write_shard(self._search, shard[0], self._slices)


class WriteSlice(Sent):
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
    with running(flags) as p:
        drafts = (
            parts_of(p, search.parts(), flags)
            | "ListShards" >> beam.ParDo(ListShards(search.folder))
            | "Spread" >> beam.Reshuffle()
            | "WriteShards" >> beam.ParDo(WriteShard(search, slices))
        )
        numbers = p | "Slices" >> beam.Create(range(slices))
        _ = numbers | "WriteSlices" >> beam.ParDo(WriteSlice(search, slices), beam.pvalue.AsList(drafts))
    return eval_ngrams.merge(search, slices)
