"""Words and counts about the turns of a segment of `row_detail`, for the terminal and for pages."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .turns import ASSISTANT, CHUNK, USER

NAMES = 3  # models that are named, at most


def place_words(place: Sequence[int]) -> str:
    """Name tokens of a row, or of a book, by the first and the last of them."""
    return f"tokens {place[0]:,} to {place[1] - 1:,}"


def into_words(into: float) -> str:
    """Say how far into a context something begins; nothing begins at its end."""
    return f"{min(99, round(100 * into))}% into the context"


def chunk_words(chunk: dict[str, Any]) -> str:
    """Name a chunk by its number, where that is told."""
    return CHUNK if chunk["chunk"] is None else f"{CHUNK} {chunk['chunk']:,}"


def about_words(about: dict[str, Any]) -> str:
    """Say which chunk a turn is about, and where that lies."""
    chunk = f"about {chunk_words(about)}"
    if about["place"] is None:
        return f"{chunk}, whose place no span tells"
    parts = [chunk, place_words(about["place"])]
    if about["into"] is not None:
        parts.append(into_words(about["into"]))
    if not about["inside"]:
        parts.append("not all of it in a context before the answer")
    return ", ".join(parts)


def names_anew(turn: dict[str, Any], segment: dict[str, Any]) -> bool:
    """Does a turn name a chunk, and is it not an answer to a question that named it?"""
    before = segment["turns"][turn["turn"] - 2] if turn["turn"] > 1 else turn
    answers = (before["role"], turn["role"]) == (USER, ASSISTANT)
    return turn["about"] is not None and not (answers and before["about"] == turn["about"])


def trained_words(turn: dict[str, Any]) -> str:
    """Say how much of a turn is trained."""
    size = turn["place"][1] - turn["place"][0]
    return {0: "not trained", size: "trained"}.get(turn["trained"], f"{turn['trained']:,} of {size:,} trained")


def overview(segment: dict[str, Any]) -> dict[str, str]:
    """Say by name what a segment's turns, contexts and questions are; empty where it has no turns."""
    turns = segment["turns"]
    if not turns:
        return {}
    roles = Counter(turn["role"] for turn in turns)
    trained = (segment["trained_text"] + segment["trained_vision"]) / segment["length"]
    said = ", ".join(f"{roles[role]:,} {role}" for role in (USER, ASSISTANT) if roles[role])
    return {
        "turns": f"{said}{_authors(turns)}; {trained:.2%} of the tokens trained",
        "context": _contexts(segment["contexts"]),
        "questions": _questions(questions(segment)),
    }


def _authors(turns: list[dict[str, Any]]) -> str:
    names = [name for name, _ in Counter(turn["by"] for turn in turns if turn["by"]).most_common()]
    more = [f"{len(names) - NAMES:,} more"] if len(names) > NAMES else []
    return f" by {', '.join(name[:100] for name in names[:NAMES] + more)}" if names else ""


def _contexts(contexts: list[dict[str, Any]]) -> str:
    if not contexts:
        return ""
    low, high = contexts[0]["place"][0], contexts[-1]["place"][1]
    chunks = sum(context["chunks"] for context in contexts)
    of = f"{len(contexts):,} books" if len(contexts) > 1 else contexts[0]["record"][:100] or "a book"
    return f"{_many(chunks, CHUNK)} of {of}, {place_words((low, high))}"


def questions(segment: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each question about a chunk is about, in their order."""
    return [turn["about"] for turn in segment["turns"] if turn["role"] == USER and turn["about"]]


def _questions(asked: list[dict[str, Any]]) -> str:
    if not asked:
        return ""
    chunks = _many(len({about["chunk"] for about in asked}), CHUNK)
    outside = sum(not about["inside"] for about in asked)
    flaw = f"; {outside:,} of them about what is not all in a context before the answer" if outside else ""
    return f"{len(asked):,} about {chunks}{flaw}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def spread_of(segment: dict[str, Any], cells: int) -> list[int]:
    """Count for each of so many equal parts of the contexts how many questions are about a chunk that begins there."""
    counts = [0] * cells
    for about in questions(segment):
        if about["into"] is not None:
            counts[math.floor(about["into"] * cells)] += 1
    return counts


def untold(segment: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the spans that are neither a turn nor a chunk, or not the first of those that tell the same."""
    low = segment["place"][0]
    told = {(turn["role"], *turn["place"]) for turn in segment["turns"]}
    told |= {(CHUNK, *chunk["place"]) for chunk in segment["chunks"]}
    rest = []
    for span in segment["spans"]:
        key = span["kind"], low + span["start"], low + span["end"]
        if key in told:
            told.remove(key)
        else:
            rest.append(span)
    return rest
