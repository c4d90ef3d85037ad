"""Local workers at their end: nothing is left behind, and one that hangs there holds nobody up."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import atexit, os, sys, time
from worldloom.pipelines import local_workers


def linger(seconds):
    atexit.register(time.sleep, seconds)
    return seconds


if __name__ == "__main__":
    seconds, local_workers.ENDING = map(float, sys.argv[1:])
    workers = local_workers.LocalWorkers(1)
    print([*workers.submit(linger, seconds), *workers.drain()])
    before = time.monotonic()
    workers.close()
    print(time.monotonic() - before < seconds, flush=True)
    os._exit(0)  # as the command line ends
"""


@pytest.mark.parametrize(("seconds", "at_most", "gone_first"), [(1.0, 60.0, False), (8.0, 0.2, True)])
def test_the_submitter_waits_for_its_workers_but_not_for_ever(
    tmp_path: Path, seconds: float, at_most: float, gone_first: bool
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(seconds), str(at_most)]
    with (tmp_path / "stderr").open("w+") as stderr:  # no pipe: a worker that lingers would keep it open
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True, timeout=120)
        stderr.seek(0)
        assert ended.stdout.split("\n")[:2] == [f"[{seconds}]", str(gone_first)]
        assert gone_first or stderr.read() == ""
