"""Words of many scripts, and the pairs that are worth nothing."""
# ruff: noqa: RUF001, letters of other alphabets

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldloom.pipelines.asking.scripts import kinds, words
from worldloom.pipelines.asking.worth import Earlier, check
from worldloom.pipelines.media import Unfit

CHUNK = "Captain Ahab nailed a Spanish ounce of gold to the mainmast. “Don’t stop,” he said; it cost sixteen dollars."


def verdict(question: str, answer: str, support: float = 0.6, chunk: str = CHUNK) -> str:
    try:
        check(question, answer, set(words(chunk)), support)
    except Unfit as unfit:
        assert unfit.status == "dropped"
        return unfit.reason
    return ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don’t STOP, don't: O'Neill's well-kept _ship_ (1984)!", "dont stop dont oneills well kept ship 1984"),
        ("Straße ﬁne U\u0308nder naïve \uff27\uff2f", "strasse fine ünder naïve go"),
        ("我们去了北京。", "我 们 去 了 北 京"),
        ("東京タワーへGO!", "東 京 タ ワ ー へ go"),
        ("हिन्दी भाषा।", "हिन्दी भाषा"),
        ("경복궁에 갔습니다.", "경복궁에 갔습니다"),
        ("…—!?", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == expected.split()


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_words_of_ascii(text: str) -> None:
    assert words(text) == re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))


@given(st.text())
def test_every_character_has_a_kind(text: str) -> None:
    assert len(kinds(text)) == len(text) and set(kinds(text)) <= set("wshkgtdx ")


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("What did Ahab nail to the mast?", "a Spanish ounce of gold", ""),
        ("What did it cost?", "SIXTEEN dollars!", ""),
        ("What did he say?", "don't stop", ""),
        ("What did it cost?", "twenty silver dollars", "answer not supported"),
        ("What did it cost?", "…", "answer not supported"),
        ("What did he nail?", "an ounce of yellow gold", ""),  # three of five words, which is enough
        ("Was it gold, or silver?", "gold", "answer in the question"),
        ("Was it golden?", "gold", ""),
        ("Is a Spanish ounce of gold nailed there?", "Spanish ounce of gold", "answer in the question"),
        ("?!", "gold", "not a question"),
    ],
)
def test_worth(question: str, answer: str, reason: str) -> None:
    assert verdict(question, answer) == reason


def test_the_share_that_must_be_supported() -> None:
    for hits in range(6):
        answer = " ".join(["gold"] * hits + ["tin"] * (5 - hits))
        for support in (0.0, 0.2, 0.5, 0.6, 1.0):
            expected = "" if hits / 5 >= support else "answer not supported"
            assert verdict("What was it?", answer, support) == expected


def test_scripts_without_spaces_go_by_characters() -> None:
    chunk = "我们昨天去了北京的故宫，天气非常好。"
    assert verdict("他们去了哪里？", "北京的故宫", chunk=chunk) == ""
    assert verdict("他们去了哪里？", "上海博物馆", chunk=chunk) == "answer not supported"
    assert verdict("北京的故宫在哪里？", "故宫", chunk=chunk) == "answer in the question"


def test_a_book_is_asked_each_question_once() -> None:
    earlier = Earlier()
    earlier.check("a", "a#0", "Who is Ahab?")
    earlier.check("b", "b#0", "Who is Ahab?")
    earlier.check("a", "a#1", "Who is Starbuck?")
    with pytest.raises(Unfit, match="duplicate question") as caught:
        earlier.check("a", "a#2", "  who is AHAB")
    assert "a#0" in caught.value.detail
