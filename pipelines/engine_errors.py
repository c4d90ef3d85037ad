"""What an engine says when a job fails, in one plain sentence."""

import builtins
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import RunFailed, UserError

AGAIN = "mend it and call the same command again; finished units are kept"
OURS = {"UserError": UserError, "RunFailed": RunFailed}
# The last line of a Python traceback, wherever an engine quotes it: `worldloom.errors.UserError: text [while …`
RAISED = re.compile(r"^\s*(?:[\w.]+\.)?(\w*(?:Error|Exception|Failed|Interrupt|Exit))(?::[ \t]*(.*))?$", re.MULTILINE)
STEP = re.compile(r" \[while running '[^'\n]*'\]")
WORDS = 2000  # characters of what an engine says that are told


@contextmanager
def said_by(engine: str) -> Iterator[None]:
    """Take an engine's wrapping off what a user can mend, and off Ctrl-C.

    Args:
      engine: its name; "" for the one in this process, whose unexpected errors pass as they are, to be looked into.

    Raises:
      UserError: as a worker raised it.
      RunFailed: if a worker failed otherwise, or the engine.
    """
    try:
        yield
    except Exception as error:
        kind, text = cause(error)
        if kind == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        if kind in OURS:
            raise OURS[kind](text) from None
        if engine or is_os_error(error, kind):
            who = "a worker" if kind else f"the engine ({engine})"
            raise RunFailed(f"{who} failed: {text or kind or type(error).__name__}: {AGAIN}") from error
        raise


def cause(error: Exception) -> tuple[str, str]:
    """Find in an engine's error what a worker raised: its type's name ("" if it is the engine's own) and its text."""
    text = STEP.sub("", str(error))
    if isinstance(error, UserError | OSError):
        return type(error).__name__, text
    found = RAISED.findall(text)
    if found:
        kind, said = found[-1]
        return kind, said[:WORDS]
    details = getattr(error, "details", None)  # of gRPC
    return "", " ".join(str(details() if callable(details) else text).split())[:WORDS]


def is_os_error(error: Exception, kind: str) -> bool:
    """Is an error, or one that is only quoted, an operating system's?"""
    known = getattr(builtins, kind, None)
    return isinstance(error, OSError) or (isinstance(known, type) and issubclass(known, OSError))
