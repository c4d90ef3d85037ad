"""Questions without a language model: a sentence of the chunk, with a word of it left out."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from ..media import Unfit
from .outcome import Chunk, Pair, Usage
from .prompt import digest
from .scripts import kinds, words
from .worth import check

MODEL = "cloze"
QUESTION = "Which word is missing? “{}”"
GAP = "____"
SHORTEST, LONGEST = 6, 60  # words of a sentence
CLOSED = "[\"'\u2019”»)\\]]*"
END = re.compile(
    rf"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])[.!?…؟।]{CLOSED}(?=\s)"
    "|[。\uff01\uff1f][”」』]*"  # the wide marks of Chinese and Japanese, after which no space comes
    r"|\n\s*\n"
)
WORDS = (  # runs of one kind of character, long enough in their script to tell something
    re.compile(
        r"(?<![wxd])w{5,}(?![wxd])|(?<![sx])s{2,}(?![sx])|(?<!k)k{3,}(?!k)|(?<!h)h{2,4}(?!h)|(?<!t)t{4,24}(?!t)"
    ),
    re.compile(r"hh"),  # of Chinese without a pause
)
TELL_NOTHING = """
    about above after again against almost along already although always among another anything around because before
    began being below between beyond certain could doing during either enough every everything first found further
    having however indeed itself large least little might myself never nothing often other others ought perhaps quite
    rather really seemed several shall should since small something sometimes soon still their theirs themselves there
    therefore these thing things think those though thought three through throughout together toward towards under until
    upon usually various where whether which while whole whose within without would yourself himself herself ourselves
"""
STOP = frozenset(TELL_NOTHING.split())


class Candidate(NamedTuple):
    """A sentence, and where in it the word stands that is left out."""

    sentence: str
    start: int
    end: int

    @property
    def word(self) -> str:
        return self.sentence[self.start : self.end]

    @property
    def question(self) -> str:
        return QUESTION.format(self.sentence[: self.start] + GAP + self.sentence[self.end :])


def ask(chunk: Chunk, seed: int, support: float) -> Pair:
    """Leave a word out of a sentence of the chunk, which a draw by seed and key decides.

    The word is among the rarest of the chunk, long enough to tell something, and stands only once in its sentence.

    Raises:
      Unfit: dropped, where no sentence has such a word.
    """
    known = Counter(words(chunk.text))
    for found in sorted(_candidates(chunk.text), key=lambda c: _rank(c, chunk, seed, known)):
        try:
            check(found.question, found.word, known.keys(), support)
        except Unfit:
            continue
        return Pair(found.question, found.word, told(seed))
    raise Unfit("dropped", "no sentence for a cloze")


def told(seed: int) -> dict[str, object]:
    """Say where a cloze comes from."""
    return {"model": MODEL, "prompt": digest(QUESTION), "seed": seed, "usage": vars(Usage())}


def _candidates(text: str) -> list[Candidate]:
    sentences = list(_sentences(text))
    for pattern in WORDS:
        found = [c for sentence in sentences for c in _gaps(sentence, pattern)]
        if found:
            return found
    return []


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a fit length; of a text without any, runs of words or of characters."""
    pieces, start = [], 0
    for end in [*(match.end() for match in END.finditer(text)), len(text)]:
        pieces.append(" ".join(text[start:end].split()))
        start = end
    inner = pieces[1:-1] if len(pieces) > 2 else pieces  # a chunk may begin and end within a sentence
    fit = [piece for piece in inner if SHORTEST <= len(words(piece)) <= LONGEST]
    yield from fit or _runs(text)


def _runs(text: str) -> Iterator[str]:
    parts = text.split()
    for start in range(0, len(parts), LONGEST // 2):
        run = " ".join(parts[start : start + LONGEST // 2])
        size = LONGEST if len(words(run)) > LONGEST else len(run)  # where nothing parts the words
        pieces = (run[first : first + size] for first in range(0, len(run), size))
        yield from (piece for piece in pieces if len(words(piece)) >= SHORTEST)


def _gaps(sentence: str, pattern: re.Pattern[str]) -> Iterator[Candidate]:
    for match in pattern.finditer(kinds(sentence)):
        found = Candidate(sentence, *match.span())
        if found.word.casefold() not in STOP:
            yield found


def _rank(found: Candidate, chunk: Chunk, seed: int, known: Counter[str]) -> tuple[int, bytes]:
    """Put the rarest words of a chunk first, and draw among them."""
    return max((known[word] for word in words(found.word)), default=0), _digest(f"{seed} {chunk.key} {found}")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()
