"""What is told of turns, books and chunks is what a walk over the tokens finds, whatever the spans are."""

import json
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.packing.example import Span
from worldloom.packing.turn_words import (
    about_words,
    into_words,
    names_anew,
    overview,
    spread_of,
    trained_words,
    untold,
)
from worldloom.packing.turns import Talk, begin, by_turn, facts, holder, talk

BOOK_QA = (
    Span(0, 30, "user", '{"chunk": 8}'),
    Span(2, 26, "book", '{"record": "moby.txt", "content": "ab"}'),
    Span(2, 12, "chunk", '{"chunk": 7, "start": 70, "end": 80}'),
    Span(12, 22, "chunk", '{"chunk": 8, "start": 80, "end": 90}'),
    Span(22, 26, "chunk", '{"chunk": 9, "start": 90, "end": 94}'),
    Span(30, 33, "assistant", '{"chunk": 8, "model": "cloze", "prompt": "p", "seed": 0}'),
    Span(33, 36, "user", '{"chunk": 12}'),
    Span(36, 40, "assistant", '{"chunk": 12, "model": "cloze"}'),
)
FLAGS = np.isin(np.arange(40), [30, 31, 32, 37])


def segment_of(told: Talk, spans: Any, length: int, low: int, trained: int = 0) -> dict[str, Any]:
    parts = {name: [asdict(item) for item in items] for name, items in told._asdict().items()}
    counts = {"length": length, "trained_text": trained, "trained_vision": 0, "place": [low, low + length]}
    return {**counts, "spans": [span._asdict() for span in spans], **parts}


def test_a_book_and_its_questions():
    told = talk(BOOK_QA, FLAGS, 100)
    assert [asdict(context) for context in told.contexts] == [{"record": "moby.txt", "place": (102, 126), "chunks": 3}]
    assert [(c.chunk, c.place, c.offsets, c.into, c.whole) for c in told.chunks] == [
        (7, (102, 112), (70, 80), 0.0, True),
        (8, (112, 122), (80, 90), 10 / 24, True),
        (9, (122, 126), (90, 94), 20 / 24, True),
    ]
    about = {"chunk": 8, "place": (112, 122), "offsets": (80, 90), "into": 10 / 24, "inside": True}
    nowhere = {"chunk": 12, "place": None, "offsets": None, "into": None, "inside": False}
    assert [asdict(turn) for turn in told.turns] == [
        {"turn": 1, "role": "user", "place": (100, 130), "trained": 0, "by": "", "about": about},
        {"turn": 2, "role": "assistant", "place": (130, 133), "trained": 3, "by": "cloze", "about": about},
        {"turn": 3, "role": "user", "place": (133, 136), "trained": 0, "by": "", "about": nowhere},
        {"turn": 4, "role": "assistant", "place": (136, 140), "trained": 1, "by": "cloze", "about": nowhere},
    ]


def test_the_words_about_them():
    segment = segment_of(talk(BOOK_QA, FLAGS, 100), BOOK_QA, 40, 100, trained=4)
    turns = segment["turns"]
    assert [about_words(turn["about"]) for turn in turns[1:3]] == [
        "about chunk 8, tokens 112 to 121, 42% into the context",
        "about chunk 12, whose place no span tells",
    ]
    assert [trained_words(turn) for turn in turns] == ["not trained", "trained", "not trained", "1 of 4 trained"]
    assert [names_anew(turn, segment) for turn in turns] == [True, False, True, False]
    assert overview(segment) == {
        "turns": "2 user, 2 assistant by cloze; 10.00% of the tokens trained",
        "context": "3 chunks of moby.txt, tokens 102 to 125",
        "questions": "2 about 2 chunks; 1 of them about what is not all in a context before the answer",
    }
    assert spread_of(segment, 10) == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert [(span["start"], span["kind"]) for span in untold(segment)] == [(2, "book")]
    assert [into_words(into) for into in (0.0, 0.424, 0.426, 0.999)] == [
        f"{n}% into the context" for n in (0, 42, 43, 99)
    ]


ONE = Span(0, 20, "user", '{"chunk": 1}')


@pytest.mark.parametrize(
    ("spans", "place", "inside"),
    [
        ([Span(1, 9, "book"), Span(2, 5, "chunk", '{"chunk": 1, "start": 0, "end": 3}')], (2, 5), True),
        ([Span(1, 9, "book"), Span(2, 5, "chunk", '{"chunk": 1}')], (2, 5), True),
        ([Span(1, 9, "book"), Span(2, 5, "chunk", '{"chunk": 1, "start": 0, "end": 4}')], (2, 5), False),
        ([Span(1, 9, "book"), Span(7, 10, "chunk", '{"chunk": 1}')], (7, 10), False),
        ([Span(2, 5, "chunk", '{"chunk": 1}')], (2, 5), False),
        ([Span(20, 29, "book"), Span(20, 25, "chunk", '{"chunk": 1}')], (20, 25), False),
        ([Span(1, 19, "book"), *(Span(i, i + 2, "chunk", '{"chunk": 1}') for i in (3, 5, 9))], (9, 11), True),
        ([Span(1, 19, "book"), *(Span(i, i + 2, "chunk", '{"chunk": 1}') for i in (3, 5, 19))], (5, 7), True),
    ],
)
def test_a_chunk_is_inside_only_if_all_of_it_stands_in_a_context_before_the_answer(spans, place, inside):
    (turn, *_) = talk([ONE, *spans], np.zeros(30, bool), 0).turns
    assert turn.about and (turn.about.place, turn.about.inside) == (place, inside)
    said = about_words(asdict(turn.about))
    assert ("not all of it in a context before the answer" in said) != inside


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([Span(0, 3, "user"), Span(0, 6, "user"), Span(5, 9, "user"), Span(6, 8, "user")], [(0, 6), (6, 8)]),
        ([Span(-1, 3, "user"), Span(3, 3, "user"), Span(4, 2, "user"), Span(9, 11, "user")], []),
        ([Span(9, 10, "user"), Span(0, 1, "user"), Span(0, 1, "assistant")], [(0, 1), (9, 10)]),
    ],
)
def test_turns_do_not_overlap(spans, expected):
    assert [turn.place for turn in talk(spans, np.zeros(10, bool), 0).turns] == expected


def test_a_chunk_that_begins_where_a_book_ends_or_in_an_answer_is_in_no_context():
    spans = [Span(0, 4, "book"), Span(4, 6, "chunk", '{"chunk": 1}'), Span(6, 9, "assistant", '{"chunk": 2}')]
    told = talk([*spans, Span(6, 9, "book"), Span(6, 8, "chunk", '{"chunk": 2}')], np.zeros(10, bool), 0)
    assert [(c.into, c.whole) for c in told.chunks] == [(None, False), (0.0, True)]
    assert [context.chunks for context in told.contexts] == [0, 1]
    assert told.turns[0].about and not told.turns[0].about.inside


def test_true_is_no_number():
    told = talk([Span(0, 2, "user", '{"chunk": true}'), Span(0, 1, "chunk", '{"chunk": true}')], np.zeros(2, bool), 0)
    assert told.turns[0].about is None and told.chunks[0].chunk is None


REFS = [
    "",
    "moby",
    "[1]",
    "[" * 100_000,
    '{"chunk": 1}',
    '{"chunk": 1, "start": 0, "end": 3, "model": "m", "record": "r"}',
    '{"chunk": 2, "start": 3, "end": 1, "model": 7, "record": []}',
    '{"chunk": 2, "start": 5, "end": 9}',
    '{"chunk": true, "start": 1.0, "end": "3"}',
    '{"chunk": -1, "start": -3, "end": 0}',
    '{"chunk": null, "start": NaN, "end": Infinity}',
    '{"chunk": 1' + "0" * 30 + "}",
    '{"chunk": 1' + "0" * 5000 + "}",
]
KINDS = ["user", "assistant", "book", "chunk", "image"]
PLAIN = st.sampled_from(REFS[4:8])
SPANS = st.lists(
    st.builds(
        lambda start, size, kind, ref: Span(start, start + size, kind, ref),
        st.integers(-1, 11),
        st.integers(-1, 6),
        st.sampled_from(KINDS),
        PLAIN | PLAIN | st.sampled_from(REFS),
    ),
    max_size=16,
)


def naive_apart(spans: list[Span], kinds: tuple[str, ...], length: int) -> list[Span]:
    """Go from place to place; where none is open, open the longest that begins there and ends in time."""
    found, free = [], 0
    for place in range(length):
        here = [s for s in spans if s.kind in kinds and s.start == place and place < s.end <= length]
        if here and place >= free:
            found.append(next(s for s in here if s.end == max(s.end for s in here)))
            free = found[-1].end
    return found


def naive_number(span: Span, name: str) -> int | None:
    try:
        value = json.loads(span.ref)[name]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def naive_about(turn: Span, chunks: list[Span], books: list[Span], low: int) -> dict[str, Any] | None:
    number = naive_number(turn, "chunk")
    if number is None:
        return None
    answer = turn.end if turn.kind == "user" else turn.start
    named = [c for c in chunks if naive_number(c, "chunk") == number]
    before = [c for c in named if c.end <= answer]
    if not named:
        return {"chunk": number, "place": None, "offsets": None, "into": None, "inside": False}
    chunk = before[-1] if before else named[0]
    start, end = naive_number(chunk, "start"), naive_number(chunk, "end")
    told = start is not None and end is not None and start < end
    around = [b for b in books if chunk.start in range(b.start, b.end)]
    into = (chunk.start - around[0].start) / (around[0].end - around[0].start) if around else None
    held = bool(around) and set(range(chunk.start, chunk.end)) <= set(range(around[0].start, around[0].end))
    size_is_right = not told or end - start == chunk.end - chunk.start  # type: ignore[operator]
    return {
        "chunk": number,
        "place": (low + chunk.start, low + chunk.end),
        "offsets": (start, end) if told else None,
        "into": into,
        "inside": bool(before) and held and size_is_right,
    }


@settings(max_examples=400, deadline=None)
@given(SPANS, st.lists(st.booleans(), min_size=8, max_size=12), st.integers(0, 50))
def test_hostile_spans_tell_what_a_slow_walk_finds(spans, flags, low):
    n = len(flags)
    told = talk(spans, np.array(flags), low)
    books, chunks, turns = (naive_apart(spans, kinds, n) for kinds in (("book",), ("chunk",), ("user", "assistant")))
    assert [(t.turn, t.role, t.place, t.trained) for t in told.turns] == [
        (i + 1, s.kind, (low + s.start, low + s.end), sum(flags[s.start : s.end])) for i, s in enumerate(turns)
    ]
    assert [t.about and asdict(t.about) for t in told.turns] == [naive_about(s, chunks, books, low) for s in turns]
    assert [t.by for t in told.turns] == ["m" if '"m"' in s.ref else "" for s in turns]
    assert [(c.place, c.chunk) for c in told.chunks] == [
        ((low + s.start, low + s.end), naive_number(s, "chunk")) for s in chunks
    ]
    assert [(c.place, c.record, c.chunks) for c in told.contexts] == [
        (
            (low + b.start, low + b.end),
            "r" if '"r"' in b.ref else "",
            sum(b.start <= c.start < b.end for c in chunks),
        )
        for b in books
    ]
    assert told.edges() == sorted({low + edge for s in books + chunks + turns for edge in (s.start, s.end)})
    segment = segment_of(told, spans, n, low)
    json.dumps(segment)
    rest = sorted(map(tuple, (span.values() for span in untold(segment))))
    assert len(rest) == len(spans) - len(chunks) - len(turns)
    for span in chunks + turns:
        rest.append(tuple(span))
    assert sorted(r[:3] for r in rest) == sorted((s.start, s.end, s.kind) for s in spans)
    assert sum(spread_of(segment, 7)) == sum(
        t.role == "user" and t.about is not None and t.about.into is not None for t in told.turns
    )
    overview(segment)
    for turn in segment["turns"]:
        assert names_anew(turn, segment) or trained_words(turn)


@settings(max_examples=100, deadline=None)
@given(SPANS)
def test_places_are_grouped_by_the_turn_that_holds_them(spans):
    told = talk(spans, np.zeros(20, bool), 5)
    segment = segment_of(told, spans, 20, 5)
    owners = {p: turn for turn in segment["turns"] for p in range(*turn["place"])}
    assert [holder(segment["turns"], p) for p in range(30)] == [owners.get(p) for p in range(30)]
    groups = list(by_turn(segment, range(5, 25), lambda place: place))
    assert [p for _, places in groups for p in places] == list(range(5, 25))
    assert all(owners.get(p) == turn for turn, places in groups for p in places)
    assert all(a != b for (a, _), (b, _) in pairwise(groups))
    assert begin(None) == -1 and all(begin(turn) == turn["place"][0] for turn in segment["turns"])


@pytest.mark.parametrize("ref", ["", "moby", "[]", "7", "null", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"])
def test_what_is_no_object_says_nothing(ref):
    assert facts(ref) == {}
