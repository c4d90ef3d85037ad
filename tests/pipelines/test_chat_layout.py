"""Chats as tokens, against ids worked out by hand with LLaMA's model."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.packing.example import Example
from worldloom.pipelines.chat_layout import (
    ASSISTANT,
    SYSTEM,
    USER,
    Context,
    Frames,
    Ids,
    Line,
    Said,
    prompted,
    question_first,
    render,
)
from worldloom.sources import TemplateSection
from worldloom.tokenizers.text import TextTokenizer, load
from worldloom.tokenizers.vocabulary import Vocabulary

LWM = TemplateSection()
BOS, EOS, CODES = 1, 2, 8
BEGIN, END = [529, 4924, 29958], [1533, 4924, 29958]
EOF, EOV = 32000 + CODES, 32001 + CODES
HEAD = [887, 526, 263, 8444, 20255, 29889, 3148, 1001, 29901]  # You are a helpful assistant. USER:
TAIL = [319, 1799, 9047, 13566, 29901]  # ASSISTANT:


@pytest.fixture(scope="module")
def tokenizer(llama_model: Path) -> TextTokenizer:
    return load(str(llama_model))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: TextTokenizer) -> Vocabulary:
    return replace(tokenizer.vocabulary(), codes=CODES, vision_digest="codes")


@pytest.fixture(scope="module")
def rendered(tokenizer: TextTokenizer, vocabulary: Vocabulary):
    def run(*lines: Line, template: TemplateSection = LWM) -> Example:
        return render(lines, template, tokenizer, vocabulary, "chat", "s", "r")

    return run


def picture(*codes: int, kind: str = "image") -> Frames:
    return Frames(kind, np.array(codes, np.uint16).reshape(-1, 2), {"content": "0" * 32})


def holds(example: Example, *parts: tuple[Sequence[int], bool]) -> None:
    """Assert the ids, and which of them are trained, part by part."""
    assert example.tokens.tolist() == [token for ids, _ in parts for token in ids]
    assert example.trained.tolist() == [trained for ids, trained in parts for _ in ids]


def spans(example: Example) -> list[tuple[int, int, str]]:
    return [(s.start, s.end, s.kind) for s in example.spans]


def test_turns_of_words(rendered) -> None:
    found = rendered(
        Line(USER, ["What is the capital of France?"]),
        Line(ASSISTANT, ["The capital of France is Paris."]),
        Line(USER, ["And of Italy?"]),
        Line(ASSISTANT, ["Rome."]),
    )
    holds(
        found,
        ([BOS, *HEAD, 1724, 338, 278, 7483, 310, 3444, 29973, *TAIL], False),
        ([450, 7483, 310, 3444, 338, 3681, 29889, EOS], True),
        ([3148, 1001, 29901, 1126, 310, 12730, 29973, *TAIL], False),
        ([9184, 29889, EOS], True),
    )
    assert spans(found) == [(0, 22, USER), (22, 30, ASSISTANT), (30, 42, USER), (42, 45, ASSISTANT)]


@pytest.mark.parametrize("media_first", [True, False])
def test_a_question_stands_before_its_pictures(rendered, media_first: bool) -> None:
    """Two of them, the second shown first in one case; a span of each lies in the prompt's."""
    shown: list[Said] = [picture(1, 2), picture(3, 4)]
    words: list[Said] = [" Which picture shows a fox? "]
    found = rendered(Line(USER, shown + words if media_first else words + shown), Line(ASSISTANT, ["The second."]))
    holds(
        found,
        ([BOS, *HEAD, 8449, 7623, 3697, 263, 1701, 29916, 29973, 13], False),
        ([*BEGIN, 32001, 32002, EOV, *END, *BEGIN, 32003, 32004, EOV, *END, *TAIL], False),
        ([450, 1473, 29889, EOS], True),
    )
    assert spans(found) == [(0, 41, USER), (21, 24, "image"), (30, 33, "image"), (41, 45, ASSISTANT)]


def test_pictures_amid_words_stay_there(rendered) -> None:
    found = rendered(Line(USER, ["Rome.", picture(1, 2), "Who came?"]), Line(ASSISTANT, ["Ann."]))
    holds(
        found,
        ([BOS, *HEAD, 9184, 29889, 13, *BEGIN, 32001, 32002, EOV, *END, 11644, 2996, 29973, *TAIL], False),
        ([8081, 29889, EOS], True),
    )


def test_a_picture_may_be_asked_for(rendered) -> None:
    """Trained are the codes, with what begins and ends them."""
    found = rendered(Line(USER, ["Generate an image of a red fox"]), Line(ASSISTANT, [picture(5, 6)]))
    holds(
        found,
        ([BOS, *HEAD, 3251, 403, 385, 1967, 310, 263, 2654, 1701, 29916, *TAIL], False),
        ([*BEGIN, 32005, 32006, EOV, *END, EOS], True),
    )


def test_a_clip_of_thirty_frames(rendered) -> None:
    codes = [k % CODES for k in range(60)]
    found = rendered(Line(USER, ["What happens?", picture(*codes, kind="video")]), Line(ASSISTANT, ["A fox jumps."]))
    frames = [32000 + c for k in range(30) for c in (codes[2 * k], codes[2 * k + 1], CODES if k < 29 else CODES + 1)]
    holds(
        found,
        ([BOS, *HEAD, 1724, 5930, 29973, 13, *BEGIN, *frames, *END, *TAIL], False),
        ([319, 1701, 29916, 432, 17204, 29889, EOS], True),
    )


def test_a_chat_s_own_system_text_takes_the_template_s_place(rendered) -> None:
    found = rendered(Line(SYSTEM, [" Be brief. "]), Line(USER, ["Hi"]), Line(ASSISTANT, ["Rome."]))
    prompt = [BOS, 1522, 11473, 29889, 3148, 1001, 29901, 6324, *TAIL]
    holds(found, (prompt, False), ([9184, 29889, EOS], True))


def test_an_answer_that_is_not_trained_is_part_of_a_prompt(rendered) -> None:
    said = [
        Line(USER, ["Hi"]),
        Line(ASSISTANT, ["Rome."], None, False),
        Line(USER, ["Who came?"]),
        Line(ASSISTANT, ["Ann."]),
    ]
    found = rendered(*said)
    prompt = [BOS, *HEAD, 6324, *TAIL, 9184, 29889, EOS, 3148, 1001, 29901, 11644, 2996, 29973, *TAIL]
    holds(found, (prompt, False), ([8081, 29889, EOS], True))
    assert spans(found) == [(0, len(prompt), USER), (len(prompt), len(prompt) + 3, ASSISTANT)]


def test_a_context_keeps_its_ids(rendered) -> None:
    """The ids of a book are not encoded again, wherever its chunks are cut."""
    parts = [Ids(np.array(ids), "chunk", {"chunk": n}) for n, ids in enumerate([[7, 8, 9], [10]])]
    found = rendered(
        Line(USER, [Context(parts, "book", {"record": "b"}), "Who came?"], {"chunk": 1}), Line(ASSISTANT, ["Ann."])
    )
    holds(found, ([BOS, *HEAD, 7, 8, 9, 10, 11644, 2996, 29973, *TAIL], False), ([8081, 29889, EOS], True))
    assert spans(found) == [(0, 22, USER), (10, 14, "book"), (10, 13, "chunk"), (13, 14, "chunk"), (22, 25, ASSISTANT)]
    assert json.loads(found.spans[0].ref) == {"chunk": 1}


def test_the_template_is_the_recipe_s(rendered) -> None:
    own = TemplateSection(system="", user="[INST] {} [/INST]", before_media="", assistant="")
    found = rendered(Line(USER, ["Rome.", picture(1, 2)]), Line(ASSISTANT, ["Ann."]), template=own)
    before, after = [518, 25580, 29962, 9184, 29889], [518, 29914, 25580, 29962]
    holds(found, ([BOS, *before, *BEGIN, 32001, 32002, EOV, *END, *after], False), ([8081, 29889, EOS], True))


SAID = st.lists(st.one_of(st.text("ab \n{}", max_size=6), st.just(picture(1, 2))), max_size=5)


@settings(max_examples=200, deadline=None)
@given(SAID, st.sampled_from(["", "Be good."]))
def test_no_string_of_a_prompt_ends_with_a_space(said: list[Said], head: str) -> None:
    """Whatever is said: all of it is there once, in order but for a question after its pictures."""
    found = list(prompted(said, head, LWM))
    assert all(text and not text.endswith(" ") for text in found if isinstance(text, str))
    assert sum(isinstance(part, Frames) for part in found) == sum(isinstance(part, Frames) for part in said)
    words = "".join(part for part in found if isinstance(part, str)).split()
    expected = [*head.split(), "USER:", *"".join(f" {p} " for p in question_first(said) if isinstance(p, str)).split()]
    assert "".join(words) == "".join([*expected, "ASSISTANT:"])


def test_a_part_of_the_template_must_not_end_with_a_space() -> None:
    with pytest.raises(ValueError, match="must not end with a space"):
        TemplateSection(assistant="ASSISTANT: ")
    with pytest.raises(ValueError, match=r"write \{\} once"):
        TemplateSection(user="USER:")
