"""Thinning: leave frames of stored videos out, uniformly, so that one tokenization serves sequences of every length."""

import json
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from .example import Example, Span

VIDEO = "video"  # the kind of a span that covers all frames of a clip, endings included; its ref says how many
LEAST = 2  # frames of a thinned video; one of a single frame stays as it is


class Thinning(NamedTuple):
    """What becomes of an example: the part of its videos' frames that stays, and the tokens that are left."""

    part: int
    whole: int
    length: int

    def left(self, frames: int) -> int:
        """Return how many of a video's frames stay."""
        return _left(frames, self.part, self.whole)


def plan_thinning(
    length: int, spans: tuple[Span, ...], room: int, frames: int | Literal["fit"] | None
) -> Thinning | None:
    """Decide how many frames of an example stay.

    Args:
      length: its tokens.
      spans: its spans; those of videos are thinned, all by one ratio.
      room: tokens of a sequence.
      frames: the most that any video keeps, or `fit`: as many as `room` allows. None thins nothing.

    Returns:
      None where a video would keep fewer than two frames. What does not fit all the same is the caller's to judge.
    """
    videos = [(s, n) for s in spans if s.kind == VIDEO and (n := frame_count(s)) >= LEAST]
    if frames is None or not videos:
        return Thinning(1, 1, length)
    most = max(count for _, count in videos)
    fitting = _largest(most, lambda p: _length(length, videos, p, most) <= room) if frames == "fit" else frames
    part = min(most, fitting)
    if any(_left(count, part, most) < LEAST for _, count in videos):
        return None
    return Thinning(part, most, _length(length, videos, part, most))


def frame_count(span: Span) -> int:
    """Return how many frames a video's span covers."""
    return int(json.loads(span.ref)["frames"])


def _left(frames: int, part: int, whole: int) -> int:
    return frames if frames < LEAST else frames * part // whole


def _length(length: int, videos: list[tuple[Span, int]], part: int, whole: int) -> int:
    return length - sum((n - _left(n, part, whole)) * ((s.end - s.start) // n) for s, n in videos)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """Find the largest part from 0 to `most` that fits; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def uniform(number: int, of: int) -> np.ndarray:
    """Choose `number` of `of` places, the first and the last among them: LWM's truncated linspace, in integers."""
    return np.arange(number) * (of - 1) // max(1, number - 1)


def thin(example: Example, thinning: Thinning) -> Example:
    """Leave frames out. First and last stay, so every ending is still the right one; spans move along."""
    kept = np.ones(len(example.tokens), bool)
    refs = {}
    for number, span in enumerate(example.spans):
        if span.kind == VIDEO:
            count = frame_count(span)
            left = thinning.left(count)
            frames = np.zeros(count, bool)
            frames[uniform(left, count)] = True
            kept[span.start : span.end] = np.repeat(frames, (span.end - span.start) // count)
            refs[number] = _thinned_ref(span.ref, count, left)
    places = np.concatenate(([0], np.cumsum(kept)))
    spans = tuple(
        Span(int(places[s.start]), int(places[s.end]), s.kind, refs.get(i, s.ref)) for i, s in enumerate(example.spans)
    )
    trained = example.trained[kept]
    return Example(example.tokens[kept], trained, example.task, example.source, example.record, example.start, spans)


def _thinned_ref(ref: str, count: int, left: int) -> str:
    told = json.loads(ref)
    if left == count:
        return ref
    return json.dumps({**told, "frames": left, "rate": told["rate"] * (left - 1) / (count - 1), "thinned_from": count})
