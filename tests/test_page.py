"""The page says what the rows hold, harms nobody, and is read on a phone, in the dark and by keyboard."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.drawing import png
from worldloom.packing.example import Span
from worldloom.packing.render import elided, visible
from worldloom.packing.turns import talk
from worldloom.page import page
from worldloom.page_content import CELLS, HEIGHT, LINES, TEXT
from worldloom.page_style import STYLE
from worldloom.tokenizers.vocabulary import Vocabulary

VISION = Vocabulary(text_size=300, bos=1, eos=2, text_digest="t", codes=64, vision_digest="v")
EOF, EOV = VISION.eof, VISION.eov
TAGS = """html head meta title link style body a header h1 h2 h3 h4 svg rect dl dt dd section p mark span bdi nav
details summary ol ul li main article div figure img figcaption br table thead tbody tr th td"""
VOID = {"meta", "link", "img", "br"}
HOSTILE = (
    '" onload="alert(0)'
    "</title></style><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"
    "\"'&amp;&#60; \x00\x1b[2J\u202egnp\u2066\ud800\ufeff javascript:alert(3) --><!--" + "W" * 3000
)


def run(start: int, tokens: list[int], trained: bool, text: str = "words") -> dict[str, Any]:
    vision = tokens[0] >= 300
    return {
        "start": start,
        "end": start + len(tokens),
        "trained": trained,
        "modality": "vision" if vision else "text",
        "weight": 0.25 if trained else 0.0,
        "tokens": tokens,
        "text": "⟨frame⟩" if vision else text,
    }


def segment(number: int, runs: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    low, high = runs[0]["start"], runs[-1]["end"]
    counts = {
        f"trained_{name}": sum(len(r["tokens"]) for r in runs if r["trained"] and r["modality"] == name)
        for name in ("text", "vision")
    }
    facts = {"length": high - low, "task": "text-to-video", "source": "toy", "record": f"r{number}", "start": 0}
    spans = changes.get("spans", [])
    flags = np.repeat([r["trained"] for r in runs], [len(r["tokens"]) for r in runs])
    told = talk([Span(**span) for span in spans], flags, low)._asdict()
    changes = {name: list(map(asdict, items)) for name, items in told.items()} | changes
    shown = {"spans": [], "place": [low, high], "positions": [0, high - low - 1], "weights": {"text": 0.5, "vision": 2}}
    return {"segment": number, **facts, **counts, **shown, "runs": runs, **changes}


def row(segments: list[dict[str, Any]], number: int = 3, padding: int = 7) -> dict[str, Any]:
    length = segments[-1]["place"][1] + padding
    where = {"row": number, "shard": "shards/u.arrow", "row_in_shard": 1, "length": length, "padding": padding}
    return {**where, "rule": "lwm", "segments": segments}


def frame(start: int, ending: int = EOF, trained: bool = True) -> dict[str, Any]:
    return run(start, [301, 302, 303, 304, ending], trained)


def example(text: str = "words", **changes: Any) -> dict[str, Any]:
    """A row of two segments: a video of three frames with its caption, and an untrained image."""
    ref = json.dumps({"start": 1.5, "rate": 4, "frames": 3, "of": 52, "sampling": "window"})
    spans = [{"start": 3, "end": 18, "kind": "video", "ref": ref}]
    video = [run(0, [1], False, ""), run(1, [5, 6], True, text), frame(3), frame(8), frame(13, EOV), run(18, [2], True)]
    image = [run(19, [1], False, text), frame(20, EOV, trained=False), run(25, [9], True, "")]
    return row([segment(1, video, spans=spans, **changes), segment(2, image, task="image", **changes)])


def square(value: int) -> bytes:
    return png(np.full((16, 16, 3), value, np.uint8), 16)


DRAWN = {(3, 3): square(10), (3, 8): square(20), (3, 13): square(30), (3, 20): "the reason"}


class Node:
    def __init__(self, tag: str, attributes: dict[str, str]):
        self.tag, self.attributes, self.parts = tag, attributes, []

    def all(self, tag: str = "") -> list["Node"]:
        inner = [n for part in self.parts if isinstance(part, Node) for n in (part, *part.all())]
        return [n for n in inner if tag in ("", n.tag)]

    def one(self, tag: str) -> "Node":
        (node,) = self.all(tag)
        return node

    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text() for part in self.parts)


class Tree(HTMLParser):
    """Read a document and insist that every element is closed where it should be."""

    def __init__(self, text: str):
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def tree(text: str) -> Node:
    return Tree(text).root


def made(rows: list[dict[str, Any]] | None = None, pictures: Any = DRAWN, full: bool = False, **facts: str) -> str:
    return page("Row 3 of toy", {"data set": "toy", **facts}, rows or [example()], VISION, pictures, full)


def check_structure(text: str) -> Node:
    """Insist on what every page must be, whatever it holds."""
    text.encode()
    document = tree(text)
    html, nodes = document.one("html"), document.all()
    assert html.attributes["lang"] == "en" and document.one("title").text().strip()
    assert {n.tag for n in nodes} <= set(TAGS.split())
    for node in nodes:
        assert not [name for name in node.attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            assert node.attributes.get(name, "#").startswith(("#", "data:image/png;base64,", "data:,"))
    ids = [n.attributes["id"] for n in nodes if "id" in n.attributes]
    assert len(ids) == len(set(ids))
    for node in nodes:
        if node.tag == "a":
            assert node.attributes["href"][1:] in ids and node.text().strip()
        assert set(node.attributes.get("aria-labelledby", ids[0]).split()) <= set(ids)
    assert all(n.attributes["alt"].strip() for n in document.all("img"))
    for node in document.all("svg"):
        named = node.attributes.get("role") == "img" and node.attributes["aria-label"].strip()
        assert named or node.attributes["aria-hidden"] == "true"
    assert all(n.parts[0].tag == "summary" for n in document.all("details"))
    levels = [int(n.tag[1]) for n in nodes if re.fullmatch("h[1-6]", n.tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    document.one("main"), document.one("nav"), document.one("header")
    metas = {n.attributes.get("name", n.attributes.get("http-equiv", "")): n.attributes for n in document.all("meta")}
    assert "width=device-width" in metas["viewport"]["content"]
    digest = base64.b64encode(hashlib.sha256(document.one("style").text().encode()).digest()).decode()
    policy = metas["Content-Security-Policy"]["content"].split("; ")
    assert "default-src 'none'" in policy and f"style-src 'sha256-{digest}'" in policy
    assert not [part for part in policy if "unsafe" in part or "*" in part or "http" in part]
    return document


def test_the_page_is_well_formed_and_needs_nothing_else():
    document = check_structure(made())
    first = document.one("body").all("a")[0]
    assert first.attributes == {"class": "skip", "href": "#rows"} and document.one("main").attributes["id"] == "rows"
    assert "http:" not in made() and "https:" not in made() and "url(" not in STYLE and "@import" not in STYLE
    check_structure(made([example(), {**example(), "row": 4}]))


def test_everything_that_a_segment_is_stands_there():
    first, second = check_structure(made()).all("article")
    text = first.text()
    for words in (
        "Segment 1: text-to-video",
        "recordr1",
        "0 to 18: 19",
        "0 to 18",
        "3 trained text tokens of weight 0.5, 15 trained vision tokens of weight 2",
        "Video of 3 frames, 00:01.50 to 00:02.00, of 52 in the video.",
        "⟨no text: id 1⟩",
        '"sampling": "window"',
        "vision, trained, weight 0.25301 302 303 304 319",
    ):
        assert words.replace("319", str(EOF)) in text, words
    assert [m.text() for m in first.all("mark")] == ["trained: words", "trained: words"]
    assert [n.text() for n in first.all("span") if n.attributes.get("class") == "off"] == ["⟨no text: id 1⟩"]
    captions = [n.text() for n in first.all("figcaption")]
    assert captions == [f"Frame {i} of 3{t}, trained" for i, t in ((1, "00:01.50"), (2, "00:01.75"), (3, "00:02.00"))]
    assert [n.attributes.get("class") for n in first.all("figure")] == ["on"] * 3
    alts = [n.attributes["alt"] for n in first.all("img")]
    assert alts[1] == "Frame 2 of 3 at 00:01.75, decoded from the tokens of r1"
    (figure,) = second.all("figure")
    assert figure.text() == "No picture: the reasonImagenot trained" and "class" not in figure.attributes


def test_segments_lead_to_one_another():
    first, second = check_structure(made()).all("article")
    hrefs = [[n.attributes["href"] for n in s.all("a")] for s in (first, second)]
    assert hrefs == [["#top", "#row-3-segment-2"], ["#top", "#row-3-segment-1"]]
    contents = check_structure(made()).one("nav").all("a")
    assert [n.attributes["href"] for n in contents] == ["#row-3-segment-1", "#row-3-segment-2"]


def test_pictures_are_the_bytes_given():
    sources = [n.attributes for n in check_structure(made()).all("img")]
    assert [base64.b64decode(s["src"].partition(",")[2]) for s in sources] == [DRAWN[3, p] for p in (3, 8, 13)]
    assert {(s["width"], s["height"]) for s in sources} == {("16", "16")}


def test_frames_that_are_not_shown_are_counted():
    text = check_structure(made(pictures={(3, 3): square(1), (3, 13): square(2)})).one("main").text()
    assert "of 52 in the video: 2 shown, 1 not shown; --full shows all." in text
    assert "Image: not shown; --full shows all." in text
    partly = [run(0, [1], False), run(1, [301, 302], False), run(3, [303, 304, EOV], True), run(6, [301], True)]
    text = check_structure(made([row([segment(1, partly)])], {(3, 1): square(1), (3, 6): "1 code"})).one("main").text()
    assert "3 of 5 tokens trained" in text and "trained, no ending" in text


def test_long_texts_and_tables_lose_their_middle_unless_asked_for():
    long = "a" * (TEXT + 1000) + "z"
    runs = [
        run(0, [1], False),
        *(run(1 + i, [5 + i % 2], i % 2 == 0, long if i == 0 else "b") for i in range(LINES * 3)),
    ]
    short, full = made([row([segment(1, runs)])]), made([row([segment(1, runs)])], full=True)
    assert "⟨… 1,001 characters …⟩" in short and f"⟨… {LINES * 2 + 1:,} lines …⟩" in short and long not in short
    assert long in full and "⟨…" not in full.partition("<main")[2]
    assert len(check_structure(full).all("tr")) == LINES * 3 + 2 and len(check_structure(short).all("tr")) == LINES + 2


def hostile_page(text: str) -> str:
    """Put a text wherever a row can hold one."""
    changes = {"source": text, "record": text}
    made_of = example(text, **changes)
    made_of["shard"] = text
    for s in made_of["segments"]:
        s["task"] = text
        s["spans"] = [*s["spans"], {"start": 0, "end": 1, "kind": text, "ref": text}]
    said = {**chat(text), "row": 4}
    return page(text, {"fact": text}, [made_of, said], VISION, {**DRAWN, (3, 20): text, (4, 17): square(9)}, full=True)


def span(start: int, end: int, kind: str, /, **ref: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "kind": kind, "ref": json.dumps(ref) if ref else ""}


def chat(text: str = "words") -> dict[str, Any]:
    """A row of one segment: a book of three chunks, a question about one, a picture, and a rest."""
    spans = [
        span(0, 14, "user", chunk=8),
        span(1, 10, "book", record=text),
        *(span(1 + 3 * i, 4 + 3 * i, "chunk", chunk=7 + i, start=21 + 3 * i, end=24 + 3 * i) for i in range(3)),
        span(14, 16, "assistant", chunk=8, model=text),
        span(16, 23, "user", chunk=99),
        span(17, 22, "image"),
        span(23, 25, "assistant", chunk=9, model=text),
    ]
    runs = [
        run(0, [1], False, "HEAD"),
        *(run(1 + 3 * i, [5, 6, 7], False, f"CHUNK{7 + i}{text}") for i in range(3)),
        run(10, [5, 6, 7, 8], False, "FIRST QUESTION"),
        run(14, [9, 2], True, "FIRST ANSWER"),
        run(16, [5], False, "SECOND QUESTION"),
        frame(17, EOV, trained=False),
        run(22, [6], False, "ASSISTANT:"),
        run(23, [9, 2], True, "SECOND ANSWER"),
        run(25, [3], False, "THE REST"),
    ]
    return row([segment(1, runs, spans=spans, task="book-qa")])


def test_a_chat_is_read_turn_by_turn():
    document = check_structure(made([chat()], {(3, 17): square(9)}))
    turns = [n for n in document.all("section") if n.attributes["class"].startswith("turn")]
    assert [n.one("h4").text() for n in turns] == [
        "user turn 1",
        "assistant turn 2",
        "user turn 3",
        "assistant turn 4",
        "no turn",
    ]
    ids = {n.attributes["id"]: n for n in document.all() if "id" in n.attributes}
    for turn in turns[:4]:
        assert ids[turn.attributes["aria-labelledby"]].text() == turn.one("h4").text()
    assert ["learnt" in n.attributes["class"] for n in turns] == [False, True, False, True, False]
    told = [n.text().strip() for n in document.all("div") if n.attributes.get("class") == "told"]
    assert told == [
        "tokens 0 to 13, not trainedabout chunk 8, tokens 4 to 6, 33% into the context",
        "tokens 14 to 15, trained, by words",
        "tokens 16 to 22, not trainedabout chunk 99, whose place no span tells",
        "tokens 23 to 24, trained, by wordsabout chunk 9, tokens 7 to 9, 67% into the context",
    ]
    assert [len(turn.all("img")) for turn in turns] == [0, 0, 1, 0, 0]
    assert "<vision>" not in turns[0].text() and "FIRST QUESTION" in turns[0].text() and "THE REST" in turns[4].text()
    facts = document.one("article").one("dl").text()
    for words in ("2 user, 2 assistant by words; 15.38%", "3 chunks of words, tokens 1 to 9", "2 about 2 chunks; 1 of"):
        assert words in facts


def test_a_question_leads_to_its_chunk_and_back():
    document = check_structure(made([chat()]))
    chunks = {n.attributes["id"]: n for n in document.all("details") if n.attributes.get("class") == "chunk"}
    assert [n.one("summary").text() for n in chunks.values()] == [
        f"chunk {7 + i} tokens {1 + 3 * i} to {3 + 3 * i}, {into}% into the context,"
        f" tokens {21 + 3 * i} to {23 + 3 * i} of the book"
        for i, into in enumerate((0, 33, 67))
    ]
    ids = {n.attributes["id"]: n for n in document.all() if "id" in n.attributes}
    (question, *rest) = [n for n in document.all("section") if n.attributes["class"] == "turn"]
    (link,) = [n for n in question.all("a") if n.text().startswith("about chunk")]
    chunk = ids[link.attributes["href"][1:]]
    assert chunk in chunks.values() and "CHUNK8words" in chunk.text() and "CHUNK7" not in chunk.text()
    assert ids[chunk.one("a").attributes["href"][1:]] is question and not rest[0].all("a")
    assert chunk.one("a").text() == "asked about in turn 1"


def test_the_picture_shows_where_the_chunks_lie():
    chunks, asked = 50, [3, 30, 30, 31, 49]
    spans = [span(0, 101, "user", chunk=asked[0]), span(1, 101, "book")]
    spans += [span(1 + 2 * i, 3 + 2 * i, "chunk", chunk=i) for i in range(chunks)]
    runs = [run(0, [1], False), *(run(1 + 2 * i, [5, 6], False) for i in range(chunks))]
    for i in asked[1:]:
        low = runs[-1]["end"]
        runs.append(run(low, [7], False))
        spans.append(span(low, low + 1, "user", chunk=i))
    document = check_structure(made([row([segment(1, runs, spans=spans)])]))
    (whole, *marks) = document.all("svg")
    bars = [n.attributes for n in whole.all("rect") if "class" not in n.attributes]
    expected = {2 * i: HEIGHT // 2 * asked.count(i) for i in asked}
    assert 2 * chunks == CELLS and {int(b["x"]): int(b["height"]) for b in bars} == expected
    assert (
        all(int(b["y"]) + int(b["height"]) == HEIGHT for b in bars) and "5 questions" in whole.attributes["aria-label"]
    )
    places = [n.all("rect")[1].attributes for n in marks]
    assert [(float(p["x"]), float(p["width"])) for p in places] == [(2.0 * i, 2.0) for i in asked]
    hidden = [n.text().strip() for n in document.all("p") if "tokens …⟩" in n.text()]
    assert hidden == ["⟨… 4 tokens …⟩", "⟨… 52 tokens …⟩", "⟨… 34 tokens …⟩"]


def test_a_chunk_that_is_not_shown_has_no_link_and_one_in_parts_one_name():
    spans = [span(0, 9, "user", chunk=7), span(1, 4, "chunk", chunk=7), span(9, 20, "user", chunk=8)]
    spans += [span(9, 19, "book"), span(10, 19, "chunk", chunk=8)]
    runs = [run(0, [1], False), run(1, [5, 6, 7], False), run(4, [5] * 5, False), run(9, [5], False)]
    runs += [run(10, [5], False), run(11, [5], True), frame(12, EOV), run(17, [5, 5], False), run(19, [5], False)]
    document = check_structure(made([row([segment(1, runs, spans=spans)])]))
    links = [n.text() for n in document.all("a") if n.text().startswith("about")]
    assert links == ["about chunk 8, tokens 10 to 18, 10% into the context"]
    assert "about chunk 7, tokens 1 to 3, not all of it in a context before the answer" in document.text()
    assert len([n for n in document.all("details") if n.attributes.get("class") == "chunk"]) == 1


def many_turns(count: int) -> tuple[dict[str, Any], dict[tuple[int, int], bytes]]:
    """A chat of so many turns, of which the one in the middle shows a picture."""
    runs, spans = [run(0, [1], False)], []
    for i in range(count):
        low = runs[-1]["end"]
        runs.append(frame(low, EOV) if i == count // 2 else run(low, [5], i % 2 == 1, f"SAID{i}."))
        spans.append(span(low, runs[-1]["end"], ("user", "assistant")[i % 2], chunk=i))
    return row([segment(1, runs, spans=spans)]), {(3, runs[count // 2 + 1]["start"]): square(7)}


def test_many_turns_lose_their_middle_but_not_its_pictures():
    made_of, pictures = many_turns(400)
    document = check_structure(made([made_of], pictures))
    said = re.findall(r"SAID(\d+)\.", document.one("main").text())
    assert list(map(int, said)) == [*range(LINES // 2 - 1), *range(400 - LINES // 2, 400)]
    assert len(document.all("img")) == 1 and len(document.all("h4")) == LINES + 1
    hidden = [n.text() for n in document.all("p") if "turns …⟩" in n.text()]
    assert hidden == ["⟨… 151 turns …⟩", "⟨… 149 turns …⟩"]
    assert len(check_structure(made([made_of], pictures, full=True)).all("h4")) == 401


KINDS = st.sampled_from(["user", "assistant", "book", "chunk", "chunk", HOSTILE])
TOLD = {"chunk": 8, "model": HOSTILE, "record": HOSTILE}
REFS = st.sampled_from(["", "[", '{"chunk": 8}', '{"chunk": 8, "model": "m"}', json.dumps(TOLD)])
SPANS = st.lists(
    st.builds(
        lambda start, size, kind, ref: {"start": start, "end": start + size, "kind": kind, "ref": ref},
        st.integers(-1, 24),
        st.integers(-1, 9),
        KINDS,
        REFS,
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(SPANS, st.booleans())
def test_any_spans_make_a_page(spans, full):
    """Runs of one token each, as `row_detail` cuts them at any span's edges."""
    runs = [run(i, [EOV if i % 9 == 4 else 5], i % 5 == 0, f"SAID{i}.") for i in range(26)]
    pictures = {(3, i): square(i) for i in range(26) if i % 9 == 4}
    document = check_structure(made([row([segment(1, runs, spans=spans)])], pictures, full))
    article = document.one("article")
    said = list(map(int, re.findall(r"SAID(\d+)\.", article.text())))
    assert said == sorted(set(said)) and (said == [i for i in range(26) if i % 9 != 4] or not full)
    assert len(article.all("img")) == 3
    for n in article.all("section"):
        turn = n.one("h4").text()
        assert turn.startswith(("user turn", "assistant turn", "no turn"))


def test_hostile_text_is_text():
    document = check_structure(hostile_page(HOSTILE))
    shown = visible(HOSTILE)
    assert "\\x00\\x1b[2J\\u202egnp\\u2066\\ud800\\ufeff" in shown
    assert document.one("title").text() == shown
    assert document.one("main").text().count(shown) == 2 * 6 + 2 + 3
    alts = [n.attributes["alt"] for n in document.all("img")]
    assert len(alts) == 4 and all(alt.endswith(f"tokens of {visible(elided(HOSTILE, 100))}") for alt in alts[:3])
    assert len(document.all()) == len(check_structure(hostile_page("words")).all())


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=30))
def test_any_text_comes_back_as_it_was(text):
    document = check_structure(hostile_page(text))
    assert document.one("h1").text() == visible(text)
    runs = [n.one("bdi").text() for n in document.one("main").all("span") if n.attributes.get("class") == "off"]
    assert runs[1] == visible(text, newlines=True)
    assert len(document.all()) == len(check_structure(hostile_page("words")).all())


def palettes() -> list[dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in blocks]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of the relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_words_stand_out_in_light_and_dark():
    light, dark = palettes()
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colours in (light, {**light, **dark}):
        pairs = [("on", "on-ground"), *product(("ink", "quiet", "link"), ("ground", "card"))]
        assert min(contrast(colours[a], colours[b]) for a, b in pairs) >= 4.5
        assert min(contrast(colours[a], colours["card"]) for a in ("on-line", "off-line")) >= 3


# In a real browser.

PROBE = """<!doctype html><meta charset="utf-8"><iframe id="f" width="%d" height="800"></iframe><pre id="out"></pre>
<script>
const frame = document.getElementById("f");
frame.srcdoc = new TextDecoder().decode(Uint8Array.from(atob("%s"), c => c.charCodeAt(0)));
frame.onload = () => {
  const d = frame.contentDocument, w = frame.contentWindow, found = {};
  d.querySelectorAll("details").forEach(x => x.open = true);
  const shade = c => { const p = c.match(/[0-9.]+/g).map(Number);
    return {a: p.length > 3 ? p[3] : 1, l: [0.2126, 0.7152, 0.0722].reduce((sum, k, i) => {
      const v = p[i] / 255; return sum + k * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0)}; };
  const ground = e => { while (e) { const s = shade(w.getComputedStyle(e).backgroundColor); if (s.a) return s.l;
    e = e.parentElement; } return 1; };
  found.width = d.documentElement.clientWidth; found.scroll = d.documentElement.scrollWidth;
  const all = [...d.body.querySelectorAll("*")];
  const sticks = e => !e.closest(".skip, .sr") && e.getBoundingClientRect().right > found.width + 1;
  found.wide = all.filter(sticks).map(e => e.tagName);
  const worded = all.filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
  found.contrast = Math.min(...worded.map(e => { const a = shade(w.getComputedStyle(e).color).l, b = ground(e);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }));
  found.ground = ground(d.body);
  found.drawn = [...d.images].map(i => i.complete && i.naturalWidth);
  frame.focus(); w.focus();
  const stops = [...d.querySelectorAll("a, summary")];
  found.outlined = stops.filter(e => { e.focus(); return w.getComputedStyle(e).outlineStyle == "solid"; }).length;
  found.stops = stops.length; found.small = stops.filter(e => e.getBoundingClientRect().height < 24).length;
  const skip = d.querySelector(".skip"), away = skip.getBoundingClientRect().bottom;
  skip.focus(); found.skip = [away, skip.getBoundingClientRect().top];
  document.getElementById("out").textContent = JSON.stringify(found);
};
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip(f"SKIPPED FOR LACK OF A BROWSER: none of {', '.join(names)} is installed")
    return found


def browse(browser: str, folder: Path, text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page without a window, and with no name of a host that could be looked up."""
    (folder / "page.html").write_text(text, "utf-8")
    still = ("--headless", "--disable-gpu", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND")
    root = ("--no-sandbox",) if os.getuid() == 0 else ()
    command = [browser, *still, *root, f"--user-data-dir={folder / 'profile'}", *flags, (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def probed(browser: str, folder: Path, text: str, width: int, *flags: str) -> dict[str, Any]:
    """Lay a page out in a frame of so many pixels and measure it there."""
    harness = PROBE % (width, base64.b64encode(text.encode()).decode())
    shown = browse(browser, folder, harness, "--dump-dom", *flags).stdout
    found: dict[str, Any] = json.loads(tree_text(shown, "pre"))
    return found


def tree_text(text: str, tag: str) -> str:
    (inner,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.S)
    return inner.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")


def asked_for(folder: Path) -> set[str]:
    """Name the hosts that a page made a browser try to reach, by its log; its maker's it asks for updates by itself."""
    hosts = set(re.findall(r'"url":"(?:https?|wss?)://([^/"]+)', (folder / "net.json").read_text()))
    return {host for host in hosts if not re.search(r"(^|\.)(google|googleapis|gstatic|gvt1)\.com$", host)}


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1200, False)])
def test_a_browser_lays_it_out_for_phones_and_keyboards(browser, tmp_path, width, dark):
    scheme = f"--blink-settings=preferredColorScheme={int(not dark)}"
    found = probed(browser, tmp_path, hostile_page(HOSTILE), width, scheme)
    assert width - 20 <= found["width"] <= width and found["scroll"] == found["width"] and found["wide"] == []
    assert found["contrast"] >= 4.5 and (found["ground"] < 0.1) == dark
    assert found["drawn"] == [16] * 4
    assert found["outlined"] == found["stops"] >= 8 and found["small"] == 0
    assert found["skip"][0] < 0 <= found["skip"][1]


def test_a_browser_has_nothing_to_complain_of_and_asks_nobody(browser, tmp_path):
    log = ("--enable-logging=stderr", f"--log-net-log={tmp_path / 'net.json'}", "--dump-dom")
    done = browse(browser, tmp_path, hostile_page(HOSTILE), *log)
    assert (complaints(done), asked_for(tmp_path)) == ([], set())
    assert "<script" not in done.stdout


def test_the_browser_would_have_noticed(browser, tmp_path):
    """Break the page: a stranger's picture and script, which its own policy still refuses; too wide, and too faint."""
    bad = '<img src="http://evil.example/x"><script>document.title="owned"</script></main>'
    log = ("--enable-logging=stderr", f"--log-net-log={tmp_path / 'net.json'}", "--dump-dom")
    done = browse(browser, tmp_path, made().replace("</main>", bad), *log)
    assert len(complaints(done)) >= 2 and asked_for(tmp_path) == set()
    assert "owned</title>" not in done.stdout
    lawless = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", made())
    done = browse(browser, tmp_path, lawless.replace("</main>", bad), *log)
    assert asked_for(tmp_path) == {"evil.example"} and "owned</title>" in done.stdout
    wide = lawless.replace("overflow-wrap: anywhere", "").replace("</main>", f"<b>{'W' * 300}</b></main>")
    found = probed(browser, tmp_path, wide.replace("--quiet: #5d5a54", "--quiet: #bbbbbb"), 360)
    assert found["scroll"] > found["width"] and found["wide"] == ["B"] and found["contrast"] < 4.5
