"""Engines: one recipe runs on any that Beam knows, and the flags after `--` are all that differs."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..packing.storage import Folder, check_reachable
from .engine_checks import refuse
from .engine_flags import IN_PROCESS, STAGING, absent, installs, job_name, option, runner, shares

DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"
OWN_PACKAGE = ("sdk_container_image", "setup_file", "extra_package", "extra_packages")


@contextmanager
def engine(flags: list[str], out: str, name: str, extras: Sequence[str] = ()) -> Iterator[list[str]]:
    """Refuse what cannot run, then give the flags with all that can be derived; at the end nothing staged is left.

    Args:
      out: where the data set is to be.
      name: of the job, any text.
      extras: of worldloom, that a worker needs besides `build`.

    Raises:
      UserError: if a program, an endpoint or a package is missing, or workers could not write to `out`.
    """
    check_reachable(Folder(out))
    refuse(flags, out)
    try:
        with tempfile.TemporaryDirectory(prefix="worldloom-") as folder:
            yield complete(flags, out, name, Path(folder), extras)
    finally:
        remove_staging(out)


def remove_staging(out: str) -> None:
    """Take away what engines staged under an output folder, a killed call's too."""
    with suppress(OSError):  # most often there is nothing
        fs = Folder(out).fs
        fs.rm(Folder(out).path(STAGING), recursive=True)


def complete(flags: list[str], out: str, name: str, folder: Path, extras: Sequence[str] = ()) -> list[str]:
    """Add what can be derived to the flags. What the user says himself stays.

    Args:
      folder: a local one, for the package that workers install.
    """
    chosen = runner(flags)
    if chosen in IN_PROCESS:
        return flags
    flags = [*flags, *absent(flags, "job_name", job_name(f"worldloom-{name}"))]
    if chosen == "dataflow":
        from . import dataflow

        flags = dataflow.complete(flags, out, name)
    if chosen == "dask":
        flags = [*flags, f"--runner={DASK}", *absent(flags, "dask_npartitions", str(shares(flags)))]
    if chosen == "flink":
        flags = [*flags, *absent(flags, "artifacts_dir", Folder(out).sub(STAGING).url)]
    if installs(flags) and not any(option(flags, own) for own in OWN_PACKAGE):
        from . import staged

        flags = [*flags, f"--extra_package={staged.package(folder, ['build', *stores(out), *extras])}"]
    return flags


def stores(url: str) -> list[str]:
    """Return the extra of worldloom that opens a URL."""
    return {"gs": ["gcs"], "gcs": ["gcs"], "s3": ["s3"]}.get(url.partition("://")[0], [])
