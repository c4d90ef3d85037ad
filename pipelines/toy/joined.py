"""Long videos of the toy world: clips joined into one, and questions that each name the clip that they are about."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from .world import Question, Scene, film, questions, scene

TEMPLATE = "In clip {number}, {question}"


def word(which: int, question: str, template: str = TEMPLATE) -> str:
    """Name a clip in a question about it.

    Args:
      which: counted from 0.
      template: may hold {number}, which counts from 1, or {ordinal}, as in 1st; {question} begins with a small letter.
    """
    number = which + 1
    named = template.format(number=number, ordinal=ordinal(number), question=question[:1].lower() + question[1:])
    return named[:1].upper() + named[1:]


def check_template(template: str) -> None:
    """Refuse a template that leaves out the question, or which clip it is about.

    Raises:
      UserError: says what it may hold.
    """
    try:
        written = [word(which, "Where?", template) for which in (0, 1)]
    except (KeyError, IndexError, ValueError):
        written = []
    if len(set(written)) < 2 or "where?" not in written[0].lower():
        raise UserError(f"{template!r}: a template holds {{question}}, {{number}} or {{ordinal}}, and no other braces")


def ordinal(number: int) -> str:
    """Write a number as in a row: 1st, 2nd, 3rd, 4th, … 11th, … 21st."""
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def ask_joined(scenes: Sequence[Scene], asked: int, template: str, rng: random.Random) -> list[Question]:
    """Draw different questions about joined clips, with their answers."""
    every = [(which, *one) for which, shown in enumerate(scenes) for one in questions(shown)]
    drawn = rng.sample(every, min(asked, len(every)))
    return [Question(word(which, question, template), answer) for which, question, answer in drawn]


def write_joined(
    folder: str | Path,
    count: int,
    clips: Sequence[int],
    scenes: Sequence[int],
    seed: int = 0,
    asked: int = 3,
    template: str = TEMPLATE,
    size: int = 256,
    seconds: float = 2.0,
) -> Path:
    """Write joined videos and a chat about each, as a source of kind `chat` reads them; return FOLDER/joined.jsonl.

    Args:
      clips: how many are joined: one of these numbers for each video.
      scenes: numbers of the moving scenes to draw from; none of those that are held out.
      asked: questions in a chat.
    """
    check_template(template)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        rng = random.Random(f"joined {seed} {number}")
        shown = [scene(seed, n, moving=True) for n in rng.sample(scenes, rng.choice(clips))]
        name = f"joined-{number:06d}"
        (root / f"{name}.mp4").write_bytes(film(shown, size, seconds))
        asked_of = ask_joined(shown, asked, template, rng)
        lines.append(json.dumps({"id": name, "messages": _messages(asked_of, f"{name}.mp4")}))
    path = root / "joined.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    return path


def _messages(asked: Sequence[Question], video: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for question, answer in asked:
        said = [{"type": "text", "text": question}]
        medium = [] if messages else [{"type": "video", "video": video}]
        messages += [{"role": "user", "content": medium + said}, {"role": "assistant", "content": answer}]
    return messages
