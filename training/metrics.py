"""The run's diary: one JSON object a line, safe to append to after a kill.

Step lines have `step, loss, tokens, tokens_per_second, lr, gradient_norm`, where `step` counts from 1, `loss` is of the
step's batch before its update in nats, and `tokens` leaves padding out; of a mixture also `rows_by_set` and
`tokens_by_set`, in the config's order. Evaluation lines have `step, held_out_loss`.
"""

import json
from pathlib import Path
from typing import Any, Self

from tensorboardX import SummaryWriter

from ..errors import UserError

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """Read all whole lines; a torn one, which only a kill in mid-write leaves, is passed over.

    Raises:
      UserError: a whole line is none of ours; names it.
    """
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [_parse(line, path, number) for number, line in enumerate(lines, 1)]


def _parse(line: str, path: Path, number: int) -> Line:
    try:
        found = json.loads(line)
        return found | {"step": int(found["step"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"line {number} of {path} is no line of metrics ({error!r}): delete that line") from None


def append(path: Path, line: Line) -> None:
    """Write one line at the end."""
    with path.open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def rewind(path: Path, step: int) -> None:
    """Drop what lies after `step`: steps that a resumed run does again."""
    kept = [line for line in read(path) if line["step"] <= step]
    fresh = path.with_suffix(".part")
    fresh.write_text("".join(json.dumps(line) + "\n" for line in kept))
    fresh.replace(path)


class Board:
    """Show the diary's numbers in TensorBoard.

    Args:
      folder: where its event files lie.
      step: later steps that an earlier run has shown are hidden.
    """

    def __init__(self, folder: Path, step: int):
        self._writer = SummaryWriter(str(folder), purge_step=step + 1, filename_suffix=f".{step}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, line: Line) -> None:
        """Show a line's numbers; lists, one number a data set, by their place."""
        for key, value in line.items():
            numbers = enumerate(value) if isinstance(value, list) else [(None, value)]
            for at, number in numbers:
                if key != "step":
                    self._writer.add_scalar(key if at is None else f"{key}/{at}", number, line["step"])
