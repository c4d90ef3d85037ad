"""A job some of whose units fail: in a module of its own, so that other processes can open it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worldloom.packing.report import Report
from worldloom.packing.storage import Folder
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.pipelines.units import Unit

ERRORS: dict[str, Exception] = {
    "bug": KeyError("colour"),
    "lost": FileNotFoundError(2, "No such file or directory", "gs://bucket/a.tar"),
    "network": ConnectionResetError(104, "Connection reset by peer"),
    "full": OSError(28, "No space left on device"),
}


@dataclass(frozen=True)
class Failing:
    """A tokenize job whose units of some names raise an error, the first `times` times that they are tried.

    Attributes:
      log: a folder in which each try of such a unit leaves a file.
    """

    job: TokenizeJob
    broken: tuple[str, ...]
    error: str
    log: str
    times: int = 1000

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
        return self.job.agrees(unit, report)

    def settle(self, report: Report) -> Report:
        return self.job.settle(report)

    def tries(self, name: str) -> int:
        return len(list(Path(self.log).glob(f"{name}.*")))

    def run(self, unit: Unit) -> None:
        if unit.name in self.broken:
            tries = self.tries(unit.name)
            Path(self.log, f"{unit.name}.{tries}").touch()
            if tries < self.times:
                raise ERRORS[self.error]
        self.job.run(unit)
