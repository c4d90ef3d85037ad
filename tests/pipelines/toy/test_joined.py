"""Joined clips: what is filmed, what is asked, and that both are always the same."""

import io
import json

import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.pipelines.toy.joined import check_template, film, ordinal, word, write_joined
from worldloom.pipelines.toy.reader import read_motion, read_scene
from worldloom.pipelines.toy.world import Scene, draw, questions, scene

av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")


def frames(shown: Scene, size: int, seconds: float = 2.0) -> np.ndarray:
    return np.stack([draw(shown, size, n / 4) for n in range(round(4 * seconds))])


def decoded(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_film_shows_one_clip_after_the_other():
    scenes = [scene(0, n, moving=True) for n in range(3)]
    seen = decoded(film(scenes, size=64))
    assert len(seen) == 3 * 48
    for n, shown in enumerate(scenes):
        clip = seen[48 * n : 48 * n + 48 : 6]
        assert read_motion(clip) == shown.motion and read_scene(clip[0]) == (shown.shape, shown.colour)
        assert abs(clip.astype(int) - frames(shown, 64)).mean() < 4


def test_questions_name_their_clip():
    assert word(2, "What colour is the circle?") == "In clip 3, what colour is the circle?"
    assert word(1, "Is it red?", "{question} I mean the {ordinal} one.") == "Is it red? I mean the 2nd one."
    written = " ".join(ordinal(n) for n in (1, 2, 3, 4, 10, 11, 12, 13, 21, 22, 101, 111))
    assert written == "1st 2nd 3rd 4th 10th 11th 12th 13th 21st 22nd 101st 111th"
    for template in ("In clip {number}", "{question}", "{clip} {question}", "{number {question}"):
        with pytest.raises(UserError, match="a template holds"):
            check_template(template)


def test_every_answer_is_true_of_the_clip_that_is_named(tmp_path):
    for name in ("a", "b"):
        write_joined(tmp_path / name, 4, [1, 3], range(50), seed=5, asked=4, size=32, seconds=1.0)
    table = (tmp_path / "a" / "joined.jsonl").read_text()
    assert table == (tmp_path / "b" / "joined.jsonl").read_text()
    known = {}
    for n in range(50):
        shown = scene(5, n, moving=True)
        known[frames(shown, 32, 1.0).tobytes()] = {q.lower(): a for q, a in questions(shown)}
    pictures = np.stack([np.frombuffer(look, np.uint8) for look in known]).astype(int)
    for line in map(json.loads, table.splitlines()):
        messages = line["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * 4
        assert [p["type"] for p in messages[0]["content"]] == ["video", "text"]
        assert [p["type"] for p in messages[2]["content"]] == ["text"]
        data = (tmp_path / "a" / messages[0]["content"][0]["video"]).read_bytes()
        assert data == (tmp_path / "b" / messages[0]["content"][0]["video"]).read_bytes()
        clips = decoded(data)[::6].reshape(-1, 4 * 32 * 32 * 3).astype(int)
        assert len(clips) in (1, 3)
        answers = [[*known.values()][abs(pictures - clip).mean(axis=1).argmin()] for clip in clips]
        for asked, answer in zip(messages[::2], messages[1::2], strict=True):
            clip, _, question = asked["content"][-1]["text"].removeprefix("In clip ").partition(", ")
            assert answers[int(clip) - 1][question] == answer["content"]
