"""A build whose renderer makes a mistake fails, names it, and leaves nothing of the unit behind."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worldloom.errors import RunFailed
from worldloom.packing import lint
from worldloom.packing.example import Example, Span
from worldloom.pipelines import books
from worldloom.pipelines.build import build
from worldloom.pipelines.job import run_in_memory
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.recipe import Recipe


def answered(e: Example, low: int, high: int, trained: list[int] | None = None) -> Example:
    """Make a chat of a text, with an answer from `low` to `high`, or train other places than those."""
    flags = np.zeros(len(e.tokens), bool)
    flags[list(range(low, high)) if trained is None else trained] = True
    spans = (Span(0, low, "user"), Span(low, high, "assistant"))
    return replace(e, task="chat", trained=flags, spans=spans)


def last(e: Example) -> int:
    return len(e.tokens)


MISTAKES: dict[str, tuple[Callable[[Example], Example], str]] = {
    "nothing trained": (lambda e: replace(e, trained=np.zeros(last(e), bool)), "in which nothing is trained"),
    "all trained": (lambda e: answered(e, 1, last(e)), "trains all of a segment that asks and answers"),
    "no answer": (lambda e: replace(answered(e, 3, last(e)), spans=()), "without an answer"),
    "a question trained": (lambda e: answered(e, 4, last(e), [3, *range(4, last(e))]), "trains a token outside"),
    "half trained": (lambda e: answered(e, 4, last(e), [4]), "an answer that is not trained throughout"),
    "two answers in one place": (
        lambda e: replace(
            answered(e, 4, last(e)), spans=(*answered(e, 4, last(e)).spans, Span(6, last(e), "assistant"))
        ),
        "has answers that overlap",
    ),
    "cut": (
        lambda e: answered(replace(e, tokens=np.append(e.tokens[:-1], e.tokens[4])), 3, last(e)),
        "without the end",
    ),
    "more at the end": (
        lambda e: answered(replace(e, tokens=np.insert(e.tokens, 4, e.tokens[-1])[:-1]), 3, 5),
        "whose last answer is not",
    ),
    "a picture": (lambda e: replace(e, spans=(Span(1, 3, "image"),)), "without its end"),
}


@pytest.fixture
def recipe(tmp_path: Path, small_model: Path) -> Recipe:
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text("Good morning, said the fox, and shut his book.")
    return Recipe.model_validate(
        {
            "vocabulary": {"text": str(small_model)},
            "sources": [{"name": "books", "kind": "books", "path": str(tmp_path / "books")}],
        }
    )


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_rendering_fails_the_unit(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (mistake, what), right = MISTAKES[name], books.render
    monkeypatch.setattr(books, "render", lambda *facts: mistake(right(*facts)))
    job = TokenizeJob(recipe, str(tmp_path / "out"))
    with pytest.raises(RunFailed, match=rf"unit books-0000000: row 0 \(record a.txt\) .*{what}.*a bug of worldloom"):
        run_in_memory(job)
    assert not [name for part in ("units", "shards", "rejects") for name in job.folder.names(part)]


def test_weights_that_do_not_add_up_fail_the_unit(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lint, "segment_weights", lambda rule, text, vision, vocabulary: (text * 0.5, vision * 0.5))
    with pytest.raises(RunFailed, match="whose weights do not add up to its rule's: this is a bug of worldloom"):
        run_in_memory(TokenizeJob(recipe, str(tmp_path / "out")))


def test_the_engine_says_so_in_the_same_words(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    (mistake, what), right = MISTAKES["a question trained"], books.render
    monkeypatch.setattr(books, "render", lambda *facts: mistake(right(*facts)))
    with pytest.raises(
        RunFailed, match=rf"^unit books-0000000: row 0 \(record a.txt\) {what} an answer: this is a bug"
    ):
        build(recipe, str(tmp_path / "out"), [], 1)
