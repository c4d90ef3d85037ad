"""Thinning against lists that are cut by hand."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldloom.packing.example import Draft, Example
from worldloom.packing.thin import plan_thinning, thin, uniform
from worldloom.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=10, bos=1, eos=2, text_digest="t", codes=1000, vision_digest="v")
CODES = 3  # of a frame


def frame(number: int, last: bool) -> list[int]:
    return [10 + number] * CODES + [VOCABULARY.eov if last else VOCABULARY.eof]


def example(videos: list[int], images: int = 0, text: int = 2) -> Example:
    """Text, videos of so many frames with text between, and images; frame i of a video has i as its code."""
    draft = Draft(VOCABULARY)
    draft.add([1], trained=False)
    draft.add([5] * text, trained=True, kind="caption")
    for n in videos:
        ids = [t for i in range(n) for t in frame(i, i == n - 1)]
        draft.add(ids, trained=False, kind="video", ref=json.dumps({"frames": n, "rate": 4, "start": 0.5}))
        draft.add([6], trained=True)
    for _ in range(images):
        draft.add(frame(999, True), trained=True, kind="image", ref="{}")
    draft.add([2], trained=True)
    return draft.example("video-to-text", "s", "r")


def by_hand(videos: list[int], kept: list[list[int]], images: int, text: int) -> list[int]:
    tokens = [1] + [5] * text
    for indices in kept:
        tokens += [t for i in indices for t in frame(i, i == indices[-1])] + [6]
    return [*tokens, *(frame(999, True) * images), 2]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(0, 2), st.integers(0, 5), st.integers(8, 700))
def test_fit_keeps_the_most_frames_that_fit_by_one_ratio(videos: list[int], images: int, text: int, room: int) -> None:
    made, most = example(videos, images, text), max(videos)

    def kept(part: int) -> list[list[int]]:
        counts = [n if n == 1 else n * part // most for n in videos]
        return [[int(i * (n - 1) / (k - 1) + 1e-9) for i in range(k)] if k > 1 else [0] * k
                for n, k in zip(videos, counts, strict=True)]  # fmt: skip

    parts = [p for p in range(most + 1) if len(by_hand(videos, kept(p), images, text)) <= room] or [0]
    best = kept(max(parts))
    planned = plan_thinning(len(made.tokens), made.spans, room, "fit")
    if most == 1:  # nothing to thin: it is the packer's to judge
        assert planned == (1, 1, len(made.tokens))
        return
    if any(len(k) < min(2, n) for k, n in zip(best, videos, strict=True)):
        assert planned is None
        return
    assert planned is not None
    thinned = thin(made, planned)
    assert thinned.tokens.tolist() == by_hand(videos, best, images, text)
    assert len(thinned.tokens) == planned.length
    refs = [(s.end - s.start, json.loads(s.ref)["frames"]) for s in thinned.spans if s.kind == "video"]
    assert refs == [(len(k) * (CODES + 1), len(k)) for k in best]
    videoless = [t in (2, 5, 6) for t in thinned.tokens[: len(thinned.tokens) - images * (CODES + 1) - 1]]
    assert thinned.trained.tolist() == videoless + [True] * (images * (CODES + 1) + 1)


def test_spans_flags_and_rate_move_along() -> None:
    made = example([9])
    planned = plan_thinning(len(made.tokens), made.spans, 10_000, 3)
    assert planned is not None
    thinned = thin(made, planned)
    codes = [t - 10 for t in thinned.tokens.tolist() if 10 <= t < VOCABULARY.eof]
    assert codes == [0] * 3 + [4] * 3 + [8] * 3
    assert thinned.trained.tolist() == [False, True, True, *[False] * 12, True, True]
    (span,) = [s for s in thinned.spans if s.kind == "video"]
    assert (span.start, span.end) == (3, 15)
    assert json.loads(span.ref) == {"frames": 3, "rate": 1.0, "start": 0.5, "thinned_from": 9}
    assert [int(t) for t in thinned.tokens[[6, 10, 14]]] == [VOCABULARY.eof, VOCABULARY.eof, VOCABULARY.eov]


def test_what_fits_is_left_as_it_is() -> None:
    made = example([5, 2], images=1)
    planned = plan_thinning(len(made.tokens), made.spans, len(made.tokens), "fit")
    assert planned is not None and planned.part == planned.whole
    np.testing.assert_array_equal(thin(made, planned).tokens, made.tokens)
    assert thin(made, planned).spans == made.spans


def test_a_video_that_would_keep_one_frame_drops_the_example() -> None:
    made = example([40, 3])
    assert plan_thinning(len(made.tokens), made.spans, 10_000, 20) is None


@pytest.mark.parametrize("frames", ["fit", 5])
def test_a_video_of_one_frame_stays(frames: Any) -> None:
    made = example([10, 1])
    planned = plan_thinning(len(made.tokens), made.spans, 33, frames)
    assert planned is not None
    assert thin(made, planned).tokens.tolist() == by_hand([10, 1], [[0, 2, 4, 6, 9], [0]], 0, 2)


@pytest.mark.parametrize("frames", ["fit", 2, None])
def test_what_has_no_video_is_left_to_the_packer(frames: Any) -> None:
    """Text that is longer than the room is cut into windows there."""
    made = example([], images=1, text=1000)
    assert plan_thinning(len(made.tokens), made.spans, 64, frames) == (1, 1, len(made.tokens))


def test_uniform_is_lwm_s_linspace() -> None:
    for of in range(1, 60):
        for number in range(1, of + 1):
            exact = [i * (of - 1) // (number - 1) for i in range(number)] if number > 1 else [0]
            assert uniform(number, of).tolist() == exact
