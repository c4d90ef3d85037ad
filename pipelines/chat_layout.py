"""Chats as tokens: prompts and answers, each encoded as strings of their own; only answers are trained."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..packing.example import Draft, Example
from ..sources import TemplateSection
from ..tokenizers.text import TextTokenizer
from ..tokenizers.vocabulary import Vocabulary
from .pairs import Marks, frame_tokens

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


class Frames(NamedTuple):
    """A picture (`image`) or clip (`video`): codes `[frames, codes of a frame]`, and what its span tells."""

    kind: str
    codes: np.ndarray
    told: dict[str, Any]


class Ids(NamedTuple):
    """Ids that are there already, and a span over them."""

    ids: np.ndarray
    kind: str
    told: dict[str, Any]


class Context(NamedTuple):
    """What a question is about: ids that follow upon each other, and a span over all of them."""

    parts: Sequence[Ids]
    kind: str
    told: dict[str, Any]


Said = str | Frames | Context


class Line(NamedTuple):
    """What one side says, its words and pictures in order, what the span of it tells, and is an answer trained?"""

    role: str
    said: Sequence[Said]
    told: dict[str, Any] | None = None
    trained: bool = True


def render(
    lines: Sequence[Line],
    template: TemplateSection,
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    task: str,
    source: str,
    record: str,
    url: str = "",
) -> Example:
    """Lay a chat out: BOS, then prompts, and answers that each end with EOS; a system line takes the template's place.

    Spans: `user` is a whole prompt, from BOS or the answer before to the token before its answer; `assistant` is an
    answer with its EOS; pictures lie in them. An answer that is not trained is part of the next one's prompt. A `url`
    that the row comes from is told by a `document` over all.
    """
    draft, marks = Draft(vocabulary), Marks.of(tokenizer)
    draft.add([vocabulary.bos], trained=False)
    head, start, asked = template.system, 0, None
    for line in lines:
        if line.role == SYSTEM:
            head = " ".join(part.strip() for part in line.said if isinstance(part, str))
            continue
        if line.role == USER:
            for piece in prompted(line.said, head, template):
                _add(draft, piece, False, tokenizer, marks, vocabulary)
            head, asked = "", line.told
            continue
        if line.trained:
            draft.span(start, USER, json.dumps(asked) if asked else "")
            start = draft.length
        for piece in answered(line.said):
            _add(draft, piece, line.trained, tokenizer, marks, vocabulary)
        draft.add([vocabulary.eos], line.trained)
        if line.trained:
            draft.span(start, ASSISTANT, json.dumps(line.told) if line.told else "")
            start = draft.length
    if url:
        draft.span(0, "document", json.dumps({"url": url}))
    return draft.example(task, source, record)


def answered(said: Sequence[Said]) -> Iterator[Said]:
    """Yield an answer as what is encoded one by one."""
    return (text for part in said if (text := part.strip() if isinstance(part, str) else part))


def prompted(said: Sequence[Said], head: str, template: TemplateSection) -> Iterator[Said]:
    """Yield a prompt as what is encoded one by one: strings as long as can be, none of which ends with a space.

    Args:
      head: stands before the question, once in a chat.
    """
    before, after = template.user.split("{}")
    text, worded = f"{head} {before}" if head else before, False
    for part in question_first(said):
        if isinstance(part, str):
            text, worded = text + part, True
            continue
        if text := text.rstrip(" "):
            yield text + (template.before_media if worded and isinstance(part, Frames) else "")
        yield part
        text, worded = "", False
    yield f"{(text + after).rstrip(' ')} {template.assistant}".strip(" ")


def question_first(said: Sequence[Said]) -> Sequence[Said]:
    """Strip the words, and put those of a question before its pictures, as LWM does; pictures amid words stay there."""
    parts = [text for part in said if (text := part.strip() if isinstance(part, str) else part)]
    if parts and isinstance(parts[-1], str) and all(isinstance(part, Frames) for part in parts[:-1]):
        return [parts[-1], *parts[:-1]]
    return parts


def _add(
    draft: Draft, piece: Said, trained: bool, tokenizer: TextTokenizer, marks: Marks, vocabulary: Vocabulary
) -> None:
    if isinstance(piece, str):
        draft.add(tokenizer.encode(piece), trained)
    elif isinstance(piece, Context):
        start = draft.length
        for ids, kind, told in piece.parts:
            draft.add(ids, trained, kind, json.dumps(told))
        draft.span(start, piece.kind, json.dumps(piece.told))
    else:
        draft.add(marks.begin, trained)
        draft.add(frame_tokens(piece.codes, vocabulary), trained, piece.kind, json.dumps(piece.told))
        draft.add(marks.end, trained)
