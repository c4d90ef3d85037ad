"""From chats to rows, in order: judged, their pictures and clips turned to codes, written out."""

import hashlib
import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..packing.example import Example
from ..packing.ledger import DROPPED, FAILED
from ..packing.report import Reject
from ..packing.row import Row, example_row
from ..recipe import Recipe
from ..sources import ChatSource
from .admission import denied_by, reject_unfit, url_of
from .chat_admission import judge_all, misfit
from .chat_layout import Frames, Line, Said, render
from .encoding import Pending
from .media import Unfit
from .models import text_tokenizer, vocabulary_of
from .near import signature
from .recent import Recent
from .records import Chat, Found, ImageText, Medium, VideoText

IMAGE, VIDEO = "image", "video"


class End(NamedTuple):
    """Follows upon the pictures of a chat, and stands for one that was kept out."""

    of: Chat | Reject


def rows(
    recipe: Recipe, source: ChatSource, records: Iterable[Found], denied: frozenset[str], folder: Path
) -> Generator[Row | Reject]:
    """Turn chats into examples' rows or rejects, one for each and in their order: the job without the engine.

    Clips that are fetched or copied lie in `folder` meanwhile.
    """
    judged = judge_all(records, source, recipe.seed, denied)
    if recipe.vocabulary.vision is None:
        for chat in judged:
            yield chat if isinstance(chat, Reject) else finish(chat, [], recipe, source, denied)
        return
    from .to_codes import to_codes

    made, done = deque[Pending | Reject](), Recent[Pending | Reject](source)
    with closing(to_codes(recipe, source, taken_apart(judged, source), folder)) as coded:
        for item in coded:
            if not isinstance(item, End):
                made.append(item)
            elif isinstance(item.of, Reject):
                yield item.of
            else:
                outcomes = [done.find(medium) or done.hold(medium, made.popleft()) for medium in item.of.media]
                yield finish(item.of, outcomes, recipe, source, denied)


def taken_apart(judged: Iterable[Chat | Reject], source: ChatSource) -> Iterator[ImageText | End]:
    """Yield the pictures and clips of a chat as records of their own, but for those just shown, then the chat's end."""
    sent = Recent[bool](source)
    for chat in judged:
        for number, medium in enumerate(chat.media if isinstance(chat, Chat) else ()):
            if not sent.find(medium):
                sent.hold(medium, True)
                kind = VideoText if medium.kind == VIDEO else ImageText
                yield kind(f"{chat.record}#{number}", f"{chat.where} medium {number}", "", medium.media)
        yield End(chat)


def finish(
    chat: Chat, outcomes: list[Pending | Reject], recipe: Recipe, source: ChatSource, denied: frozenset[str]
) -> Row | Reject:
    """Make a chat whose pictures are codes an example's row, or say why not."""
    if len(outcomes) < len(chat.media):
        remedy = f"{len(chat.media)} of them, and the recipe names no tokenizer in vocabulary.vision"
        return reject_unfit(chat, source, Unfit(FAILED, "pictures without a tokenizer", remedy), "read")
    for number, outcome in enumerate(outcomes):
        if kept_out := _kept_out(chat, number, outcome, source):
            return kept_out
    frames = [described(outcome, source) for outcome in outcomes if isinstance(outcome, Pending)]
    exact = content_hash(chat, frames)
    if entry := denied_by(denied, exact.hex(), *(part.told["content"] for part in frames)):
        return reject_unfit(chat, source, Unfit(DROPPED, "denied", entry), "filter", bytes.fromhex(entry))
    example, vocabulary = laid_out(chat, frames, recipe, source), vocabulary_of(recipe.vocabulary)
    if unfit := misfit(example, source):
        return reject_unfit(chat, source, unfit, "filter", exact)
    near = word_signature(chat, frames, recipe) if recipe.duplicates == "near" else np.empty(0, np.uint64)
    return example_row(example, vocabulary, exact, near)


def _kept_out(chat: Chat, number: int, outcome: Pending | Reject, source: ChatSource) -> Reject | None:
    """Say which of a chat's pictures keeps it out, if it does."""
    which = f"{chat.media[number].kind} {number + 1} of {len(chat.media)}"
    if isinstance(outcome, Reject):
        return replace(outcome, record=chat.record, where=chat.where, error=f"{which}: {outcome.error}")
    if outcome.unfit is None:
        return None
    unfit = Unfit(outcome.unfit.status, outcome.unfit.reason, f"{which}: {outcome.unfit.detail}")
    return reject_unfit(chat, source, unfit, "filter" if unfit.status == DROPPED else "decode")


def laid_out(chat: Chat, frames: list[Frames], recipe: Recipe, source: ChatSource) -> Example:
    """Write a chat out."""
    codes = iter(frames)
    lines = [Line(turn.role, [_said(part, codes) for part in turn.parts], None, turn.trained) for turn in chat.turns]
    text, vocabulary = text_tokenizer(recipe.vocabulary.text), vocabulary_of(recipe.vocabulary)
    names = task_of(chat), source.name, chat.record
    return render(lines, source.template, text, vocabulary, *names, url=url_of(chat))


def _said(part: str | Medium, codes: Iterator[Frames]) -> Said:
    return part if isinstance(part, str) else next(codes)


def task_of(chat: Chat) -> str:
    """Name the task of a chat by what it shows."""
    kinds = {medium.kind for medium in chat.media}
    return "video-chat" if VIDEO in kinds else "image-chat" if kinds else "chat"


def described(pending: Pending, source: ChatSource) -> Frames:
    """Take a picture's or clip's codes, and say of it what a reader may ask."""
    info = pending.info
    told: dict[str, Any] = {"width": info["width"], "height": info["height"], "content": pending.content}
    if pending.found.media.link:
        told["url"] = pending.found.media.link
    kind = VIDEO if isinstance(pending.found, VideoText) else IMAGE
    if kind == VIDEO:
        told |= {"start": info["start"], "rate": info["rate"], "frames": info["chosen"]}
        told |= {"of": info["total"], "sampling": source.sampling}
    return Frames(kind, np.concatenate(pending.codes), told)


def content_hash(chat: Chat, frames: list[Frames]) -> bytes:
    """Hash what is said and shown: 16 bytes; equal hashes are exact duplicates."""
    shown = iter(frames)

    def told(part: str | Medium) -> list[str]:
        return ["says", part.strip()] if isinstance(part, str) else ["shows", next(shown).told["content"]]

    said = [[turn.role, turn.trained, *map(told, turn.parts)] for turn in chat.turns]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).digest()


def word_signature(chat: Chat, frames: list[Frames], recipe: Recipe) -> np.ndarray:
    """Return the band hashes of a chat's words; those of chats that show other pictures share none."""
    said = "\n".join(turn.text for turn in chat.turns)
    words = text_tokenizer(recipe.vocabulary.text).encode(said).astype(np.uint64)
    shown = hashlib.blake2b("".join(part.told["content"] for part in frames).encode(), digest_size=8).digest()
    return signature(words ^ np.uint64(int.from_bytes(shown) if frames else 0))
