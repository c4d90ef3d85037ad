"""What the commands of all rooms share in describing themselves."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Handler = Callable[[argparse.Namespace], int]


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults that say something, and examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default in (None, [], False) or "default:" in (action.help or "")
        return action.help if said else super()._get_help_string(action)


def add_command(commands: Any, name: str, handler: Handler, what: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=what, epilog=f"example:\n  {example}", formatter_class=Formatter
    )
    parser.set_defaults(handler=handler)
    return parser


def add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key; may be repeated")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for machines")


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Lend a bar on stderr, where that is a terminal: call it with what is done and what there is in all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
