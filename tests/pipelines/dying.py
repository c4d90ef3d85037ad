"""Builds that die at a chosen moment, for tests of what a kill leaves behind.

Run as a program. It imports what a build needs once; then each line that it reads, `[recipe, out, change, seconds]` in
JSON, is a build in a fork of its own without an engine, whose import is most of a short build. `seconds` after the
fork is about to make its change number `change` to the files under `out` it is no more. Writes how each fork ended:
the number of the signal, or 0 where the build was done first.
"""

import json
import os
import signal
import sys
from typing import Any

from worldloom.packing.manifest import shards_of
from worldloom.pipelines import duplicates
from worldloom.pipelines.build import EXAMPLES, describe_examples, describe_packed, duplicates_key, pack_job
from worldloom.pipelines.deny import with_deny_lists
from worldloom.pipelines.job import finish, run_in_memory
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.recipe import load_recipe

CHANGES = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}  # as Python audits them
MOST = 120  # seconds for a build that neither ends nor dies


def build_alone(recipe: str, out: str) -> None:
    """Tokenize, find duplicates and pack as `worldloom build` does, all in this process."""
    job = TokenizeJob(with_deny_lists(load_recipe(recipe, [])), f"{out}/{EXAMPLES}")
    run_in_memory(job)
    made = finish(job, describe_examples(job), job.recipe.limits.failed)
    key = duplicates_key(made)
    if duplicates.read_key(job.folder) != key:
        shards = [shard for part in job.parts() for shard in shards_of(job.folder, part)]
        members = [m for path, unit in shards for m in duplicates.hashes(job.folder, path, unit, near=False)]
        duplicates.write(job.folder, duplicates.find_in_memory(members), key)
    for section in job.recipe.pack:
        packing = pack_job(job.url, f"{out}/packed-{section.name}", section)
        run_in_memory(packing)
        finish(packing, describe_packed(packing), 1.0)


def die_at(change: int, seconds: float, out: str) -> None:
    """Have the kernel end this process so long after it is about to make that change under `out`."""
    left = change

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in CHANGES and str(arguments[0]).startswith(out) and (event != "open" or arguments[2] & os.O_ACCMODE):
            left -= 1
            if left == 0 and seconds:
                signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM, which nothing handles, wherever it finds us
            elif left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def main() -> None:
    """Fork a build for each line of standard input."""
    for line in sys.stdin:
        recipe, out, change, seconds = json.loads(line)
        if child := os.fork():
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            sys.stdout.write(f"{-ended}\n")
            sys.stdout.flush()
            continue
        signal.alarm(MOST)
        try:
            die_at(change, seconds, out)
            build_alone(recipe, out)
            os._exit(0)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)


if __name__ == "__main__":
    main()
