"""Chats that teach to find needles: many numbers hidden in a piece of a book, and questions about them, one a turn."""

import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from .needle import CITIES, HEAD, NEEDLE, ONE, SOME, Coder, Haystack, cut, whole

END = " ASSISTANT:"
SHORT = "What is the special magic {} number?" + END
WORDINGS = (SHORT, ONE, SOME.format("is the special magic number", "{}"))
OFTEN = (3, 1, 1)  # short ones leave room for more answers, of which the model learns
SPARE = 8  # tokens: what texts that are joined may have more than each of them alone
Turn = tuple[str, str]


class Form(NamedTuple):
    """Say what chats are made.

    Attributes:
      length: tokens of a chat, at most.
      needles: numbers that it is told of, at most; each chat draws 1 to so many.
      asked: questions, at most, one a turn: as many as there is room for.
    """

    length: int
    needles: int
    asked: int


def make_chats(haystack: Haystack, coder: Coder, form: Form, count: int, seed: int = 0) -> Iterator[list[Turn]]:
    """Yield so many chats, as questions and answers: a function of the arguments alone.

    Raises:
      UserError: if needles and a question do not fit into the length.
    """
    if not 1 <= form.needles <= len(CITIES):
        raise UserError(f"{form.needles} needles cannot be hidden: give 1 to {len(CITIES)}, of which each has its city")
    for number in range(count):
        yield make_chat(haystack, coder, form, random.Random(f"needles {seed} {tuple(form)} {number}"))


def make_chat(haystack: Haystack, coder: Coder, form: Form, rng: random.Random) -> list[Turn]:
    """Hide numbers anywhere in a piece of a book, and ask for one in each turn, in the test's words or in fewer.

    The book stands before the first question. A number may be asked for again.
    """
    hidden = hide(rng.randint(1, form.needles), rng)
    needles = [NEEDLE.format(*pair) for pair in hidden.items()]
    room = form.length - SPARE - sum(len(coder.encode(text)) for text in (HEAD, *needles))
    turns = []
    for city in rng.choices(list(hidden), k=form.asked):
        (question,) = rng.choices([wording.format(city) for wording in WORDINGS], OFTEN)
        cost = len(coder.encode(f"USER: {question}")) + len(coder.encode(hidden[city])) + 1
        if cost <= room:
            turns.append((question.removesuffix(END), hidden[city]))
            room -= cost
    if not turns:
        raise UserError(
            f"{form.length} tokens have no room for {len(hidden)} needles and a question: "
            "give a greater length, or fewer needles"
        )
    part, _ = cut(haystack, room, form.length, rng)
    (question, digits), *others = turns
    return [(f"{bury(part, needles, coder, rng)} {question}", digits), *others]


def hide(count: int, rng: random.Random) -> dict[str, str]:
    """Give each of so many cities its number."""
    numbers = rng.sample(range(10**6, 10**7), count)
    return dict(zip(rng.sample(CITIES, count), map(str, numbers), strict=True))


def bury(part: np.ndarray, needles: list[str], coder: Coder, rng: random.Random) -> str:
    """Write a piece of a book out with needles between any two of its characters' tokens, and often at its ends."""
    part = part[: whole(part, len(part), coder)]
    points = sorted(rng.choice((0, len(part), *rng.choices(range(len(part) + 1), k=6))) for _ in needles)
    points = sorted(whole(part, point, coder) for point in points)
    text, last = "", 0
    for point, needle in zip(points, needles, strict=True):
        text += coder.decode(part[last:point].tolist()) + needle
        last = point
    return text + coder.decode(part[last:].tolist())


def make_words(count: int, seed: int = 0) -> Iterator[str]:
    """Yield so many needles, each with its questions: what a tokenizer should know beside the books."""
    rng = random.Random(f"words {seed}")
    for _ in range(count):
        ((city, digits),) = hide(1, rng).items()
        yield f"{HEAD}{NEEDLE.format(city, digits)} " + " ".join(wording.format(city) for wording in WORDINGS)
