"""What keeps a chat out: before its pictures are opened its words, and after it is written out its length."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ..packing.example import Example
from ..packing.ledger import DROPPED
from ..packing.report import Reject
from ..sources import ChatSource, compiled
from .admission import denied_by, judge_record, judged, reject, reject_unfit
from .chat_layout import ASSISTANT, USER
from .media import Unfit
from .records import Chat, Found, storable

JUDGED = 4096  # characters of a chat that its language is told by
# An answer that begins so is a refusal, one that holds the second kind tells of the model and not of the matter.
REFUSALS = re.compile(
    r"\A\W*(?:(?:(?:i'm|i am) (?:very |really |truly |so )?|my |i )?"
    r"(?:sorry|afraid|apologies|apologi[sz]e)\b[^.?]{0,40}?"
    r"\b(?:i|we) (?:can't|cannot|can not|won't|am unable|'m unable|don't|do not)\b"
    r"|(?:i'm|i am) (?:unable|not able) to (?:help|assist|provide|answer|fulfill?|comply|create|generate|access|do)\b"
    r"|(?:unfortunately,? )?i (?:cannot|can't|can not|won't|will not) "
    r"(?:help|assist|provide|answer|fulfill?|comply|create|generate|access|do (?:that|this)|engage|discuss)\b"
    r"|(?:unfortunately,? )?i (?:do not|don't) have (?:access|the ability)\b)",
    re.IGNORECASE,
)
BOILERPLATE = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\b(?:i'm|i am) (?:just |only )?an? (?:ai|language model)\b|\bmy knowledge cutoff\b",
    re.IGNORECASE,
)
APOSTROPHE = "\u2019"  # which many write for the typewriter's


def judge_all(
    records: Iterable[Found], source: ChatSource, seed: int, denied: frozenset[str]
) -> Iterator[Chat | Reject]:
    """Judge each record, and remove the temporary files of one that is kept out."""
    return judged(records, lambda found: judge(found, source, seed, denied))


def judge(found: Found, source: ChatSource, seed: int, denied: frozenset[str]) -> Chat | Reject:
    """Decide on a chat by all that can be known before its pictures are opened."""
    if kept_out := judge_record(found, source, seed, denied):
        return kept_out
    assert isinstance(found, Chat)
    if link := denied_by(denied, *(storable(medium.media.link) for medium in found.media)):
        return replace(reject(found, source, "filter", DROPPED, "denied", link), url=link)
    for reason, detail in faults(found, source):
        return reject_unfit(found, source, Unfit(DROPPED, reason, detail), "filter")
    return found


def faults(chat: Chat, source: ChatSource) -> Iterator[tuple[str, str]]:
    """Yield why a chat's words keep it out, and what was found."""
    filters = source.filters
    turns = sum(turn.role == USER for turn in chat.turns)
    if filters.min_turns is not None and turns < filters.min_turns:
        yield "below min_turns", f"{turns} turns"
    if filters.max_turns is not None and turns > filters.max_turns:
        yield "above max_turns", f"{turns} turns"
    answers = [turn.text for turn in chat.turns if turn.role == ASSISTANT]
    if filters.refusals == "drop":
        plain = [answer.replace(APOSTROPHE, "'") for answer in answers]
        yield from _matches("refusal", REFUSALS, plain)
        yield from _matches("boilerplate", BOILERPLATE, plain)
    for pattern in filters.patterns:
        yield from _matches(f"matches {pattern}", _compiled(pattern), answers)
    if filters.languages and (language := language_of(chat)) not in filters.languages:
        yield "other language", language


def _matches(reason: str, pattern: Any, answers: list[str]) -> Iterator[tuple[str, str]]:
    found = next((match for answer in answers if (match := pattern.search(answer))), None)
    if found:
        yield reason, found[0][:80]


_compiled = lru_cache(maxsize=64)(compiled)


def language_of(chat: Chat) -> str:
    """Tell the language that a chat's words are most likely in, as an ISO 639-1 code."""
    import py3langid

    words = "\n".join(turn.text for turn in chat.turns)[:JUDGED]
    return str(py3langid.classify(words)[0])


def misfit(example: Example, source: ChatSource) -> Unfit | None:
    """Say what is wrong with the length of a chat that is written out."""
    filters = source.filters
    counts = {"answer_tokens": int(example.trained.sum()), "tokens": len(example.tokens)}
    for what, count in counts.items():
        low, high = getattr(filters, f"min_{what}"), getattr(filters, f"max_{what}")
        if low is not None and count < low:
            return Unfit(DROPPED, f"below min_{what}", f"{count} tokens")
        if high is not None and count > high:
            return Unfit(DROPPED, f"above max_{what}", f"{count} tokens")
    return None
