"""A whole build as one job of Dataflow, which a flex template launches: one small worker calls the build and waits.

A template makes one job, and a build is several, each of which reads what the last one left. So the one job does no
more than calling `build` on one of Google's machines, with the flags that it was launched with itself. A worker that
is lost is replaced, and calls it again: finished units are kept.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from ..recipe import load_recipe
from .beam_jobs import Sent
from .build import build
from .dataflow import for_hints, split_flags
from .engine_flags import option

PARAMETERS = ("recipe", "out", "set")  # of the template; whatever else it is launched with are Beam's flags
# What belongs to the launched job alone, whatever starts it; each job of the build has its own.
OF_ONE_JOB = ("template_location", "job_name", "staging_location", "temp_location", "num_workers")
SMALL = ("--num_workers=1", "--max_num_workers=1")


class Build(Sent):
    """Build a recipe's data sets, by jobs of their own."""

    def __init__(self, recipe: str, out: str, assignments: list[str], flags: list[str]):
        super().__init__()
        self._recipe, self._out, self._assignments, self._flags = recipe, out, assignments, flags

    def process(self, started: None) -> None:
        recipe = load_recipe(self._recipe, self._assignments)
        build(recipe, self._out, self._flags, workers=1, name=PurePosixPath(self._recipe).stem)


def main(argv: Sequence[str] | None = None) -> None:
    """Launch a build: what the template's launcher calls, with its parameters and Beam's flags."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in PARAMETERS:
        parser.add_argument(f"--{name}", required=name != "set", default="")
    given, flags = parser.parse_known_args(argv)
    step = Build(given.recipe, given.out, shlex.split(given.set), flags_of_build(flags))
    with beam.Pipeline(options=PipelineOptions([*for_hints(flags, {}), *SMALL])) as p:
        _ = p | "Once" >> beam.Create([None], reshuffle=False) | "Build" >> beam.ParDo(step)


def flags_of_build(flags: Sequence[str]) -> list[str]:
    """Return the flags of the build's own jobs: those of the launched one, less what names and places that one."""
    words = [words for words in split_flags(flags) if not any(option(words, name) for name in OF_ONE_JOB)]
    return [word for flag in words for word in flag]
