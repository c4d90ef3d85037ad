"""From records with pictures or clips to rows, in order: judged, fetched, decoded, encoded, rendered."""

from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ..packing.example import Example
from ..packing.ledger import DROPPED
from ..packing.report import Reject
from ..packing.row import Row, example_row
from ..recipe import Recipe
from ..sources import ImageTextSource, MediaSource, VideoTextSource
from . import chat_layout
from .admission import denied_by, reject_unfit, url_of
from .chat_layout import ASSISTANT, USER, Frames, Line
from .encoding import Pending
from .media import Unfit
from .models import text_tokenizer, vocabulary_of
from .pair_admission import judge_all
from .pairs import Layout, Marks, render
from .records import Found
from .to_codes import to_codes
from .units import fraction

PROMPTS = {"image": "Generate an image of {}", "video": "Generate a video of {}"}  # lwm/vision_generation.py:154, 224


def rows(
    recipe: Recipe, source: MediaSource, records: Iterable[Found], denied: frozenset[str], folder: Path
) -> Generator[Row | Reject]:
    """Turn records into examples' rows or rejects, one for each and in their order: the job without the engine.

    Clips that are fetched or copied lie in `folder` meanwhile.
    """
    judged = judge_all(records, source, recipe.seed, denied)
    with closing(to_codes(recipe, source, judged, folder)) as coded:
        for done in coded:
            yield done if isinstance(done, Reject) else finish(done, recipe, source, denied)


def finish(pending: Pending, recipe: Recipe, source: MediaSource, denied: frozenset[str]) -> Row | Reject:
    """Make an encoded record an example's row, or say why not."""
    found, exact = pending.found, pending.hash.digest()
    if pending.unfit:
        return reject_unfit(found, source, pending.unfit, "filter" if pending.unfit.status == DROPPED else "decode")
    if entry := denied_by(denied, exact.hex(), pending.content):
        return reject_unfit(found, source, Unfit(DROPPED, "denied", entry), "filter", bytes.fromhex(entry))
    example = laid_out(pending, np.concatenate(pending.codes), recipe, source)
    return example_row(example, vocabulary_of(recipe.vocabulary), exact, np.empty(0, np.uint64))


def laid_out(pending: Pending, codes: np.ndarray, recipe: Recipe, source: MediaSource) -> Example:
    """Lay a pair out as its source says: side by side, or as a chat that asks for the picture."""
    found, told = pending.found, described(pending, source)
    medium = "image" if isinstance(source, ImageTextSource) else "video"
    text, vocabulary = text_tokenizer(recipe.vocabulary.text), vocabulary_of(recipe.vocabulary)
    if source.render.form == "chat":
        asked = (source.render.prompt or PROMPTS[medium]).replace("{}", found.text.strip())
        lines = [Line(USER, [asked]), Line(ASSISTANT, [Frames(medium, codes, told)])]
        names = f"text-to-{medium}", source.name, found.record
        return chat_layout.render(lines, source.render.template, text, vocabulary, *names)
    order, marks = layout(recipe.seed, source, found.record), Marks.of(text)
    caption = text.encode(found.text)
    return render(caption, codes, medium, told, order, marks, vocabulary, source.name, found.record)


def layout(seed: int, source: MediaSource, record: str) -> Layout:
    """Draw a record's layout."""
    first = fraction(seed, "order", source.name, record) < 0.5
    dropped = fraction(seed, "caption", source.name, record) < source.render.caption_dropout
    return Layout(first, not dropped, source.render.trained == "all")


def described(pending: Pending, source: MediaSource) -> dict[str, Any]:
    """Say of the stored frames what a reader may ask: where they come from, and of a clip which they are."""
    told = {"width": pending.info["width"], "height": pending.info["height"]}
    if url := url_of(pending.found):  # which a deny list may name
        told["url"] = url
    if isinstance(source, VideoTextSource):
        kept = {name: pending.info[name] for name in ("start", "rate")}
        told |= {**kept, "frames": pending.info["chosen"], "of": pending.info["total"]}
        told |= {"sampling": source.sampling, "content": pending.content}
    return told
