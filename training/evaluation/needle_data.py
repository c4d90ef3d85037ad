"""Chats that teach to find needles: many numbers hidden in a piece of a book, and questions about them, one a turn."""

import random
from collections.abc import Iterator
from typing import Any

from ...errors import UserError
from .needle import CITIES, HEAD, NEEDLE, ONE, SOME, Coder, Haystack, cut

END = " ASSISTANT:"
SHORT = "What is the special magic {} number?" + END
WORDINGS = (SHORT, ONE, SOME.format("is the special magic number", "{}"))
SPARE = 8  # tokens: what texts that are joined may have more than each of them alone


def make_chats(
    haystack: Haystack, coder: Coder, count: int, shortest: int, length: int, needles: int, asked: int, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield so many chats, as rows of OpenAI's shape: a function of the arguments alone.

    Each is told of 1 to `needles` numbers, anywhere in its piece of a book, and asked up to `asked` times for one of
    them, as often as its length allows; a number may be asked for again. The wordings are the test's, and a short one.

    Args:
      shortest, length: tokens of a chat, drawn evenly from the logarithm of these bounds.

    Raises:
      UserError: if needles and a question do not fit into the shortest.
    """
    if not 1 <= needles <= len(CITIES):
        raise UserError(f"{needles} needles cannot be hidden: give 1 to {len(CITIES)}, of which each has its city")
    for number in range(count):
        rng = random.Random(f"needles {seed} {shortest} {length} {needles} {asked} {number}")
        size = round(shortest * (length / shortest) ** rng.random())
        yield {"id": f"{seed}-{length}-{number}", "messages": make_chat(haystack, coder, size, needles, asked, rng)}


def make_chat(
    haystack: Haystack, coder: Coder, length: int, needles: int, asked: int, rng: random.Random
) -> list[dict[str, str]]:
    """Write one chat of at most `length` tokens, see `make_chats`."""
    cities = rng.sample(CITIES, rng.randint(1, needles))
    hidden = dict(zip(cities, map(str, rng.sample(range(10**6, 10**7), len(cities))), strict=True))
    texts = [NEEDLE.format(city, digits) for city, digits in hidden.items()]
    room = length - SPARE - sum(len(coder.encode(text)) for text in (HEAD, *texts))
    turns = []
    for city in rng.choices(cities, k=asked):
        question = rng.choice(WORDINGS).format(city)
        cost = len(coder.encode(f"USER: {question}")) + len(coder.encode(hidden[city])) + 1
        if cost <= room:
            turns.append((question.removesuffix(END), hidden[city]))
            room -= cost
    if not turns:
        raise UserError(
            f"{length} tokens have no room for {len(cities)} needles and a question: give a greater shortest length"
        )
    part, _ = cut(haystack, room, length, rng)
    points = sorted(rng.randint(0, room) for _ in texts)
    book, last = "", 0
    for point, text in zip(points, texts, strict=True):
        book += coder.decode(part[last:point].tolist()) + text
        last = point
    book += coder.decode(part[last:].tolist())
    (first, digits), *others = turns
    said = [(f"{book} {first}", digits), *others]
    return [
        {"role": role, "content": text} for turn in said for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
