"""From chunks of books to questions and answers that were checked, in the order of the chunks."""

from collections.abc import Generator, Iterable
from contextlib import closing

from ...packing.storage import Folder
from ...sources import QuestionsSection
from ..media import Unfit
from . import cloze
from .outcome import Chunk, Outcome
from .worth import Earlier


def ask(chunks: Iterable[Chunk], section: QuestionsSection, seed: int, replies: Folder) -> Generator[Outcome]:
    """Yield what becomes of each chunk, in order.

    Chunks of one book are told apart from others' by their keys: no book is asked the same question twice.

    Args:
      replies: where a server's replies are kept, and looked for first. No request whose reply is there is sent again.
        A cloze needs none.

    Raises:
      UserError: where the server refuses whatever it is asked: a wrong url, key, model or setting.
      OSError: where a reply cannot be kept.
    """
    earlier = Earlier()
    with closing(_outcomes(chunks, section, seed, replies)) as outcomes:
        for outcome in outcomes:
            yield _first(outcome, earlier)


def _outcomes(chunks: Iterable[Chunk], section: QuestionsSection, seed: int, replies: Folder) -> Generator[Outcome]:
    if section.by == "cloze":
        return (_cloze(chunk, section, seed) for chunk in chunks)
    from .served import outcomes  # the client of servers is needed where there is one

    return outcomes(chunks, section, seed, replies)


def _cloze(chunk: Chunk, section: QuestionsSection, seed: int) -> Outcome:
    try:
        return Outcome(chunk, cloze.ask(chunk, seed, section.support))
    except Unfit as unfit:
        return Outcome(chunk, unfit.with_traceback(None))


def _first(outcome: Outcome, earlier: Earlier) -> Outcome:
    """Drop a question that the book was asked before."""
    if isinstance(outcome.found, Unfit):
        return outcome
    try:
        earlier.check(outcome.chunk.book, outcome.chunk.key, outcome.found.question)
    except Unfit as unfit:
        return outcome._replace(found=unfit.with_traceback(None))
    return outcome
