"""Rehearsals: what a build does beside reading, done with a sample's own examples, timed and weighed here."""

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..packing.ledger import KEPT
from ..packing.manifest import write_index, write_manifest
from ..packing.report import Reject, Report, UnitWriter, read_report
from ..packing.row import Row
from ..packing.shard import EXAMPLES
from ..recipe import PackSection, Recipe, VisionSection
from ..tokenizers.codebook import Codebook
from ..tokenizers.vision import VisionTokenizer
from .build import describe_examples
from .duplicates import find_in_memory, hashes
from .encoding import BATCH
from .job import Job, prepare
from .models import pictures_of
from .pack import PackJob
from .tokenize import TokenizeJob

Clock = Callable[[], float]
TOKENS, ROWS, REJECTS = 2**22, 10_000, 1_000  # of each source that are rehearsed with, at the most
FRAMES = 4  # encoded together at the least: on a processor several run side by side
ENOUGH = 2.0  # seconds of encoding that tell a pace


def processor_seconds() -> float:
    """Return how long processors worked for this process, and for those that it started and that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


class Written(NamedTuple):
    """What packing a source's examples took and made: seconds, sequences and bytes."""

    seconds: float
    rows: int
    bytes: int


@dataclass(frozen=True)
class Rehearsal:
    """What the steps after reading took and made for the examples of one source.

    Attributes:
      examples, tokens, bytes: those that were written.
      reject_bytes: of one record that is in no shard.
      write_seconds, duplicate_seconds: to write the examples, and to look for duplicates among them.
      packs: by the name of the packing section.
    """

    examples: int
    tokens: int
    bytes: int
    reject_bytes: float
    write_seconds: float
    duplicate_seconds: float
    packs: dict[str, Written] = field(default_factory=dict)


class Pace(NamedTuple):
    """How fast a model makes codes of pictures, and on which kind of device."""

    device: str
    frames_per_second: float


def with_blank_codes(recipe: Recipe, folder: Path) -> Recipe:
    """Give a recipe with pictures a model that takes no time: one code, in the grid of its own model."""
    if recipe.vocabulary.vision is None:
        return recipe
    pictures = pictures_of(recipe.vocabulary)
    side = pictures.size // pictures.grid
    path = str(folder / "blank.npz")
    Codebook(np.zeros((1, side, side, 3), np.uint8), pictures.size).save(path)
    vision = VisionSection(kind="codebook", path=path)
    return recipe.model_copy(update={"vocabulary": recipe.vocabulary.model_copy(update={"vision": vision})})


def pace_of(pictures: VisionTokenizer, clock: Clock | None = None) -> Pace:
    """Time a model of pictures in the batches of a build, or in smaller ones where those take long.

    What is in the frames does not change the time, so that they are drawn at random.

    Args:
      clock: default: of the processor, or of the wall where the model runs on something else.
    """
    clock = clock or (processor_seconds if pictures.device == "cpu" else time.perf_counter)
    frames = np.random.default_rng(0).integers(0, 256, (BATCH, pictures.size, pictures.size, 3), np.uint8)
    pictures.encode(frames[:1])  # what a first call prepares is no part of the pace
    number, done, spent = FRAMES, 0, 0.0
    while spent < ENOUGH:
        begun = clock()
        pictures.encode(frames[:number])
        done, spent = done + number, spent + clock() - begun
        if number < BATCH and spent < ENOUGH:
            number, done, spent = 2 * number, 0, 0.0
    return Pace(pictures.device, done / spent)


def rehearse(
    recipe: Recipe,
    samples: dict[str, tuple[list[Row], list[Reject]]],
    folder: Path,
    clock: Clock = processor_seconds,
) -> dict[str, Rehearsal]:
    """Write, compare and pack examples as a build does, in a temporary folder, by source.

    Args:
      recipe: of which the examples are.
      samples: of each source; rows are repeated, so that what a unit costs once does not weigh much.
    """
    job = TokenizeJob(recipe, str(folder / "examples"))
    prepare(job)
    found = {name: _examples(job, name, *samples[name], clock) for name in job.parts()}
    reports = [_report(job, unit_of(name)) for name in job.parts()]
    described = {**describe_examples(job), "duplicates": "none"}
    root = str(write_manifest(job.folder, write_index(job.folder, reports), described)["root"])
    for section in recipe.pack:
        packing = packing_of(recipe, job.url, root, section, str(folder / f"packed-{section.name}"))
        prepare(packing)
        for name in packing.parts():
            found[name].packs[section.name] = _pack(packing, name, clock)
    return found


def unit_of(source: str) -> str:
    return f"{source}-0000000"


def repeated(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield rows over and over, each with hashes of its own, up to the number that is rehearsed with."""
    tokens = 0
    for number, row in enumerate(islice(cycle(rows), ROWS)):
        if number and tokens + len(row.tokens) > TOKENS:
            return
        tokens += len(row.tokens)
        yield replace(row, exact=number.to_bytes(16, "big"), near=row.near + np.uint64(number))


def packing_of(recipe: Recipe, examples: str, root: str, section: PackSection, url: str) -> PackJob:
    """Say what to pack as a build does, but for what is removed since the eval side has it too, and for duplicates."""
    whole = section.model_copy(update={"remove_eval_ngrams": None})
    return PackJob(examples, root, url, whole, "", recipe.seed, recipe.eval)


def _examples(job: TokenizeJob, name: str, rows: list[Row], rejects: list[Reject], clock: Clock) -> Rehearsal:
    begun = clock()
    _write(job, name, rows, rejects)
    written = clock()
    report = _report(job, unit_of(name))
    if job.recipe.duplicates != "none":
        find_in_memory(hashes(job.folder, report.shard.path, report.unit, job.recipe.duplicates == "near"))
    compared = clock()
    listed = report.rejects.bytes / report.rejects.rows if report.rejects else 0.0
    shard = report.shard
    return Rehearsal(shard.rows, shard.tokens, shard.bytes, listed, written - begun, compared - written)


def _write(job: TokenizeJob, name: str, rows: list[Row], rejects: list[Reject]) -> None:
    """Write a sample's records over and over as one unit."""
    with UnitWriter(job.folder, unit_of(name), job.vocabulary, EXAMPLES) as writer:
        for row in repeated(rows):
            writer.ledger.count(KEPT)
            writer.add(row)
        for number, reject in enumerate(islice(cycle(rejects), REJECTS)):
            writer.reject(replace(reject, record=f"{reject.record} {number}"))
        writer.ledger.read = writer.ledger.kept + writer.ledger.dropped + writer.ledger.failed
        writer.commit(name, key="")


def _pack(packing: PackJob, name: str, clock: Clock) -> Written:
    begun, shards = clock(), []
    for unit in packing.units(name):
        packing.run(unit)
        shards.append(_report(packing, unit.name).shard)
    return Written(clock() - begun, sum(s.rows for s in shards), sum(s.bytes for s in shards))


def _report(job: Job, unit: str) -> Report:
    report = read_report(job.folder, unit)
    assert report is not None
    return report
