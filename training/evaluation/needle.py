"""Needles in a haystack: magic numbers hidden in books and asked for, as LWM does (scripts/eval_needle.py and _multi).

Prompts are made of ids, so a length is exact and a depth is counted in the tokens of the tokenizer at hand.
"""

import random
import re
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
CLOSING = "\"'”’»›)]}"  # noqa: RUF001 - what may stand between a stop and its space
ENDING = f"{CLOSING}」』）】》〉"  # noqa: RUF001 - those that are wide need no space, as their stops
STOPPED = re.compile(f"[.!?。！？][{re.escape(ENDING)}]*$")  # noqa: RUF001
CLOSED = re.compile(f"^[{re.escape(ENDING)}]+$")
NEAR, SENTENCE = 0.05, 32  # a needle may lie so much of the haystack, or so many tokens, from its depth
LONGEST = 8  # tokens: more than any one character takes
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
      true_depth: percent of the straws' tokens that stand before the first needle that is asked for at `depth`.
      straws: the haystack's ids before, between and after the needles.
      needles: in the order in which they lie.
      question: with what stands around it.
      expected: the numbers that are asked for, in the question's order.
      prompt: the ids of it all, int32 `[length - room]`, from BOS to `ASSISTANT:`.
    """

    length: int
    depth: int
    number: int
    true_depth: float
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

    In a book most of whose sentences end otherwise, with `。！？` or inside quotes and brackets, those count too.

    Raises:
      UserError: if there is no text.
    """
    coded = [np.asarray(coder.encode(book), np.int32) for book in books]
    tokens = np.concatenate([np.empty(0, np.int32), *coded])
    if not len(tokens):
        raise UserError("the haystack has no text: name books that are not empty")
    ids, which = np.unique(tokens, return_inverse=True)
    words = [coder.decode([int(i)]) for i in ids]
    stops, closes = (np.array([bool(form.search(word)) for word in words])[which[:-1]] for form in (STOPPED, CLOSED))
    for _ in range(2):  # marks behind a stop may be tokens of their own
        stops[1:] |= stops[:-1] & closes[1:]
    ends = np.flatnonzero(stops)
    pairs, which = np.unique(np.stack([tokens[ends], tokens[ends + 1]], axis=1), axis=0, return_inverse=True)
    which = which.ravel()
    texts = [(coder.decode(pair[:1].tolist()), coder.decode(pair.tolist())) for pair in pairs]
    plain, other = (np.array([is_border(*text) for text in texts], bool)[which] for is_border in (_is_plain, _is_other))
    book = np.searchsorted(np.cumsum([len(ids) for ids in coded]), ends, side="right")
    otherwise = np.bincount(book, other & ~plain) > np.bincount(book, plain)
    return Haystack(tokens, np.concatenate([[0], ends[plain | (other & otherwise[book])] + 1]))


def _is_plain(first: str, pair: str) -> bool:
    """Does the text of two tokens, the first of which ends with a plain stop, have a space after it?"""
    spaced = any(stop in pair for stop in (". ", "! ", "? ", ".\n", "!\n", "?\n"))
    return first.endswith((".", "!", "?")) and spaced


def _is_other(first: str, pair: str) -> bool:
    """Does a sentence end with the first of two tokens, which ends with a stop and what closes behind it?"""
    after = pair.removeprefix(first)[:1]
    return after.isspace() or (first[-1:] not in f".!?{CLOSING}" and after not in ENDING)


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

    One that is asked for lies at `depth` percent of the haystack's tokens, moved to where a sentence begins nearby, or
    at 100 at its very end; the others begin sentences anywhere.

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
    first_point = aim(part, borders, depth, coder)
    points = place(borders, first_point, size, needles, length, rng)
    order = sorted(range(needles), key=points.__getitem__)
    straws = np.split(part, [points[n] for n in order])
    mixed = [ids for n, straw in zip(order, straws[1:], strict=True) for ids in (coded[n], straw)]
    return Trial(
        length=length,
        depth=depth,
        number=number,
        true_depth=100 * first_point / max(size, 1),
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


def aim(part: np.ndarray, borders: np.ndarray, depth: int, coder: Coder) -> int:
    """Find the point at a depth: where a sentence begins before it, or else after it, or else between any two tokens.

    A sentence serves that begins within 5 percent of the part, or in short ones within 32 tokens.
    """
    wanted, near = len(part) * depth // 100, max(NEAR * len(part), SENTENCE)
    before = max(int(np.searchsorted(borders, wanted, side="right")) - 1, 0)
    close = [point for point in borders[before : before + 2].tolist() if abs(point - wanted) <= near]
    return close[0] if close and depth < 100 else whole(part, wanted, coder)


def whole(part: np.ndarray, point: int, coder: Coder) -> int:
    """Return the nearest point between two tokens of a part that cuts no character, or `point` if none is near."""

    def cuts(at: int) -> bool:
        return coder.decode(part[max(at - LONGEST, 0) : at].tolist()).endswith("\ufffd")

    steps = sorted(range(-LONGEST, LONGEST + 1), key=abs)
    return next((at for step in steps if 0 <= (at := point + step) <= len(part) and not cuts(at)), point)


def place(borders: np.ndarray, first: int, size: int, needles: int, length: int, rng: random.Random) -> list[int]:
    """Choose where the needles go, all at different places: the first is chosen, the others go anywhere.

    Raises:
      UserError: if there are fewer sentences than needles.
    """
    free = [point for point in borders.tolist() if point != first] if needles > 1 else []
    if len(free) < needles - 1:
        raise UserError(
            f"{needles} needles find only {len(free) + 1} places between the sentences of a haystack of {size} tokens "
            f"(length {length}): hide fewer, or give a greater length"
        )
    return [first, *rng.sample(free, needles - 1)]
