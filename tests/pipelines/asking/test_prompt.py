"""What is asked, and which replies are valid."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldloom.pipelines.asking.prompt import LONGEST, PROMPT, digest, first_messages, read_pair, repair_messages

GOOD = {"question": "Who?", "answer": "Ahab"}
TEXT = json.dumps(GOOD)


def test_the_passage_stands_in_its_place_as_it_is() -> None:
    passage = 'Braces {} and {question} and "quotes" \\ stay.'
    [message] = first_messages(PROMPT, passage)
    assert PROMPT.count("{}") == 1 and message["role"] == "user"
    assert message["content"] == PROMPT.split("{}")[0] + passage + PROMPT.split("{}")[1]
    assert first_messages("{}", "half \ud800 a character")[0]["content"] == "half ? a character"


def test_a_repair_shows_the_reply_and_its_flaw() -> None:
    messages = first_messages("Ask: {}", "x")
    again = repair_messages(messages, "y" * 10**6, "It is {not} JSON.")
    assert again[:1] == messages and [m["role"] for m in again] == ["user", "assistant", "user"]
    assert 0 < len(again[1]["content"]) < 10**4 and "It is {not} JSON." in again[2]["content"]


def test_the_digest_is_of_the_wording() -> None:
    assert len(digest(PROMPT)) == 32 and digest(PROMPT) == digest(PROMPT + "") != digest(PROMPT + " ")


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        f"\n {TEXT}\n",
        f"```json\n{TEXT}\n```",
        f"```\n{TEXT}```",
        f"<think>\nA {{}} whale?\n</think>\n\n```json\n{TEXT}\n```",
        '{"answer": " Ahab\\n", "question": "\\tWho? "}',
    ],
)
def test_valid_replies(content: str) -> None:
    assert read_pair(content) == ("Who?", "Ahab")


@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        (TEXT[:-2], "not JSON"),
        (f"Here you are: {TEXT}", "not JSON"),
        (f"{TEXT} {TEXT}", "not JSON"),
        ("<think> and think", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 10_000, "not JSON"),
        (json.dumps([GOOD]), "an object with the keys"),
        ("null", "an object with the keys"),
        (json.dumps({**GOOD, "why": "so"}), "an object with the keys"),
        ('{"question": "Who?"}', "an object with the keys"),
        (json.dumps({**GOOD, "answer": None}), '"answer" must be a text'),
        (json.dumps({**GOOD, "answer": ["Ahab"]}), '"answer" must be a text'),
        (json.dumps({**GOOD, "question": " \n"}), '"question" must be a text'),
        (json.dumps({**GOOD, "answer": "a" * 501}), "501 characters; 500"),
        (json.dumps({**GOOD, "answer": "a\x00b"}), "control characters"),
        ('{"question": "Who?", "answer": "\\ud800"}', "halves"),
    ],
)
def test_replies_that_are_not_valid(content: str, flaw: str) -> None:
    with pytest.raises(ValueError, match=flaw):
        read_pair(content)


@given(st.text() | st.dictionaries(st.sampled_from(["question", "answer", "x"]), st.text()).map(json.dumps))
def test_any_reply_is_read_or_refused(content: str) -> None:
    try:
        question, answer = read_pair(content)
    except ValueError as error:
        assert str(error)
        return
    found = json.loads(content)
    assert (question, answer) == tuple(" ".join(found[key].split()) for key in ("question", "answer"))
    assert 0 < len(question) <= LONGEST["question"] and 0 < len(answer) <= LONGEST["answer"]
