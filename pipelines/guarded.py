"""Run a program that ends when whoever started it is gone, however that ended: `python -m … PROGRAM ARGUMENT…`.

It is told by its standard input: a pipe that nobody else holds, which the kernel closes.
"""

import os
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run a program until it ends or standard input does. Returns its exit code."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    return process.wait()


def _end_with_input(process: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 1):  # without the lock that sys.stdin would hold while Python ends
        pass
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
