"""Worker processes on the submitter's machine, which must not outlive it."""

import os
import threading
import time

SECONDS = 0.5


def end_with_submitter(submitter: int | None) -> None:
    """End this process soon after the submitting one is gone, so that a kill leaves no writer behind.

    Args:
      submitter: its process id, or None where workers are on other machines or in the submitting process.
    """
    if submitter is not None and submitter != os.getpid():
        threading.Thread(target=_watch, args=(submitter,), daemon=True).start()


def _watch(submitter: int) -> None:
    while _alive(submitter):
        time.sleep(SECONDS)
    os._exit(1)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
