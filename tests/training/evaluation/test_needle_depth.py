"""Needles lie where their depth says in texts of any kind, and cut no character in two."""
# ruff: noqa: RUF001, stops of other alphabets

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.training.evaluation.needle import Coder, make_haystack, make_trial
from worldloom.training.evaluation.needle_data import Form, bury, make_chats

LETTERS = Coder(lambda text: [ord(c) for c in text], lambda ids: "".join(map(chr, ids)), bos=0)
BYTES = Coder(lambda text: list(text.encode()), lambda ids: bytes(map(int, ids)).decode(errors="replace"), bos=0)
PLAIN = "It was far to the inn. Was it? So he said, and slept. "
NO_STOPS, JAPANESE = "word without a stop ", "雨が降っていた。「行こう！」彼は言った。"
QUOTED = 'He said "no." She said (yes!) '


def sentences(text: str) -> list[int]:
    return make_haystack([text], LETTERS).borders.tolist()


@pytest.mark.parametrize("text", [NO_STOPS, JAPANESE, QUOTED, PLAIN, "🙂🚀é "])
@pytest.mark.parametrize("coder", [LETTERS, BYTES])
@pytest.mark.parametrize("depth", [0, 10, 50, 90, 100])
def test_a_needle_lies_at_its_depth(text, coder, depth):
    trial = make_trial(make_haystack([text * 800], coder), coder, 3000, depth, number=1)
    before, after = map(len, trial.straws)
    assert trial.true_depth == pytest.approx(100 * before / (before + after))
    assert abs(trial.true_depth - depth) <= 5
    assert "\ufffd" not in coder.decode(trial.straws[0]) and not coder.decode(trial.straws[1]).startswith("\ufffd")


def test_a_sentence_that_is_near_is_taken_and_one_that_is_far_is_not():
    def lies(words: str, depth: int) -> str:
        return LETTERS.decode(make_trial(make_haystack([words * 90], LETTERS), LETTERS, 5000, depth, 0).straws[1])

    assert lies(f"{'a' * 50}. {'b' * 50}. ", 50).lstrip()[:2] in ("aa", "bb")
    assert lies(f"{'a' * 2000}. ", 20)[:9] == "a" * 9


def test_what_ends_a_sentence():
    assert sentences(PLAIN * 2) == [0, *(found.end() for found in re.finditer(r"[.?](?= )", PLAIN * 2))]
    assert [QUOTED[n:] for n in sentences(QUOTED + "x")[1:]] == [" She said (yes!) ", " "]
    assert [JAPANESE[n:] for n in sentences(JAPANESE + "雨")[1:]] == ["「行こう！」彼は言った。", "彼は言った。", ""]
    mixed = PLAIN * 3 + QUOTED + PLAIN * 3  # a book most of whose sentences are plain is cut as ever
    assert [mixed[n - 1] for n in sentences(mixed)[1:]] == re.findall(r"[.?](?= )", mixed)


def test_each_book_is_cut_as_it_is_written():
    both = make_haystack([PLAIN, JAPANESE], LETTERS).borders
    assert both.tolist() == [*sentences(PLAIN + "x"), *(len(PLAIN) + n for n in sentences(JAPANESE)[1:])]


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("aé雨🙂. "), max_size=60), seed=st.integers(0, 9))
def test_chats_cut_no_character(text, seed):
    ids = np.array([*BYTES.encode(text), *"雨".encode()[:2]], np.int32)  # the end of a piece may cut one
    made = bury(ids, ["<1>", "<2>", "<3>"], BYTES, random.Random(seed))
    assert made.replace("<1>", "").replace("<2>", "").replace("<3>", "") == text


def test_whole_chats_of_a_book_of_long_characters():
    haystack = make_haystack(["東京 🙂🚀 naïve. " * 300], BYTES)
    chats = list(make_chats(haystack, BYTES, Form(length=1500, needles=4, asked=2), 20))
    assert "\ufffd" not in json.dumps(chats, ensure_ascii=False)
