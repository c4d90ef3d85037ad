"""The rules of rows against a plain loop over tokens, each seen to fire alone; and no writer writes what breaks one."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import RunFailed
from worldloom.packing import lint
from worldloom.packing.example import Draft, Example, Span
from worldloom.packing.lint import broken_rules
from worldloom.packing.report import REJECTS, SHARDS, UNITS, UnitWriter
from worldloom.packing.row import Row, decode_runs, encode_runs, example_row, sequence_row
from worldloom.packing.shard import EXAMPLES, Batch, Kind, record_batch, schema
from worldloom.packing.storage import Folder
from worldloom.packing.thin import plan_thinning, thin
from worldloom.tokenizers.vocabulary import Vocabulary

VISION = Vocabulary(text_size=20, bos=1, eos=2, text_digest="t", codes=8, vision_digest="v")  # eof 28, eov 29
TEXT_ONLY = Vocabulary(text_size=20, bos=1, eos=2, text_digest="t")
CODE, EOF, EOV = 20, 28, 29

NOTHING = "has a segment in which nothing is trained"
ALL = "trains all of a segment that asks and answers, the question too"
UNANSWERED = "has a segment without an answer, whose task is to train on answers"
OUTSIDE = "trains a token outside an answer"
INSIDE = "has an answer that is not trained throughout"
TWICE = "has answers that overlap"
CUT = "has an answer without the end of sequence after it"
LAST = "has a segment whose last answer is not its end"
OVER = "has pictures that overlap"
UNEVEN = "has a clip that is not of as many equal frames as its span says"
UNENDED = "has a picture or a frame without its end"
STRAY = "has the end of a picture or a frame where none ends"
BARE = "has ids of pictures outside a picture's span"
MIXED = "has ids of text inside a picture's span"
MISCOUNTED = "has a segment that counts other trained tokens than it has"
FIRST = "trains the first token of a segment, which has no predictor"
WEIGHTS = "has a segment whose weights do not add up to its rule's"


def naive(row: Row, vocabulary: Vocabulary) -> set[str]:
    """Say which rules of segments a row breaks, token by token."""
    flags, found, start = decode_runs(row.trained).tolist(), set(), 0
    for s in row.segments:
        tokens, trained = row.tokens[start : start + s.length].tolist(), flags[start : start + s.length]
        found |= naive_answers(tokens, trained, s, vocabulary) | naive_pictures(tokens, s, vocabulary)
        vision = sum(flag and t >= vocabulary.text_size for t, flag in zip(tokens, trained, strict=True))
        if (s.trained_text, s.trained_vision) != (sum(trained) - vision, vision):
            found |= {MISCOUNTED, WEIGHTS}
        found |= {FIRST} if trained[0] else set()
        found |= set() if any(trained) else {NOTHING}
        start += s.length
    return found


def overlap(spans: list[Span]) -> bool:
    return any(a.start < b.end and b.start < a.end for i, a in enumerate(spans) for b in spans[:i])


def naive_answers(tokens: list[int], trained: list[bool], s: Any, vocabulary: Vocabulary) -> set[str]:
    answers, found = [span for span in s.spans if span.kind == "assistant"], set()
    if not answers and s.task not in ("chat", "image-chat", "video-chat", "book-qa"):
        return found
    found |= {ALL} if any(trained) and sum(trained) == len(tokens) - 1 else set()
    if not answers:
        return found | {UNANSWERED}
    for place, flag in enumerate(trained):
        inside = any(span.start <= place < span.end for span in answers)
        found |= {OUTSIDE} if flag and not inside else {INSIDE} if inside and not flag else set()
    found |= {TWICE} if overlap(answers) else set()
    for span in answers:
        said = tokens[span.start : span.end]
        found |= set() if said and said[-1] == vocabulary.eos else {CUT}
    return found | (set() if max(span.end for span in answers) == len(tokens) else {LAST})


def naive_pictures(tokens: list[int], s: Any, vocabulary: Vocabulary) -> set[str]:
    pictures = [span for span in s.spans if span.kind in ("image", "video")]
    found, ends, inside = {OVER} if overlap(pictures) else set(), set(), set()
    for span in pictures:
        inside |= set(range(span.start, span.end))
        frames = 1 if span.kind == "image" else json.loads(span.ref).get("frames", 0)
        size, rest = divmod(span.end - span.start, frames) if frames else (0, 1)
        if rest or not size:
            found.add(UNEVEN)
        else:
            ends |= {(span.start + size * (i + 1) - 1, EOV if i == frames - 1 else EOF) for i in range(frames)}
    for place, t in enumerate(tokens):
        if UNEVEN not in found and t in (EOF, EOV) and vocabulary.codes and (place, t) not in ends:
            found.add(STRAY)
        if UNEVEN not in found and {(place, EOF), (place, EOV)} & ends - {(place, t)}:
            found.add(UNENDED)
        if (t >= vocabulary.text_size) != (place in inside):
            found.add(MIXED if place in inside else BARE)
    return found


def fast(rows: list[Row], vocabulary: Vocabulary, kind: Kind) -> list[set[str]]:
    batch = Batch(record_batch(rows, [0] * len(rows), schema(vocabulary, kind)))
    found: list[set[str]] = [set() for _ in rows]
    for row, what, _ in broken_rules(batch, vocabulary, kind):
        found[row].add(what)
    return found


def frames(count: int, size: int) -> list[int]:
    return [t for i in range(count) for t in [*range(CODE, CODE + size), EOV if i == count - 1 else EOF]]


def text(n: int = 4, record: str = "t") -> Example:
    draft = Draft(VISION)
    draft.add([1], False)
    draft.add([5] * n, True, "document", '{"url": "a://b"}')
    draft.add([2], True)
    return draft.example("text", "s", record)


def pair(count: int = 1, first: bool = True, all_trained: bool = True, record: str = "p") -> Example:
    draft, kind = Draft(VISION), "image" if count == 1 else "video"
    draft.add([1], False)
    for part in ("media", "caption") if first else ("caption", "media"):
        if part == "media":
            draft.add([3, 4], all_trained or not first)
            told = {"width": 4, "frames": count, "rate": 4.0} if count > 1 else {"width": 4}
            draft.add(frames(count, 3), all_trained or not first, kind, json.dumps(told))
            draft.add([6], all_trained or not first)
        else:
            draft.add([7, 8], all_trained or first, "caption")
    draft.add([2], True)
    return draft.example(f"{kind}-to-text" if first else f"text-to-{kind}", "s", record)


def chat(turns: int = 2, pictures: int = 1, count: int = 2, task: str = "image-chat", record: str = "c") -> Example:
    draft = Draft(VISION)
    draft.add([1], False)
    for turn in range(turns):
        start = draft.length if turn else 0
        draft.add([9, 10, 11], False)
        for _ in range(pictures if not turn else 0):
            draft.add(frames(1, 3), False, "image", "{}")
            draft.add(frames(count, 2), False, "video", json.dumps({"frames": count, "rate": 1.0}))
        draft.span(start, "user")
        start = draft.length
        draft.add([12, 13, 2], True)
        draft.span(start, "assistant")
    return draft.example(task, "s", record)


NAMES = st.text("abc", max_size=3)
GOOD = st.one_of(
    st.builds(text, st.integers(1, 9), NAMES),
    st.builds(pair, st.integers(1, 4), st.booleans(), st.booleans(), NAMES),
    st.builds(
        chat,
        st.integers(1, 3),
        st.integers(0, 2),
        st.integers(1, 4),
        st.sampled_from(["chat", "image-chat", "video-chat", "book-qa"]),
        NAMES,
    ),
)


@st.composite
def altered(draw: Any, example: Example) -> Example:
    """Change one thing: a token, a flag, the task, or a span's border, kind or frames."""
    place = draw(st.integers(1, len(example.tokens) - 1))
    tokens, trained, spans = example.tokens.copy(), example.trained.copy(), list(example.spans)
    what = draw(st.sampled_from(["token", "flag", "task", "span", "none"]))
    if what == "token":
        tokens[place] = draw(st.integers(0, VISION.size - 1))
    elif what == "flag":
        trained[place : place + draw(st.integers(1, 3))] ^= True
    elif what == "task":
        return replace(example, task=draw(st.sampled_from(["text", "chat", "image"])))
    elif what == "span":
        number = draw(st.integers(0, len(spans) - 1))
        span = spans[number]
        change = draw(st.sampled_from(["gone", "longer", "shorter", "moved", "again", "renamed", "frames"]))
        if change == "longer" and span.end < len(tokens):
            spans[number] = span._replace(end=span.end + 1)
        elif change == "moved":
            spans[number] = span._replace(start=draw(st.integers(0, span.end)))
        elif change == "again":
            spans.insert(0, span)
        elif change == "shorter":
            spans[number] = span._replace(start=span.start + 1)
        elif change == "renamed":
            spans[number] = span._replace(kind="other")
        elif change == "frames" and span.kind == "video":
            spans[number] = span._replace(ref=json.dumps({"frames": draw(st.integers(0, 4))}))
        elif change == "gone":
            del spans[number]
    return replace(example, tokens=tokens, trained=trained, spans=tuple(spans))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_rules_are_those_of_a_loop_over_tokens(data: st.DataObject) -> None:
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        parts = data.draw(st.lists(GOOD, min_size=1, max_size=3))
        if data.draw(st.booleans()):
            parts = [data.draw(altered(part)) for part in parts]
        rows.append(sequence_row(parts, 160, VISION))
    assert fast(rows, VISION, Kind("sequences", 160)) == [naive(row, VISION) for row in rows]
    alone = [example_row(part, VISION, bytes(16), np.empty(0, np.uint64)) for part in parts]
    assert fast(alone, VISION, EXAMPLES) == [naive(row, VISION) for row in alone]


@settings(max_examples=60, deadline=None)
@given(st.lists(GOOD, min_size=1, max_size=4), st.integers(2, 3))
def test_what_is_well_made_breaks_no_rule_thinned_or_not(parts: list[Example], most: int) -> None:
    plans = [plan_thinning(len(e.tokens), e.spans, 10**6, most) for e in parts]
    thinned = [thin(e, plan) for e, plan in zip(parts, plans, strict=True) if plan]
    for made in (parts, thinned):
        row = sequence_row(made, 400, VISION)
        assert naive(row, VISION) == set() == fast([row], VISION, Kind("sequences", 400))[0]


def put(example: Example, place: int, token: int) -> Example:
    tokens = example.tokens.copy()
    tokens[place] = token
    return replace(example, tokens=tokens)


def flip(example: Example, *places: int) -> Example:
    trained = example.trained.copy()
    trained[list(places)] ^= True
    return replace(example, trained=trained)


def respan(example: Example, kind: str, **changes: Any) -> Example:
    """Change all spans of a kind, or remove them where nothing is said."""
    spans = tuple(s._replace(**changes) if s.kind == kind else s for s in example.spans if changes or s.kind != kind)
    return replace(example, spans=spans)


def everything(example: Example) -> Example:
    """Train all, and say that all of it is the answer."""
    spans = (Span(1, len(example.tokens), "assistant"),)
    return replace(example, trained=np.arange(len(example.tokens)) > 0, spans=spans)


PLAIN, TALK = text(), chat(turns=2, pictures=0, task="chat")  # TALK: 1 | 9 10 11 | 12 13 2 | 9 10 11 | 12 13 2
OVERLAPPING = (Span(4, 7, "assistant"), Span(6, 7, "assistant"), Span(10, 13, "assistant"))
LATER = Draft(VISION)
LATER.add([1], False)
LATER.add([12, 2], True, "assistant")
LATER.add([5], False)
MISTAKES: dict[str, tuple[Example, str]] = {
    "nothing trained": (flip(PLAIN, *np.flatnonzero(PLAIN.trained)), NOTHING),
    "nothing of a clip trained": (flip(pair(2), *np.flatnonzero(pair(2).trained)), NOTHING),
    "all trained": (everything(TALK), ALL),
    "all trained of another task": (replace(everything(TALK), task="text-to-image"), ALL),
    "no answer": (respan(TALK, "assistant"), UNANSWERED),
    "a question trained": (flip(TALK, 2), OUTSIDE),
    "a second question trained": (flip(TALK, 9), OUTSIDE),
    "half an answer trained": (flip(TALK, 5), INSIDE),
    "answers that overlap": (replace(TALK, spans=OVERLAPPING), TWICE),
    "an answer told twice": (replace(TALK, spans=(*TALK.spans, TALK.spans[1])), TWICE),
    "a picture told twice": (replace(pair(1), spans=pair(1).spans * 2), OVER),
    "a frame told as a picture too": (replace(pair(2), spans=(*pair(2).spans, Span(7, 11, "image", "{}"))), OVER),
    "more frames than there are numbers": (respan(pair(2), "video", ref=f'{{"frames": {10**30}}}'), UNEVEN),
    "the last answer cut": (put(TALK, 12, 7), CUT),
    "the first answer cut": (put(TALK, 6, 7), CUT),
    "more after the last answer": (LATER.example("chat", "s", "c"), LAST),
    "answers in a text": (LATER.example("text", "s", "c"), LAST),
    "other frames than told": (respan(pair(2), "video", ref='{"frames": 3}'), UNEVEN),
    "frames untold": (respan(pair(2), "video", ref="{}"), UNEVEN),
    "a picture without end": (put(pair(1), 6, CODE), UNENDED),
    "a frame without end": (put(pair(2), 6, CODE), UNENDED),
    "an end too many": (put(pair(2), 5, EOF), STRAY),
    "an end of all too many": (put(chat(), 5, EOV), STRAY),
    "codes in text": (put(PLAIN, 3, CODE), BARE),
    "text in a picture": (put(pair(1), 4, 5), MIXED),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_rule_fires_alone(name: str) -> None:
    example, what = MISTAKES[name]
    row = sequence_row([text(record="a"), example, pair(record="b")], 60, VISION)
    sound = sequence_row([text(), pair(3), chat()], 60, VISION)
    assert naive(row, VISION) == {what}
    batch = Batch(record_batch([sound, row], [0, 0], schema(VISION, Kind("sequences", 60))))
    assert broken_rules(batch, VISION, Kind("sequences", 60)) == [(1, what, example.record)]


def test_what_is_not_trained_is_seen_where_answers_overlap() -> None:
    spans = (Span(4, 9, "assistant"), Span(6, 13, "assistant"))  # 7 and 8 would be inside twice
    row = sequence_row([replace(flip(TALK, 9), spans=spans)], 20, VISION)
    assert fast([row], VISION, Kind("sequences", 20)) == [naive(row, VISION)] == [{TWICE, INSIDE, CUT}]


@pytest.mark.parametrize(
    "ref", ["[" * 10**5, "", "[1]", '{"frames": "2"}', '{"frames": 2.0}', '{"frames": 2147483648}']
)
def test_a_clip_that_does_not_say_its_frames_is_named(ref: str) -> None:
    row = sequence_row([respan(pair(2), "video", ref=ref)], 20, VISION)
    assert fast([row], VISION, Kind("sequences", 20)) == [{UNEVEN}]


def test_what_lies_in_padding_is_the_fault_of_no_segment() -> None:
    row = sequence_row([text(), pair()], 40, VISION)
    for token in (5, CODE, EOV):
        tokens = row.tokens.copy()
        tokens[30] = token
        padded = [replace(row, tokens=tokens), row]
        assert fast(padded, VISION, Kind("sequences", 40)) == [{"has padding other than id 0"}, set()]
        assert fast(padded[::-1], VISION, Kind("sequences", 40)) == [set(), {"has padding other than id 0"}]


def test_the_counts_and_the_first_token() -> None:
    row = sequence_row([text(), text()], 20, VISION)
    flags = decode_runs(row.trained)
    flags[6] = True
    trained = replace(row, trained=encode_runs(flags))
    assert fast([trained], VISION, Kind("sequences", 20)) == [{FIRST, MISCOUNTED, WEIGHTS}] == [naive(trained, VISION)]
    recounted = replace(trained, segments=(row.segments[0], row.segments[1]._replace(trained_text=6)))
    assert fast([recounted], VISION, Kind("sequences", 20)) == [{FIRST}] == [naive(recounted, VISION)]


@pytest.mark.parametrize("vocabulary", [VISION, TEXT_ONLY])
@pytest.mark.parametrize("rule", list(lint.Rule))
def test_weights_that_do_not_add_up_are_seen(
    monkeypatch: pytest.MonkeyPatch, rule: lint.Rule, vocabulary: Vocabulary
) -> None:
    rows = [sequence_row([text(), text(7)] + [pair(2)] * bool(vocabulary.codes), 60, vocabulary)]
    assert fast(rows, vocabulary, Kind("sequences", 60)) == [set()]
    right = lint.segment_weights

    def wrong(asked: lint.Rule, *counts: Any) -> tuple[np.ndarray, np.ndarray]:
        of_text, of_vision = right(asked, *counts)
        return (of_text * np.float32(1.001), of_vision) if asked is rule else (of_text, of_vision)

    monkeypatch.setattr(lint, "segment_weights", wrong)
    assert fast(rows, vocabulary, Kind("sequences", 60)) == [{WEIGHTS}]


def test_a_million_tokens_of_one_example_weigh_one() -> None:
    row = sequence_row([text(2**20 - 2)], 2**20, VISION)
    assert fast([row], VISION, Kind("sequences", 2**20)) == [set()]


@pytest.mark.parametrize("name", MISTAKES)
def test_nothing_is_committed_of_a_unit_with_a_mistake(tmp_path: Any, name: str) -> None:
    folder, (example, what) = Folder(str(tmp_path)), MISTAKES[name]
    folder.make(UNITS, SHARDS, REJECTS)

    def write(made: Callable[[Example], Row], kind: Kind) -> None:
        with UnitWriter(folder, "books-7", VISION, kind) as writer:
            for part in (text(), example, text()):
                writer.add(made(part))
                writer.ledger.read += 1
                writer.ledger.count("kept")
                writer.ledger.tokens_read += len(part.tokens)
            writer.commit("books", key="k")

    for kind in (EXAMPLES, Kind("sequences", 60)):
        with pytest.raises(RunFailed) as failed:
            write(
                lambda e, kind=kind: (
                    sequence_row([e], 60, VISION)
                    if kind.length
                    else example_row(e, VISION, bytes(16), np.empty(0, np.uint64))
                ),
                kind,
            )
        assert f"unit books-7: row 1 (record {example.record}) {what}: this is a bug of worldloom" in str(failed.value)
        assert not [name for part in (UNITS, SHARDS, REJECTS) for name in folder.names(part)]
