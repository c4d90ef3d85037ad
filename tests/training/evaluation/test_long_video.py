"""Questions about joined clips: which clip, which frames."""

import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.training.evaluation.long_video import Clip, agrees, few, make_trial

POOL = [Clip(np.full((3, 2), n, np.uint16), [(f"what {n}", f"this {n}")]) for n in range(20)]


def word(which: int, question: str) -> str:
    return f"clip {which}: {question}"


@pytest.mark.parametrize(("depth", "which"), [(0, 0), (12, 0), (13, 1), (38, 2), (50, 2), (60, 2), (63, 3), (100, 4)])
def test_the_question_is_about_the_clip_at_its_depth(depth, which):
    for number in range(5):
        trial = make_trial(POOL, word, clips=5, depth=depth, number=number)
        assert trial.codes.shape == (15, 2)
        about = trial.codes[3 * which, 0]
        assert trial.question == f"clip {which}: what {about}" and trial.answer == f"this {about}"
        assert len(set(trial.codes[:, 0].tolist())) == 5


def test_a_trial_depends_on_its_arguments_alone():
    first = make_trial(POOL, word, 5, 50, 0, seed=1)
    assert np.array_equal(first.codes, make_trial(POOL, word, 5, 50, 0, seed=1).codes)
    assert any(not np.array_equal(first.codes, make_trial(POOL, word, 5, 50, 0, seed).codes) for seed in (2, 3))
    assert any(not np.array_equal(first.codes, make_trial(POOL, word, 5, 50, n, seed=1).codes) for n in (1, 2))


def test_few_frames_are_eight_from_first_to_last():
    trial = make_trial(POOL, word, clips=12, depth=100, number=0)
    places = [int(n) for n in np.linspace(0, 35, 8)]
    assert np.array_equal(few(trial.codes), trial.codes[places])
    short = make_trial(POOL, word, clips=2, depth=0, number=0)
    assert few(short.codes) is short.codes  # six frames are few already


def test_more_clips_than_there_are():
    with pytest.raises(UserError, match="joined of 21 clips: there are 20"):
        make_trial(POOL, word, 21, 0, 0)


def test_agreement():
    assert agrees(" Red.\n", "red") and agrees("a circle", "a circle")
    assert not agrees("red or blue", "red") and not agrees("", "red") and not agrees("circle", "a circle")
