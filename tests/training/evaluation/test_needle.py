"""Needles: exact lengths and depths, nothing lost, nothing twice."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.training.evaluation.needle import CITIES, HEAD, Coder, make_haystack, make_trial


class Words:
    """A tokenizer that can be seen through: every word, sign and line end is an id, in order of appearance."""

    def __init__(self) -> None:
        self.words = ["<s>"]

    def encode(self, text: str) -> list[int]:
        found = re.findall(r" ?\w+| ?[^\w\s]|\s", text)
        assert "".join(found) == text
        self.words += [word for word in dict.fromkeys(found) if word not in self.words]
        return [self.words.index(word) for word in found]

    def decode(self, ids) -> str:
        return "".join(self.words[i] for i in ids)


WORDS = Words()
CODER = Coder(WORDS.encode, WORDS.decode, bos=0)
BOOK = " ".join(
    f"Chapter {n}. It was 3.{n} miles to the inn; {'very ' * (n % 7)}far! Was it? No, said Mr. {n}. And so on."
    for n in range(60)
)
HAYSTACK = make_haystack([BOOK], CODER)
PLACED = re.compile(r"\nThe special magic ([A-Z][\w ]+) number is: (\d{7})\n")


def sentence_starts(tokens) -> list[int]:
    words = [WORDS.words[i] for i in tokens]
    return [0] + [i + 1 for i in range(len(words) - 1) if words[i][-1] in ".!?" and words[i + 1][0].isspace()]


def test_sentences_begin_after_a_stop_and_a_space():
    assert HAYSTACK.borders.tolist() == sentence_starts(HAYSTACK.tokens)
    assert WORDS.decode(HAYSTACK.tokens) == BOOK
    starts = {WORDS.decode(HAYSTACK.tokens[b : b + 1]) for b in HAYSTACK.borders.tolist()}
    assert {" It", " Was", " No", " And", " Chapter"} <= starts and "3" not in starts


def test_books_follow_one_another():
    both = make_haystack(["One. Two.", "Three. Four."], CODER)
    assert WORDS.decode(both.tokens) == "One. Two.Three. Four."


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(160, 900),
    depth=st.integers(0, 100),
    number=st.integers(0, 5),
    seed=st.integers(0, 3),
    needles=st.integers(1, 4),
    data=st.data(),
)
def test_a_trial_is_what_it_says(length, depth, number, seed, needles, data):
    asked, room = data.draw(st.integers(1, needles)), data.draw(st.integers(1, 20))
    trial = make_trial(HAYSTACK, CODER, length, depth, number, seed, needles, asked, room)
    assert len(trial.prompt) + room == length
    assert trial.prompt[0] == 0 and trial.prompt.dtype == np.int32

    text = WORDS.decode(trial.prompt[1:])
    assert text.startswith(HEAD) and text.endswith(trial.question) and trial.question.endswith(" ASSISTANT:")
    inside = text.removeprefix(HEAD).removesuffix(trial.question)
    hidden = dict(PLACED.findall(inside))
    assert len(hidden) == needles == len(set(hidden.values())) and set(hidden) <= set(CITIES)
    straw = PLACED.sub("", inside)
    assert straw in BOOK and straw == WORDS.decode(np.concatenate(trial.straws))
    assert tuple(PLACED.findall(needle)[0][0] for needle in trial.needles) == tuple(hidden)

    named = sorted((city for city in hidden if city in trial.question), key=trial.question.index)
    assert len(named) == asked
    assert trial.expected == tuple(hidden[city] for city in named)
    assert trial.answer == ", ".join(trial.expected)

    ids = np.concatenate(trial.straws)
    starts = sentence_starts([*ids])
    before = np.cumsum([len(straw) for straw in trial.straws])[:-1].tolist()
    target = len(ids) if depth == 100 else max(s for s in starts if s <= len(ids) * depth // 100)
    assert len(set(before)) == needles
    assert set(before) <= {*starts, target}
    at = dict(zip(hidden, before, strict=True))
    assert target in [at[city] for city in named]


def test_a_trial_depends_on_its_arguments_alone():
    def one(**changed):
        return make_trial(
            HAYSTACK, CODER, **{"length": 300, "depth": 50, "number": 0, "seed": 0, "needles": 3} | changed
        )

    first = one()
    assert np.array_equal(first.prompt, one().prompt)
    for changed in ({"length": 301}, {"depth": 51}, {"number": 1}, {"seed": 1}, {"needles": 2}, {"asked": 2}):
        assert not np.array_equal(first.prompt, one(**changed).prompt)


def test_the_words_are_those_of_lwm():
    single = make_trial(HAYSTACK, CODER, 200, 40, 0)
    ((city, digits),) = PLACED.findall(single.needles[0])
    assert single.text(WORDS.decode) == (
        f"{WORDS.decode(single.straws[0])}\nThe special magic {city} number is: {digits}\n"
        f"{WORDS.decode(single.straws[1])} What is the special magic {city} number? Don't give information outside "
        "the document or repeat your findings. Keep your response short and direct."
    )
    three = make_trial(HAYSTACK, CODER, 300, 40, 0, needles=3, asked=3).question
    assert re.fullmatch(
        r"What are the special magic numbers for [A-Z][\w ]+, [A-Z][\w ]+, and [A-Z][\w ]+\? "
        r"Don't give information outside the document\. ASSISTANT:",
        three,
    )
    one_of_three = make_trial(HAYSTACK, CODER, 300, 40, 0, needles=3).question
    assert one_of_three.startswith("What is the special magic number for ")


def test_the_middle_of_a_haystack_is_used_too():
    starts = {make_trial(HAYSTACK, CODER, 200, 50, n).straws[0][:9].tobytes() for n in range(12)}
    assert len(starts) > 8


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="a length of 5000 tokens needs a haystack of"):
        make_trial(HAYSTACK, CODER, 5000, 50, 0)
    with pytest.raises(UserError, match="has no room for question, needles and reply: add"):
        make_trial(HAYSTACK, CODER, 40, 50, 0)
    with pytest.raises(UserError, match="hide fewer, or give a greater length"):
        make_trial(make_haystack(["word " * 999], CODER), CODER, 300, 0, 0, needles=2)
    with pytest.raises(UserError, match="2 needles, 3 of them asked for"):
        make_trial(HAYSTACK, CODER, 300, 50, 0, needles=2, asked=3)
    with pytest.raises(UserError, match="0 to 100"):
        make_trial(HAYSTACK, CODER, 300, 101, 0)
    with pytest.raises(UserError, match="no text"):
        make_haystack([], CODER)


def test_llamas_own_tokenizer(llama_model, real_data):
    from worldloom.tokenizers.text import load

    model = load(str(llama_model))
    coder = Coder(model.encode, model.decode, model.bos)
    haystack = make_haystack([(real_data / "books" / "alice.txt").read_text()], coder)
    trial = make_trial(haystack, coder, 2048, 75, 0, needles=2, asked=2)
    text = model.decode(trial.prompt)
    assert len(trial.prompt) == 2048 - 32 and text.startswith("You are a helpful assistant. USER:")
    assert all(text.count(digits) == 1 for digits in trial.expected)
    assert [len(straw) > 0 for straw in trial.straws].count(True) >= 2
    whole = model.encode(text).tolist()  # as training encodes a chat: nearly the same ids
    assert len(trial.prompt) - 1 - 8 <= len(whole) <= len(trial.prompt) - 1
    for needle in trial.needles:
        ids = model.encode("." + needle).tolist()[1:]
        for longer in (whole, trial.prompt.tolist()):
            assert sum(longer[n : n + len(ids)] == ids for n in range(len(longer))) == 1
    for straw in trial.straws[:-1]:
        assert re.search(r"[.!?][\"')\]_]*$", model.decode(straw)) or not len(straw)
