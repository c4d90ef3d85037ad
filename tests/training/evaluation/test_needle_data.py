"""Chats about needles: nothing is asked that is not hidden, no chat is too long, no number is met twice."""

import re

import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.training.evaluation.needle import CITIES, HEAD, ONE, Coder, make_haystack
from worldloom.training.evaluation.needle_data import Form, make_chats, make_words

PLACED = re.compile(r"\nThe special magic ([A-Z][\w ]+) number is: (\d{7})\n")
ASKED = re.compile(r"What is the special magic (?:number for )?([A-Z][\w ]+?)(?: number)?\?")
BOOK = "It was far to the inn. Was it? So he said, and slept. " * 100
LETTERS = Coder(lambda text: [ord(c) for c in text], lambda ids: "".join(map(chr, ids)), bos=0)


def rendered(chat) -> str:
    first, *others = (f"USER: {question} ASSISTANT:{answer}$" for question, answer in chat)
    return f"^{HEAD.removesuffix('USER:')}{first}{''.join(others)}"


def test_each_question_is_answered_by_what_was_hidden_in_one_piece_of_the_book():
    haystack = make_haystack([BOOK], LETTERS)
    for chat in make_chats(haystack, LETTERS, Form(length=1500, needles=4, asked=6), count=40):
        text, last = re.fullmatch(r"(.*)(What is .*)", chat[0][0], re.DOTALL).groups()
        hidden = dict(PLACED.findall(text))
        assert 1 <= len(hidden) <= 4 and set(hidden) <= set(CITIES)
        assert PLACED.sub("", text).removesuffix(" ") in BOOK
        for question, answer in [(last, chat[0][1]), *chat[1:]]:
            assert hidden[ASKED.match(question)[1]] == answer
        assert len(rendered(chat)) <= 1500 - 4


def test_a_seed_names_the_chats_and_numbers_do_not_come_twice():
    haystack, form = make_haystack([BOOK], LETTERS), Form(length=800, needles=2, asked=2)
    one, again, other = (list(make_chats(haystack, LETTERS, form, 20, seed)) for seed in (0, 0, 1))
    assert one == again
    numbers = [dict(PLACED.findall(chat[0][0])).values() for chat in one + other]
    flat = [number for found in numbers for number in found]
    assert len(set(flat)) == len(flat)


def test_needles_lie_everywhere():
    haystack = make_haystack([BOOK], LETTERS)
    chats = make_chats(haystack, LETTERS, Form(length=1000, needles=1, asked=1), 200)
    depths = [chat[0][0].index("\nThe special") / len(chat[0][0]) for chat in chats]
    assert np.histogram(depths, bins=4, range=(0, 0.8))[0].min() > 25


def test_words_hold_the_question_of_the_test():
    (line,) = make_words(1)
    ((city, _),) = PLACED.findall(line)
    assert ONE.format(city) in line and line.startswith(HEAD)


def test_what_has_no_room_is_refused():
    haystack = make_haystack([BOOK], LETTERS)
    with pytest.raises(UserError, match="100 tokens have no room for 1 needles and a question"):
        list(make_chats(haystack, LETTERS, Form(100, 1, 1), 1))
    with pytest.raises(UserError, match="70 needles cannot be hidden: give 1 to 69"):
        list(make_chats(haystack, LETTERS, Form(100, 70, 1), 1))
