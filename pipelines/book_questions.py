"""Books with questions: chunks side by side up to a length, then questions about some of them in chat form."""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from ..packing.ledger import DROPPED
from ..packing.report import Reject
from ..packing.row import Row, example_row
from ..recipe import Recipe
from ..sources import BookQuestionsSource
from ..tokenizers.text import TextTokenizer
from . import books
from .admission import denied_by, reject, url_of
from .chat_layout import ASSISTANT, USER, Context, Ids, Line, render
from .media import Unfit
from .models import text_tokenizer, vocabulary_of
from .near import signature
from .records import Found
from .units import fraction

TASK = "book-qa"
SPARE = 1  # token: the words of a first question may be one more behind a passage
ASKED_ABOUT = np.uint64(0x626F6F6B2D7161)  # "book-qa"


class Question(NamedTuple):
    """A question about one chunk, its answer, and where both come from."""

    chunk: int
    question: str
    answer: str
    told: dict[str, Any]


Asked = Callable[[Found, books.Encoded], Sequence[Question]]


@dataclass(frozen=True, eq=False)
class Passage:
    """Chunks of a book that stand side by side, and the questions that are asked about them: what is one record here.

    Attributes:
      found: the book.
      ids: of the chunks.
      first: number of the first chunk in its book.
    """

    found: Found
    book: books.Encoded
    ids: np.ndarray
    first: int
    questions: Sequence[Question]

    @property
    def record(self) -> str:
        return f"{self.found.record}#{self.first}"

    @cached_property
    def exact(self) -> bytes:
        """Hash of what it says: 16 bytes; equal hashes are exact duplicates."""
        return hashlib.blake2b(self.ids.astype("<u4").tobytes(), digest_size=16).digest()


def chunks(ids: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut a book's ids into chunks of `size`, the last one perhaps shorter: every token is in exactly one."""
    return [ids[low : low + size] for low in range(0, len(ids), size)]


def passages(
    recipe: Recipe, source: BookQuestionsSource, records: Iterable[Found], denied: frozenset[str], asked: Asked
) -> Iterator[Passage | Reject]:
    """Yield the passages of books, which share no chunk and miss none; a book that is kept out comes as its reject.

    Args:
      asked: finds the questions about a book.
    """
    for found in records:
        book = books.encode(recipe, source, found, denied)
        if isinstance(book, Reject):
            yield book
        else:
            yield from of_book(recipe, source, found, book, asked(found, book))


def of_book(
    recipe: Recipe, source: BookQuestionsSource, found: Found, book: books.Encoded, questions: Sequence[Question]
) -> Iterator[Passage]:
    """Join the chunks of a book up to the length, each run with questions about it, drawn by seed and record."""
    tokenizer = text_tokenizer(recipe.vocabulary.text)
    drawn = {q.chunk: fraction(recipe.seed, "ask", source.name, found.record, q.chunk) for q in questions}
    by_chunk = {q.chunk: q for q in questions}
    costs = {q.chunk: cost(q, tokenizer, source) for q in questions}
    sizes = [len(chunk) for chunk in chunks(book.ids, source.chunk)]
    first, room = 0, source.length - head_tokens(source, tokenizer)
    while first < len(sizes):
        most = first + max(1, room // source.chunk)
        about = [by_chunk[n] for n in sorted(drawn.keys() & range(first, most), key=drawn.__getitem__)]
        count = fitting(sizes[first:most], first, about, costs, source, room)
        low = first * source.chunk
        chosen = choose(about, costs, first, count, sum(sizes[first : first + count]), source)
        yield Passage(found, book, book.ids[low : low + count * source.chunk], first, chosen)
        first += count


class Cost(NamedTuple):
    """Tokens of a question with the words of its turn, and of its answer with its end."""

    prompt: int
    answer: int


def cost(question: Question, tokenizer: TextTokenizer, source: BookQuestionsSource) -> Cost:
    """Count a question's tokens."""
    prompt = tokenizer.encode(f"{source.template.user.replace('{}', question.question)} {source.template.assistant}")
    return Cost(len(prompt), len(tokenizer.encode(question.answer)) + 1)


def head_tokens(source: BookQuestionsSource, tokenizer: TextTokenizer) -> int:
    """Count what stands before a passage: BOS, the system's words, and the beginning of the first question."""
    return 1 + len(tokenizer.encode(f"{source.template.system} {source.template.user.split('{}')[0]}"))


def fitting(
    sizes: Sequence[int],
    first: int,
    drawn: Sequence[Question],
    costs: dict[int, Cost],
    source: BookQuestionsSource,
    room: int,
) -> int:
    """Return how many chunks, at least one, fit into `room` tokens together with their questions."""
    ends = list(accumulate(sizes))
    count = max(1, sum(end <= room for end in ends))
    while count > 1:
        chosen = choose(drawn, costs, first, count, ends[count - 1], source)
        if ends[count - 1] + sum(sum(costs[q.chunk]) + SPARE for q in chosen) <= room:
            break
        count -= 1
    return count


def choose(
    drawn: Sequence[Question],
    costs: dict[int, Cost],
    first: int,
    count: int,
    tokens: int,
    source: BookQuestionsSource,
) -> list[Question]:
    """Take questions about the chunks `[first, first + count)` as they were drawn, as many as `trained` allows."""
    chosen, prompts, answers = [], 0, 0
    for question in drawn:
        prompt, answer = costs[question.chunk]
        here = first <= question.chunk < first + count
        if here and answers + answer <= source.trained * (tokens + prompts + prompt + answers + answer):
            chosen.append(question)
            prompts, answers = prompts + prompt, answers + answer
    return chosen


def rows(
    recipe: Recipe, source: BookQuestionsSource, items: Iterable[Passage | Reject], denied: frozenset[str]
) -> Generator[Row | Reject]:
    """Turn passages into examples' rows or rejects, one for each and in their order."""
    for item in items:
        if isinstance(item, Reject):
            yield item
        else:
            yield denial(source, item, denied) or row(recipe, source, item)


def denial(source: BookQuestionsSource, passage: Passage, denied: frozenset[str]) -> Reject | None:
    """Reject a passage whose own id or content a deny list names; its book was looked up before."""
    if entry := denied_by(denied, passage.record, passage.exact.hex()):
        return kept_out(source, passage, Unfit(DROPPED, "denied", entry), "filter")
    return None


def kept_out(source: BookQuestionsSource, passage: Passage, unfit: Unfit, stage: str) -> Reject:
    """List a passage that becomes no example, under its own id."""
    rejected = reject(passage.found, source, stage, unfit.status, unfit.reason, unfit.detail, passage.exact)
    return replace(rejected, record=passage.record)


def row(recipe: Recipe, source: BookQuestionsSource, passage: Passage) -> Row | Reject:
    """Make a passage an example's row, or say why not."""
    if not passage.questions:
        return kept_out(source, passage, Unfit(DROPPED, "no question", f"{len(passage.ids)} tokens"), "filter")
    vocabulary = vocabulary_of(recipe.vocabulary)
    lines = laid_out(passage, source)
    names = TASK, source.name, passage.record
    example = render(lines, source.template, text_tokenizer(recipe.vocabulary.text), vocabulary, *names)
    near = np.empty(0, np.uint64)
    if recipe.duplicates == "near":  # of passages that are asked about, not of the same words as a book
        near = signature(passage.ids.astype(np.uint64) ^ ASKED_ABOUT)
    return example_row(example, vocabulary, passage.exact, near)


def laid_out(passage: Passage, source: BookQuestionsSource) -> list[Line]:
    """Write a passage and its questions as lines of a chat: the passage stands before the first question."""
    told = {"record": passage.found.record, "content": passage.book.content}
    if url := url_of(passage.found):
        told["url"] = url
    parts = []
    for number, ids in enumerate(chunks(passage.ids, source.chunk), passage.first):
        start = number * source.chunk
        parts.append(Ids(ids, "chunk", {"chunk": number, "start": start, "end": start + len(ids)}))
    lines: list[Line] = []
    for question in passage.questions:
        context = [] if lines else [Context(parts, "book", told)]
        where = {"chunk": question.chunk}
        lines.append(Line(USER, [*context, question.question], where))
        lines.append(Line(ASSISTANT, [question.answer], where | question.told))
    return lines
