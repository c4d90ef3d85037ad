"""Which pairs are worth an example: what the chunk does not say, or the question gives away, teaches nothing."""

from collections.abc import Sequence, Set

from ..media import Unfit
from .scripts import words


def check(question: str, answer: str, known: Set[str], support: float) -> None:
    """Let a pair pass that is worth an example.

    Args:
      known: the words of the chunk.
      support: the share of the answer's words that must be among them, from 0 to 1.

    Raises:
      Unfit: dropped: "not a question", "answer not supported" or "answer in the question".
    """
    asked, said = words(question), words(answer)
    if not asked:
        raise Unfit("dropped", "not a question", question)
    strange = [word for word in said if word not in known]
    if not said or (len(said) - len(strange)) / len(said) < support:
        raise Unfit("dropped", "answer not supported", f"{answer!r}: not in the chunk: {' '.join(strange)}")
    if _within(said, asked):
        raise Unfit("dropped", "answer in the question", f"{question!r} says {answer!r}")


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Does a run of words stand in another?"""
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


class Earlier:
    """The questions asked so far of each book."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], str] = {}

    def check(self, book: str, key: str, question: str) -> None:
        """Let a question pass that is the book's first of its words.

        Raises:
          Unfit: dropped, "duplicate question".
        """
        first = self._asked.setdefault((book, " ".join(words(question))), key)
        if first != key:
            raise Unfit("dropped", "duplicate question", f"{question!r} was asked of {first}")
