"""Job servers that a call starts by itself and ends with the block: Prism, and Beam's for Flink."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO

from ..errors import RunFailed, UserError
from . import guarded
from .engine_flags import environment, flink_master, option, runner

STARTING = 60.0  # seconds for a program that is started here to listen
ENDING = 15.0  # for it to end
IDLE = "2m"  # after which Prism ends without a job: a submitter that was killed does not end it
PRISM = "github.com/apache/beam/sdks/v2/go/cmd/prism"


def is_started(flags: Sequence[str]) -> bool:
    """Is the engine's job server a program that this call is to start?"""
    uber = any(flag.startswith("--flink_submit_uber_jar") for flag in flags)
    return runner(flags) in ("prism", "flink") and not option(flags, "job_endpoint") and not uber


def command(flags: Sequence[str]) -> list[str]:
    """Return the command of a job server, less its port.

    Raises:
      UserError: if there is no such program.
    """
    return _prism(flags) if runner(flags) == "prism" else _flink_job_server(flags)


def _prism(flags: Sequence[str]) -> list[str]:
    given = option(flags, "prism_location")
    cached = Path("~/.apache_beam/cache/prism/bin/prism").expanduser()
    path = given or shutil.which("prism") or str(cached)
    if not (Path(path).is_file() and os.access(path, os.X_OK)):
        raise UserError(
            f"there is no Prism{f' at {given}' if given else ' on PATH'}: "
            f"go install {PRISM}@v{version('apache-beam')}, and put it on PATH or name it in --prism_location"
        )
    return [path, "--serve_http=false", f"--idle_shutdown_timeout={IDLE}", "--log_level=error", "--job_port"]


def _flink_job_server(flags: Sequence[str]) -> list[str]:
    java, jar = shutil.which("java"), option(flags, "flink_job_server_jar")
    if java is None:
        raise UserError("--runner=FlinkRunner starts a job server in Java, and there is no java on PATH: install it")
    if not jar or not Path(jar).is_file():
        raise UserError(
            f"there is no job server{f' at {jar}' if jar else ''}: name Beam's jar for your Flink in "
            "--flink_job_server_jar, or start it and call with --runner=PortableRunner --job_endpoint=localhost:8099"
        )
    master = flink_master(flags)
    artifacts = option(flags, "artifacts_dir")
    return [java, "-jar", jar, "--flink-master", master, "--artifact-port", "0", "--expansion-port", "0",
            *(["--artifacts-dir", artifacts] if artifacts else []), "--job-port"]  # fmt: skip


@contextmanager
def served(flags: list[str]) -> Iterator[list[str]]:
    """Start the job server that the flags want started, and give the flags that use it; it ends with the block.

    It is no child of the terminal: Ctrl-C is the submitter's to handle, who first cancels the job on the engine.

    Raises:
      RunFailed: if it does not listen in time.
    """
    if not is_started(flags):
        yield flags
        return
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        called = [sys.executable, "-m", guarded.__name__, *command(flags), str(port)]
        process = subprocess.Popen(called, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        try:
            _await_listener(process, port, log)
            yield [*flags, "--runner=PortableRunner", f"--job_endpoint=localhost:{port}",
                   f"--environment_type={environment(flags)}"]  # fmt: skip
        finally:
            _end(process)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def _await_listener(process: "subprocess.Popen[bytes]", port: int, log: IO[bytes]) -> None:
    until = time.monotonic() + STARTING
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("localhost", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    log.seek(0)
    said = (log.read().decode(errors="replace").splitlines() or ["nothing"])[-1]
    how = f"did not listen within {STARTING:.0f} s" if process.poll() is None else "ended at once"
    raise RunFailed(f"the job server {how}, and said last: {said}; its command was {shlex.join(_called(process))}")


def _called(process: "subprocess.Popen[bytes]") -> list[str]:
    assert isinstance(process.args, list)
    return [str(word) for word in process.args[3:]]


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(ENDING)
