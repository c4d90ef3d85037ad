"""Questions about long videos: clips joined into one, each question about one of them."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from ...packing.thin import uniform

FEW = 8  # frames that most models see of a video, and LWM's script (lwm/vision_chat.py)

Word = Callable[[int, str], str]  # names the clip, counted from 0, in the question about it


class Clip(NamedTuple):
    """Hold a clip's codes `[frames, codes of a frame]`, and questions about it with their answers."""

    codes: np.ndarray
    questions: Sequence[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Trial:
    """Hold one question about a joined video.

    Attributes:
      clips, depth, number: how many were joined, where the one asked about lies in percent, which one of this cell.
      codes: of all frames, `[frames, codes of a frame]`.
      question, answer: one line each.
    """

    clips: int
    depth: int
    number: int
    codes: np.ndarray
    question: str
    answer: str


def make_trial(pool: Sequence[Clip], word: Word, clips: int, depth: int, number: int, seed: int = 0) -> Trial:
    """Join different clips and ask about the one at `depth` percent of their order: by the arguments alone.

    Raises:
      UserError: if there are not so many clips.
    """
    if not 1 <= clips <= len(pool):
        raise UserError(f"a video cannot be joined of {clips} clips: there are {len(pool)} to choose from")
    rng = random.Random(f"long video {seed} {clips} {depth} {number}")
    joined = [pool[n] for n in rng.sample(range(len(pool)), clips)]
    which = (depth * (clips - 1) + 50) // 100
    question, answer = rng.choice(joined[which].questions)
    codes = np.concatenate([clip.codes for clip in joined])
    return Trial(clips, depth, number, codes, word(which, question), answer)


def few(codes: np.ndarray) -> np.ndarray:
    """Choose `FEW` frames, the first, the last and uniformly between; fewer stay as they are."""
    return codes[uniform(FEW, len(codes))] if len(codes) > FEW else codes


def agrees(reply: str, answer: str) -> bool:
    """Is a reply the answer, but for capitals, spaces and a stop at its end?"""
    said, wanted = (text.strip().rstrip(".!").casefold() for text in (reply, answer))
    return said == wanted
