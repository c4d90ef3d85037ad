"""Project Gutenberg's header and footer, on real books and on texts without marks."""

import signal
from pathlib import Path

import pytest
from worldloom.pipelines.gutenberg import strip

START = "*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***"
END = "*** END OF THE PROJECT GUTENBERG EBOOK EMMA ***"
OPENINGS = {
    "alice.txt": "Alice",
    "moby-dick.txt": "MOBY",
    "pride-and-prejudice.txt": "",
    "war-and-peace.txt": "WAR AND PEACE",
    "king-james-bible.txt": "",
}


@pytest.mark.parametrize("name", OPENINGS)
def test_a_real_book_loses_only_what_is_around_its_marks(real_data: Path, name: str) -> None:
    text = (real_data / "books" / name).read_bytes().decode("utf-8-sig")
    lines = text.splitlines(keepends=True)
    about = [i for i, line in enumerate(lines) if "Project Gutenberg" in line.title()]
    marks = [i for i in about if lines[i].startswith(("***", "End of"))]
    got = strip(text)
    if not marks:
        assert got == text
        return
    first = next(i for i in marks if "START OF" in lines[i])
    last = next(i for i in marks if "END OF" in lines[i].upper())
    body = "".join(lines[first + 1 : last])
    assert got == body.strip("\r\n") + "\n"
    assert OPENINGS[name].upper() in got[:2000].upper()
    assert "START OF TH" not in got[:5000] and "Gutenberg Literary Archive" not in got


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("head", "tail"),
    [
        ([START], [END]),
        (["The Project Gutenberg eBook of Emma", "", START], [END, "", "licence " * 2000]),
        (["***START OF THIS PROJECT GUTENBERG EBOOK EMMA***"], ["***END OF THIS PROJECT GUTENBERG EBOOK EMMA***"]),
        (["*** START OF THE PROJECT GUTENBERG EBOOK EMMA,", "OR SO ***"], ["End of Project Gutenberg's Emma", END]),
        ([START.lower()], ["  End of the Project Gutenberg EBook of Emma, by Jane Austen"]),
        ([START], ["End of Project Gutenberg\u2019s Emma"]),
        ([START], []),
        ([], [END]),
    ],
)
def test_marks_of_all_years_are_known(head: list[str], tail: list[str], newline: str) -> None:
    body = ["  CHAPTER I", "", "Emma Woodhouse, handsome, clever, and rich ***", "", "THE END"]
    text = newline.join([*head, "", *body, "", *tail, ""])
    assert strip(text) == newline.join(body) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "no marks\n\n",
        "a *** START OF THE PROJECT GUTENBERG EBOOK x *** b",
        "x" * 40_000 + "\n" + START + "\nfar from the head" + "y" * 40_000,
        START + "\n" + END + "\n" + "far from the foot\n" * 4000,
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    expected = text.removeprefix(START).strip("\n") + "\n" if text.startswith(START) else text
    assert strip(text) == expected


def test_a_book_of_nothing_but_marks_is_empty() -> None:
    assert strip(f"head\n{START}\n\n\n{END}\nfoot\n") == strip(f"{START}\r\n \r\n{END}") == ""


@pytest.mark.parametrize("text", ["\n" * 70_000, " \n" * 40_000, "***" * 20_000, f"{START[:-4]}\n" * 1000])
def test_no_text_makes_the_search_slow(text: str) -> None:
    """Blank lines once took half a minute. The guard is a thousand times what is needed, in time of this process."""
    signal.signal(signal.SIGVTALRM, lambda *_: pytest.fail("the search takes time that grows with the square"))
    signal.setitimer(signal.ITIMER_VIRTUAL, 5)
    try:
        assert strip(text) == text
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
