"""Pairs of a caption and a picture or clip: how one becomes an example, as LWM lays it out."""

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..packing.example import Draft, Example
from ..tokenizers.text import TextTokenizer
from ..tokenizers.vocabulary import Vocabulary

BEGIN, END = "<vision>", "</vision>"  # ordinary text around the codes (lwm/data.py)


class Layout(NamedTuple):
    """What is drawn for a record.

    Attributes:
      media_first: does the picture stand before the caption?
      caption: is the caption there at all?
      all_trained: is everything trained but BOS, or only what comes second?
    """

    media_first: bool
    caption: bool
    all_trained: bool


@dataclass(frozen=True)
class Marks:
    """The ids that frame a picture, each encoded as a string of its own."""

    begin: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, tokenizer: TextTokenizer) -> "Marks":
        return cls(tokenizer.encode(BEGIN), tokenizer.encode(END))


def task_of(medium: str, layout: Layout) -> str:
    """Name the task that a layout of an `image` or a `video` makes."""
    if not layout.caption:
        return medium
    return f"{medium}-to-text" if layout.media_first else f"text-to-{medium}"


def frame_tokens(codes: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Turn frames' codes `[n, c]` into ids `[n * (c + 1)]`: eof ends each frame, eov the last."""
    endings = np.full((len(codes), 1), vocabulary.eof, np.int64)
    endings[-1] = vocabulary.eov
    return np.concatenate((codes.astype(np.int64) + vocabulary.text_size, endings), axis=1).ravel()


def render(
    caption: np.ndarray,
    codes: np.ndarray,
    medium: str,
    ref: dict[str, object],
    layout: Layout,
    marks: Marks,
    vocabulary: Vocabulary,
    source: str,
    record: str,
) -> Example:
    """Lay a pair out: BOS, caption and medium in the order drawn, EOS.

    Args:
      caption: its ids.
      codes: `[frames, codes of a frame]`.
      medium: `image` or `video`: the task, and the kind of the span that covers the frames.
      ref: what the span says of the frames.
    """
    draft = Draft(vocabulary)
    draft.add([vocabulary.bos], trained=False)
    order = ["media", "caption"] if layout.media_first else ["caption", "media"]
    parts = order if layout.caption else ["media"]
    for part in parts:
        trained = layout.all_trained or part == parts[-1]
        if part == "caption":
            draft.add(caption, trained, kind="caption")
            continue
        draft.add(marks.begin, trained)
        draft.add(frame_tokens(codes, vocabulary), trained, kind=medium, ref=json.dumps(ref))
        draft.add(marks.end, trained)
    draft.add([vocabulary.eos], trained=True)
    return draft.example(task_of(medium, layout), source, record)
