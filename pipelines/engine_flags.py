"""Flags after `--` as Beam reads them: which engine they name, how it starts its workers, what is absent."""

import re
from collections.abc import Sequence

STAGING = ".staging"  # the folder below the output in which engines stage what workers need
IN_PROCESS = ("", "fnapi", "direct")
DASK_PARTITIONS = 16  # Dask's runner spreads nothing: a part is listed so many times over, each time for a share of it


def option(flags: Sequence[str], name: str) -> str:
    """Return what the flags say for an option, `--name=value` or `--name value`, the last one; "" if nothing."""
    found = ""
    for flag, following in zip(flags, [*flags, ""][1:], strict=True):
        key, equals, value = flag.partition("=")
        if key == f"--{name}":
            found = value if equals else following
    return found


def runner(flags: Sequence[str]) -> str:
    """Name the flags' engine as Beam does, in small letters and without `runner`: `dask`; "" where none is named."""
    return option(flags, "runner").rpartition(".")[2].lower().removesuffix("runner")


def is_default(flags: Sequence[str]) -> bool:
    """Do the flags leave the choice of the engine, and of its processes, to worldloom?"""
    return not any(flag.startswith(("--runner", "--direct_")) for flag in flags)


def is_in_process(flags: Sequence[str]) -> bool:
    """Is the engine Beam's in-memory one? Its DirectRunner is another that may fetch a program unasked."""
    return runner(flags) in IN_PROCESS


def shares(flags: Sequence[str]) -> int:
    """Return in how many shares a part's units are to be listed: many where the engine spreads nothing by itself."""
    return int(option(flags, "dask_npartitions") or DASK_PARTITIONS) if runner(flags) == "dask" else 1


def absent(flags: Sequence[str], name: str, value: str) -> list[str]:
    """Return the flag that sets an option, unless the flags have it."""
    return [] if option(flags, name) else [f"--{name}={value}"]


def job_name(name: str) -> str:
    """Make a name that every engine takes: small letters, digits and dashes, at most 60 characters."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:60].rstrip("-")


def for_step(flags: list[str], step: str) -> list[str]:
    """Add a step to the name of its job, where the engine names jobs."""
    given = option(flags, "job_name")
    return [*flags, f"--job_name={job_name(f'{given}-{step}')}"] if given else flags


def installs(flags: Sequence[str]) -> bool:
    """Do the engine's workers start from nothing, and install what the submitter stages?"""
    return runner(flags) == "dataflow" or environment(flags) in ("PROCESS", "DOCKER")


def environment(flags: Sequence[str]) -> str:
    """Return how a portable engine starts its workers: LOOPBACK, EXTERNAL, PROCESS or DOCKER; "" for other engines."""
    chosen = runner(flags)
    if chosen not in ("prism", "flink", "portable", "spark"):
        return ""
    own = chosen == "prism" or (chosen == "flink" and flink_master(flags).startswith("["))
    return option(flags, "environment_type").upper() or ("LOOPBACK" if own else "DOCKER")


def flink_master(flags: Sequence[str]) -> str:
    return option(flags, "flink_master") or "[auto]"
