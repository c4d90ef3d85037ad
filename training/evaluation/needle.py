"""Needles in a haystack: magic numbers hidden in books and asked for, as LWM does (scripts/eval_needle.py and _multi).

Prompts are made of ids, so a length is exact and a depth is counted in the tokens of the tokenizer at hand.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...errors import UserError

HEAD = "You are a helpful assistant. USER:"
NEEDLE = "\nThe special magic {} number is: {}\n"
ONE = (
    "What is the special magic {} number? Don't give information outside the document or repeat your findings. "
    "Keep your response short and direct. ASSISTANT:"
)
SOME = "What {} for {}? Don't give information outside the document. ASSISTANT:"
ROOM = 32  # tokens kept free for the reply: LWM keeps 200 for question and reply
CITIES = (  # the 69 of LWM's list, which names some of them twice
    *("Chicago", "Yangon", "Antananarivo", "Colombo", "Almaty", "Sydney", "Mexico City", "Seattle", "Lagos"),
    *("Amsterdam", "Belgrade", "Cairo", "Baghdad", "Damascus", "Kigali", "Dakar", "Sofia", "Victoria", "Tashkent"),
    *("Mumbai", "Barcelona", "Amman", "Toronto", "Bratislava", "Johannesburg", "Thimphu", "Bangkok", "Santiago"),
    *("San Francisco", "Paris", "Rabat", "Copenhagen", "Madrid", "Ho Chi Minh City", "Sarajevo", "Delhi", "Istanbul"),
    *("Khartoum", "Helsinki", "Doha", "Kuala Lumpur", "Budapest", "Shanghai", "Moscow", "Los Angeles", "Oslo"),
    *("Berlin", "Bangalore", "Tokyo", "Melbourne", "Port Louis", "Lisbon", "Nairobi", "Kampala", "Lima", "Maputo"),
    *("Vancouver", "Dubai", "Jakarta", "Yerevan", "Beirut", "Athens", "Bucharest", "Brussels", "Tunis", "Astana"),
    *("Seoul", "Buenos Aires", "Vienna"),
)


class Coder(NamedTuple):
    """Turn text into ids, none of which begins or ends a sequence, and back; `bos` begins one."""

    encode: Callable[[str], Sequence[int] | np.ndarray]
    decode: Callable[[Sequence[int] | np.ndarray], str]
    bos: int


@dataclass(frozen=True, eq=False)
class Haystack:
    """Hold books end to end.

    Attributes:
      tokens: ids, int32 `[n]`.
      borders: offsets at which a sentence begins, ascending, int64; 0 is the first.
    """

    tokens: np.ndarray
    borders: np.ndarray


@dataclass(frozen=True, eq=False)
class Trial:
    """Hold one question and what it is about.

    Attributes:
      length, depth, number: tokens of prompt and reply, percent, and which one of this cell.
      straws: the haystack's ids before, between and after the needles.
      needles: in the order in which they lie.
      question: with what stands around it.
      expected: the numbers that are asked for, in the question's order.
      prompt: the ids of it all, int32 `[length - room]`, from BOS to `ASSISTANT:`.
    """

    length: int
    depth: int
    number: int
    straws: tuple[np.ndarray, ...]
    needles: tuple[str, ...]
    question: str
    expected: tuple[str, ...]
    prompt: np.ndarray

    @property
    def answer(self) -> str:
        """The reply that training data gives."""
        return ", ".join(self.expected)

    def text(self, decode: Callable[[np.ndarray], str]) -> str:
        """Write out what the user says, without the marks of LWM's template, for a server that has its own."""
        book = [decode(self.straws[0])]
        for needle, straw in zip(self.needles, self.straws[1:], strict=True):
            book += [needle, decode(straw)]
        return f"{''.join(book)} {self.question.removesuffix(' ASSISTANT:')}"


def make_haystack(books: Iterable[str], coder: Coder) -> Haystack:
    """Encode books and find their sentences: one ends with `.`, `!` or `?` before a space.

    Raises:
      UserError: if there is no text.
    """
    coded = [np.asarray(coder.encode(book), np.int32) for book in books]
    tokens = np.concatenate([np.empty(0, np.int32), *coded])
    if not len(tokens):
        raise UserError("the haystack has no text: name books that are not empty")
    ids, which = np.unique(tokens, return_inverse=True)
    stops = np.array([coder.decode([int(i)]).endswith((".", "!", "?")) for i in ids])
    ends = np.flatnonzero(stops[which[:-1]])
    pairs, which = np.unique(np.stack([tokens[ends], tokens[ends + 1]], axis=1), axis=0, return_inverse=True)
    spaced = np.array([_is_border(coder.decode(pair.tolist())) for pair in pairs], bool)
    return Haystack(tokens, np.concatenate([[0], ends[spaced[which.ravel()]] + 1]))


def _is_border(pair: str) -> bool:
    """Does the text of two tokens, the first of which ends with a stop, have a space after it?"""
    return any(stop in pair for stop in (". ", "! ", "? ", ".\n", "!\n", "?\n"))


def make_trial(
    haystack: Haystack,
    coder: Coder,
    length: int,
    depth: int,
    number: int,
    seed: int = 0,
    needles: int = 1,
    asked: int = 1,
    room: int = ROOM,
) -> Trial:
    """Hide numbers of distinct cities in a part of the haystack, and ask for some: by the arguments alone.

    One that is asked for lies at `depth` percent of the haystack's tokens, moved back to where a sentence begins, or at
    100 at its very end; the others begin sentences anywhere.

    Args:
      length: tokens of the prompt and of `room` together.
      number: tells the trials of a cell apart.
      needles, asked: how many are hidden, and for how many of them the question asks.

    Raises:
      UserError: if the length is too short for the needles, or the haystack for the length.
    """
    check_form(needles, asked, depth)
    rng = random.Random(f"needle {seed} {needles} {asked} {length} {depth} {number}")
    hidden = dict(zip(rng.sample(CITIES, needles), rng.sample(range(10**6, 10**7), needles), strict=True))
    first, *others = hidden
    wanted = rng.sample([first, *rng.sample(others, asked - 1)], asked)
    question = ask(wanted, alone=needles == 1)
    texts = [NEEDLE.format(city, digits) for city, digits in hidden.items()]
    coded = [encode_inside(text, coder) for text in texts]
    head = np.asarray([coder.bos, *coder.encode(HEAD)], np.int32)
    tail = np.asarray(coder.encode(question), np.int32)
    size = length - room - len(head) - len(tail) - sum(map(len, coded))
    part, borders = cut(haystack, size, length, rng)
    points = place(borders, size, depth, needles, length, rng)
    order = sorted(range(needles), key=points.__getitem__)
    straws = np.split(part, [points[n] for n in order])
    mixed = [ids for n, straw in zip(order, straws[1:], strict=True) for ids in (coded[n], straw)]
    return Trial(
        length=length,
        depth=depth,
        number=number,
        straws=tuple(straws),
        needles=tuple(texts[n] for n in order),
        question=question,
        expected=tuple(str(hidden[city]) for city in wanted),
        prompt=np.concatenate([head, straws[0], *mixed, tail]),
    )


def encode_inside(text: str, coder: Coder) -> np.ndarray:
    """Encode a text as where a sentence stands before it: without the space that tokenizers put at a beginning."""
    before, both = (list(coder.encode(words)) for words in (".", f".{text}"))
    return np.asarray(both[len(before) :] if both[: len(before)] == before else coder.encode(text), np.int32)


def check_form(needles: int, asked: int, depth: int = 0) -> None:
    """Refuse what no question can be made of.

    Raises:
      UserError: says what is allowed.
    """
    if not 1 <= asked <= needles <= len(CITIES):
        raise UserError(
            f"{needles} needles, {asked} of them asked for: hide 1 to {len(CITIES)}, and ask for one at least"
        )
    if not 0 <= depth <= 100:
        raise UserError(f"a depth of {depth} % is none: give 0 to 100")


def ask(cities: Sequence[str], alone: bool) -> str:
    """Ask for the numbers of cities, in the words of LWM's two scripts; `alone`: nothing else is hidden."""
    if alone:
        return ONE.format(cities[0])
    if len(cities) == 1:
        return SOME.format("is the special magic number", cities[0])
    return SOME.format("are the special magic numbers", f"{', '.join(cities[:-1])}, and {cities[-1]}")


def cut(haystack: Haystack, size: int, length: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Draw `size` tokens that begin with a sentence; return them, and where in them sentences begin.

    Raises:
      UserError: if the haystack has not so many, or none are left of the length.
    """
    if size < 0:
        raise UserError(f"a length of {length} tokens has no room for question, needles and reply: add {-size} or more")
    last = len(haystack.tokens) - size
    if last < 0:
        raise UserError(
            f"a length of {length} tokens needs a haystack of {size}, and the books have {len(haystack.tokens)}: "
            "name more of them, or shorter lengths"
        )
    low = int(haystack.borders[rng.randrange(int(np.searchsorted(haystack.borders, last, side="right")))])
    inside = slice(*np.searchsorted(haystack.borders, [low, low + size]))
    return haystack.tokens[low : low + size], haystack.borders[inside] - low


def place(borders: np.ndarray, size: int, depth: int, needles: int, length: int, rng: random.Random) -> list[int]:
    """Choose where the needles go, all at different places: the first at its depth, the others anywhere.

    Raises:
      UserError: if there are fewer sentences than needles.
    """
    back = np.searchsorted(borders, size * depth // 100, side="right") - 1
    first = size if depth == 100 or not len(borders) else int(borders[back])
    free = [point for point in borders.tolist() if point != first] if needles > 1 else []
    if len(free) < needles - 1:
        raise UserError(
            f"{needles} needles find only {len(free) + 1} places between the sentences of a haystack of {size} tokens "
            f"(length {length}): hide fewer, or give a greater length"
        )
    return [first, *rng.sample(free, needles - 1)]
