"""A worker process on the submitter's machine: Beam's own, but quiet, and gone when the submitter is.

Started as `python -m worldloom.pipelines.local_worker PID`, with the submitter's process id.
"""

import logging
import os
import signal
import sys
import threading
import time

SECONDS = 0.5  # between two looks at the submitter


def main() -> None:
    submitter = int(sys.argv[1])
    threading.Thread(target=_end_with, args=(submitter,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the submitter's to handle
    logging.disable(logging.WARNING)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


def _end_with(submitter: int) -> None:
    """End this process at once when the submitter is gone: a kill must leave no writer behind."""
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


if __name__ == "__main__":
    main()
