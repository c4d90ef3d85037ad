"""Books become examples of one chunk, a question about it and its answer: what the question job writes."""

import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace

from ..errors import RunFailed
from ..packing.ledger import DROPPED, Ledger
from ..packing.report import Reject, read_report
from ..packing.row import Row, Segment
from ..packing.shard import Shard
from ..packing.storage import Folder
from ..recipe import Recipe
from ..sources import BookQuestionsSource
from . import books
from .asking.ask import ask
from .asking.outcome import Chunk, Outcome
from .book_questions import Asked, Passage, Question, chunks, denial, kept_out, row
from .chat_layout import ASSISTANT
from .media import Unfit
from .models import text_tokenizer
from .records import Found


def pieces(
    recipe: Recipe, source: BookQuestionsSource, records: Iterable[Found], denied: frozenset[str]
) -> Iterator[Passage | Reject]:
    """Cut books into passages of one chunk and no question; a book that is kept out comes as its reject."""
    for found in records:
        book = books.encode(recipe, source, found, denied)
        if isinstance(book, Reject):
            yield book
            continue
        for number, ids in enumerate(chunks(book.ids, source.chunk)):
            passage = Passage(found, book, ids, number, ())
            yield denial(source, passage, denied) or passage


def rows(
    recipe: Recipe,
    source: BookQuestionsSource,
    items: Iterable[Passage | Reject],
    replies: Folder,
    ledger: Ledger,
) -> Generator[Row | Reject]:
    """Turn passages into examples' rows or rejects, one for each and in their order.

    Args:
      replies: where a language model's are stored.
      ledger: what they cost is counted there.
    """
    tokenizer, waiting = text_tokenizer(recipe.vocabulary.text), deque[Passage | Reject]()

    def asked() -> Iterator[Chunk]:
        for item in items:
            waiting.append(item)
            if isinstance(item, Passage):
                yield Chunk(item.record, tokenizer.decode(item.ids))

    with closing(ask(asked(), source.questions, recipe.seed, replies)) as outcomes:
        for outcome in outcomes:
            while isinstance(item := waiting.popleft(), Reject):
                yield item
            ledger.count_usage(asdict(outcome.usage))
            yield answered(item, outcome, recipe, source)
    for item in waiting:
        assert isinstance(item, Reject)
        yield item


def answered(passage: Passage, outcome: Outcome, recipe: Recipe, source: BookQuestionsSource) -> Row | Reject:
    """Make a chunk and its question an example's row, or say why there is none."""
    found = outcome.found
    if isinstance(found, Unfit):
        stage = "filter" if found.status == DROPPED else "ask"
        return kept_out(source, passage, found, stage)
    told = {**found.told, "question": found.question, "answer": found.answer}
    question = Question(passage.first, found.question, found.answer, told)
    return row(recipe, source, replace(passage, questions=[question]))


def recorded(folder: Folder, unit: str) -> Asked:
    """Read the questions of a unit, and return what finds those of one of its books.

    Raises:
      RunFailed: if they are not there.
    """
    report = read_report(folder, unit)
    if report is None:
        raise RunFailed(f"{folder.url} has no questions for unit {unit}: call 'worldloom questions' with this --out")
    known: dict[str, dict[str, list[Question]]] = {}  # by id, which may not be one book's alone, and content
    for stored in Shard(folder, report.shard.path).rows():
        book, question = _read(stored.segments[0])
        known.setdefault(book["record"], {}).setdefault(book["content"], []).append(question)

    def asked(found: Found, book: books.Encoded) -> Sequence[Question]:
        return known.get(found.record, {}).get(book.content, [])

    return asked


def _read(segment: Segment) -> tuple[dict[str, str], Question]:
    """Read the book and the question of an example that `answered` wrote."""
    told = {span.kind: json.loads(span.ref) for span in segment.spans if span.ref}
    answer = told[ASSISTANT]
    kept = {key: answer[key] for key in ("model", "prompt", "seed")}
    return told["book"], Question(answer["chunk"], answer["question"], answer["answer"], kept)


def guessed(recipe: Recipe, source: BookQuestionsSource) -> Asked:
    """Return what makes cloze questions about a book, for plans: no request is sent and nothing is stored."""
    tokenizer = text_tokenizer(recipe.vocabulary.text)
    section = source.questions.model_copy(update={"by": "cloze"})

    def asked(found: Found, book: books.Encoded) -> Sequence[Question]:
        texts = (tokenizer.decode(ids) for ids in chunks(book.ids, source.chunk))
        named = [Chunk(f"{found.record}#{number}", text) for number, text in enumerate(texts)]
        outcomes = ask(named, section, recipe.seed, Folder("memory://unused"))
        return [
            Question(number, o.found.question, o.found.answer, {})
            for number, o in enumerate(outcomes)
            if not isinstance(o.found, Unfit)
        ]

    return asked
