"""The live bar: it reads the reports, so it is the same on any engine."""

import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..packing.report import finished_units, read_report
from ..packing.storage import Folder

SECONDS = 0.5  # between two looks at the reports, at the least
SHARE = 0.1  # of the time that goes into looking, at the most: a million reports in a bucket take a while to list


class ReportBar:
    """Show units, records, tokens a second and the time left while a job runs. Use as a context manager.

    Without a terminal it says one line at the end. Reports that were there at the start are not watched.
    """

    def __init__(self, title: str, folder: Folder, units: int, done: int):
        self._title, self._folder, self._done = title, folder, done
        self._seen: set[str] = set(finished_units(folder))
        self._records = self._tokens = 0
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("units  {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(title, total=units, completed=done, rate="")
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ReportBar":
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._progress.stop()
        seconds = time.monotonic() - self._started
        print(f"{self._title}: {self._rate()} in {seconds:.1f} s", file=sys.stderr)  # noqa: T201

    def _watch(self) -> None:
        took = 0.0
        while not self._stop.wait(max(SECONDS, took / SHARE)):
            started = time.monotonic()
            self._look()
            took = time.monotonic() - started

    def _look(self) -> None:
        with suppress(
            OSError
        ):  # a store that does not answer now stops no job: the next look sees what this one missed
            for name in finished_units(self._folder):
                if name not in self._seen and (report := read_report(self._folder, name)):
                    self._seen.add(name)
                    self._done += 1
                    self._records += report.ledger.read
                    self._tokens += report.shard.tokens
        self._progress.update(self._task, completed=self._done, rate=self._rate())

    def _rate(self) -> str:
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        return f"{self._records:,} records, {self._tokens:,} tokens, {rate / 1e6:.2f} M tokens/s"
