"""Questions about joined clips: which clip, which frames, which ids."""

import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training.evaluation.long_video import Clip, agrees, few, make_prompt, make_trial
from worldloom.training.evaluation.needle import Coder

VOCABULARY = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test", codes=64, vision_digest="codes")
CODER = Coder(lambda text: [3 + ord(letter) for letter in text], lambda ids: "".join(chr(i - 3) for i in ids), 1)
POOL = [Clip(np.full((3, 2), n, np.uint16), [(f"what {n}", f"this {n}")]) for n in range(20)]


def word(which: int, question: str) -> str:
    return f"clip {which}: {question}"


@pytest.mark.parametrize(("depth", "which"), [(0, 0), (25, 1), (50, 2), (60, 2), (63, 3), (100, 4)])
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


def test_prompts_are_laid_out_by_hand():
    trial = make_trial(POOL, word, clips=2, depth=0, number=0)
    asked = [1, *CODER.encode(f"You are a helpful assistant. USER: {trial.question}\n"), *CODER.encode("<vision>")]
    frames = [i for code in trial.codes[:, 0].tolist() for i in (300 + code, 300 + code, 364)]
    frames[-1] = 365
    expected = [*asked, *frames, *CODER.encode("</vision>"), *CODER.encode("ASSISTANT:")]
    assert make_prompt(trial.codes, trial.question, CODER, VOCABULARY).tolist() == expected
    assert few(trial.codes) is trial.codes  # six frames are few already


def test_few_frames_are_eight_from_first_to_last():
    trial = make_trial(POOL, word, clips=12, depth=100, number=0)
    prompt = make_prompt(few(trial.codes), trial.question, CODER, VOCABULARY)
    shown = prompt[prompt >= 300].reshape(8, 3)
    places = [int(n) for n in np.linspace(0, 35, 8)]
    assert shown[:, 0].tolist() == (300 + trial.codes[places, 0]).tolist()
    assert shown[:, 2].tolist() == [364] * 7 + [365]


def test_more_clips_than_there_are():
    with pytest.raises(UserError, match="joined of 21 clips: there are 20"):
        make_trial(POOL, word, 21, 0, 0)


def test_agreement():
    assert agrees(" Red.\n", "red") and agrees("a circle", "a circle")
    assert not agrees("red or blue", "red") and not agrees("", "red") and not agrees("circle", "a circle")
