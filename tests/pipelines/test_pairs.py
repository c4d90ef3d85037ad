"""Pairs laid out as LWM's own field processor would, ids worked out by hand from its description."""

import json
from pathlib import Path

import numpy as np
import pytest
from worldloom.packing.example import Example
from worldloom.pipelines.pairs import Layout, Marks, render, task_of
from worldloom.tokenizers.text import load
from worldloom.tokenizers.vocabulary import Vocabulary

# LLaMA's ids: <s> 1, </s> 2; "<vision>" 529 4924 29958, "</vision>" 1533 4924 29958 (lwm/data.py with the original
# tokenizer, which adds no BOS to a field); "a red circle" is ▁a ▁red ▁circle. Text ids are 0..31999, codes follow.
BOS, EOS, BEGIN, END = [1], [2], [529, 4924, 29958], [1533, 4924, 29958]
CAPTION = [263, 2654, 8607]
EOF_ID, EOV_ID = 32000 + 8192, 32000 + 8193
CODES = np.arange(512).reshape(2, 256)
FRAME_0 = [*range(32000, 32256), EOF_ID]
FRAME_1 = [*range(32256, 32512), EOV_ID]
IMAGE = [*range(32000, 32256), EOV_ID]


@pytest.fixture(scope="module")
def made(llama_model: Path):
    tokenizer = load(str(llama_model))
    vocabulary = Vocabulary(32000, 1, 2, tokenizer.digest, 8192, "codes")

    def make(frames: int, layout: Layout) -> Example:
        medium = "image" if frames == 1 else "video"
        caption = tokenizer.encode("a red circle")
        return render(
            caption, CODES[:frames], medium, {"frames": frames}, layout, Marks.of(tokenizer), vocabulary, "s", "r"
        )

    return make


@pytest.mark.parametrize(
    ("frames", "layout", "task", "tokens", "untrained"),
    [
        (1, Layout(False, True, True), "text-to-image", BOS + CAPTION + BEGIN + IMAGE + END + EOS, 1),
        (1, Layout(True, True, True), "image-to-text", BOS + BEGIN + IMAGE + END + CAPTION + EOS, 1),
        (1, Layout(False, False, True), "image", BOS + BEGIN + IMAGE + END + EOS, 1),
        (1, Layout(True, False, False), "image", BOS + BEGIN + IMAGE + END + EOS, 1),
        (1, Layout(False, True, False), "text-to-image", BOS + CAPTION + BEGIN + IMAGE + END + EOS, 4),
        (1, Layout(True, True, False), "image-to-text", BOS + BEGIN + IMAGE + END + CAPTION + EOS, 264),
        (2, Layout(False, True, True), "text-to-video", BOS + CAPTION + BEGIN + FRAME_0 + FRAME_1 + END + EOS, 1),
        (2, Layout(True, True, True), "video-to-text", BOS + BEGIN + FRAME_0 + FRAME_1 + END + CAPTION + EOS, 1),
        (2, Layout(True, False, True), "video", BOS + BEGIN + FRAME_0 + FRAME_1 + END + EOS, 1),
    ],
)
def test_ids_and_flags_are_lwm_s(made, frames, layout, task, tokens, untrained) -> None:
    example = made(frames, layout)
    assert example.tokens.tolist() == tokens
    assert example.task == task == task_of("image" if frames == 1 else "video", layout)
    assert example.trained.tolist() == [False] * untrained + [True] * (len(tokens) - untrained)
    (span,) = [s for s in example.spans if s.kind in ("image", "video")]
    assert example.tokens[span.start : span.end].tolist() == (IMAGE if frames == 1 else FRAME_0 + FRAME_1)
    assert json.loads(span.ref) == {"frames": frames}
    captions = [example.tokens[s.start : s.end].tolist() for s in example.spans if s.kind == "caption"]
    assert captions == ([CAPTION] if layout.caption else [])
