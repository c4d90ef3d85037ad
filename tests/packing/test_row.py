"""Rows: run lengths, spans, packing and the bytes that a checksum covers, each against a plain loop."""

import json
import struct
import zlib
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldloom.packing.example import Draft, Example, Span, clip_spans
from worldloom.packing.row import (
    Row,
    Segment,
    crc32,
    decode_runs,
    encode_runs,
    example_row,
    payload,
    row_examples,
    segment_of,
    sequence_row,
)
from worldloom.tokenizers.vocabulary import Vocabulary

TEXT = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test")
VISION = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test", codes=64, vision_digest="codes")
FLAGS = st.lists(st.booleans(), max_size=40)


@st.composite
def examples(draw, longest=30, vocabulary=VISION):
    n = draw(st.integers(1, longest))
    tokens = draw(st.lists(st.integers(0, vocabulary.size - 1), min_size=n, max_size=n))
    flags = [False, *draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1))]
    borders = st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda b: b[0] < b[1])
    spans = [Span(low, high, draw(st.sampled_from(["user", "image"])), "") for low, high in draw(st.lists(borders))]
    name = draw(st.text(max_size=4))
    return Example(np.array(tokens, vocabulary.dtype), np.array(flags), "chat", "books", name, n, tuple(spans))


def same(a, b):
    return (
        np.array_equal(a.tokens, b.tokens)
        and a.tokens.dtype == b.tokens.dtype
        and np.array_equal(a.trained, b.trained)
        and (a.task, a.source, a.record, a.start, a.spans) == (b.task, b.source, b.record, b.start, b.spans)
    )


@given(FLAGS)
def test_runs_are_those_that_groupby_finds(flags):
    groups = [(flag, len(list(group))) for flag, group in groupby(flags)]
    expected = [n for _, n in groups]
    if not groups or groups[0][0]:
        expected = [0, *expected]
    runs = encode_runs(np.array(flags, bool))
    assert runs.tolist() == expected and runs.dtype == np.int32
    assert decode_runs(runs).tolist() == flags


@given(FLAGS, st.data())
def test_a_part_of_the_flags(flags, data):
    low = data.draw(st.integers(0, len(flags)))
    high = data.draw(st.integers(low, len(flags)))
    assert decode_runs(encode_runs(np.array(flags, bool)), low, high).tolist() == flags[low:high]


@given(examples(), st.data())
def test_spans_are_cut_with_their_tokens(example, data):
    low = data.draw(st.integers(0, len(example.tokens) - 1))
    high = data.draw(st.integers(low + 1, len(example.tokens)))
    expected = []
    for span in example.spans:
        inside = [i - low for i in range(span.start, span.end) if low <= i < high]
        if inside:
            expected.append(Span(inside[0], inside[-1] + 1, span.kind, span.ref))
    assert list(clip_spans(example.spans, low, high)) == expected


@given(examples())
def test_a_segment_counts_its_trained_tokens_by_kind(example):
    segment = segment_of(example, VISION)
    trained = [int(t) for t, flag in zip(example.tokens, example.trained, strict=True) if flag]
    assert segment.trained_text == sum(t < 300 for t in trained)
    assert segment.trained_vision == sum(t >= 300 for t in trained)
    assert segment.length == len(example.tokens)


@given(st.lists(examples(), max_size=5), st.integers(0, 20))
def test_a_sequence_comes_apart_into_what_it_was_made_of(parts, padding):
    used = sum(len(e.tokens) for e in parts)
    row = sequence_row(parts, used + padding, VISION)
    assert row.tokens.tolist() == [int(t) for e in parts for t in e.tokens] + padding * [0]
    assert decode_runs(row.trained).tolist() == [bool(f) for e in parts for f in e.trained] + padding * [False]
    again = row_examples(row)
    assert len(again) == len(parts) and all(map(same, again, parts))


def test_a_sequence_that_does_not_fit_is_refused():
    example = Example(np.ones(5, np.uint16), np.zeros(5, bool), "text", "s", "r")
    with pytest.raises(ValueError, match="10 tokens do not fit into a sequence of 9"):
        sequence_row([example, example], 9, TEXT)


@pytest.mark.parametrize(
    ("tokens", "trained", "message"), [(3, 2, "flags"), (0, 0, "flags"), (2, 2, "first token has no predictor")]
)
def test_an_example_without_sense_is_refused(tokens, trained, message):
    with pytest.raises(ValueError, match=message):
        Example(np.zeros(tokens, np.uint16), np.ones(trained, bool), "text", "s", "r")


def test_a_draft_keeps_tokens_flags_and_spans_together():
    draft = Draft(TEXT)
    draft.add([1], trained=True)
    draft.add([5, 6], trained=False, kind="user", ref="{}")
    draft.add(np.array([7, 2]), trained=True, kind="assistant")
    example = draft.example("chat", "s", "r")
    assert example.tokens.tolist() == [1, 5, 6, 7, 2] and example.tokens.dtype == np.uint16
    assert example.trained.tolist() == [False, False, False, True, True]  # not the first, whatever was asked
    assert example.spans == (Span(1, 3, "user", "{}"), Span(3, 5, "assistant"))


def parse(data):
    """Read a payload as the formats' page describes it."""
    sizes = struct.unpack("<5Q", data[:40])
    parts, low = [], 40
    for size in sizes:
        parts.append(data[low : low + size])
        low += size
    assert low == len(data)
    return parts


@given(examples(), st.binary(min_size=16, max_size=16), st.lists(st.integers(0, 2**64 - 1), max_size=3))
def test_a_payload_holds_every_field(example, exact, near):
    row = example_row(example, VISION, exact, np.array(near, np.uint64))
    tokens, segments, runs, hashed, bands = parse(payload(row))
    assert np.frombuffer(tokens, "<u2").tolist() == row.tokens.tolist()
    assert np.frombuffer(runs, "<i4").tolist() == row.trained.tolist()
    assert hashed == exact and np.frombuffer(bands, "<u8").tolist() == near
    fields = json.loads(segments.decode("ascii"))[0]
    spans = tuple(Span(*span) for span in fields.pop())
    assert Segment(*fields, spans) == row.segments[0]
    assert crc32(row) == zlib.crc32(payload(row))


def test_the_bytes_do_not_depend_on_the_machines_order():
    row = sequence_row([Example(np.array([1, 258], np.uint16), np.array([False, True]), "t", "s", "é")], 3, TEXT)
    swapped = replace(row, tokens=row.tokens.astype(">u2"), trained=row.trained.astype(">i4"))
    assert payload(swapped) == payload(row)
    assert payload(row)[40:46] == bytes([1, 0, 2, 1, 0, 0])


CHANGES = {
    "a token": lambda row: replace(row, tokens=row.tokens ^ np.array([0, 0, 1, 0], np.uint16)),
    "a run": lambda row: replace(row, trained=row.trained + np.array([1, -1, 0], np.int32)),
    "a hash": lambda row: replace(row, exact=b"1" * 16),
    "a band": lambda row: replace(row, near=np.array([8], np.uint64)),
    "tokens moved into hashes": lambda row: replace(row, tokens=row.tokens[:3], exact=b"\0" * 16),
    **{
        f"a segment's {name}": lambda row, name=name, value=value: replace(
            row, segments=(row.segments[0]._replace(**{name: value}),)
        )
        for name, value in {
            "length": 5,
            "task": "other",
            "source": "other",
            "record": "other",
            "start": 1,
            "trained_text": 0,
            "trained_vision": 9,
            "spans": (Span(0, 1, "user"),),
        }.items()
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_any_field_changes_the_checksum(change):
    segment = Segment(4, "task", "source", "record", 0, 2, 0)
    row = Row(np.array([1, 4, 5, 6], np.uint16), (segment,), np.array([1, 2, 1], np.int32), b"0" * 16, np.ones(1, "u8"))
    assert crc32(CHANGES[change](row)) != crc32(row)
