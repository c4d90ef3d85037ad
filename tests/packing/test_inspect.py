"""What inspect says of a data set is what counting row by row says; what it shows is legible and harmless."""

import io
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from worldloom.errors import UserError
from worldloom.packing.dataset import Dataset
from worldloom.packing.example import Draft, Example, Span
from worldloom.packing.inspect import Clip, block_start, blocks, find_record, row_detail, sample_rows, summarise
from worldloom.packing.ledger import DROPPED, FAILED, KEPT
from worldloom.packing.manifest import write_index, write_manifest
from worldloom.packing.render import clock, elided, render_row, render_summary, visible
from worldloom.packing.report import REJECTS, SHARDS, UNITS, Reject, UnitWriter, read_report
from worldloom.packing.row import Row, Segment, decode_runs, encode_runs, example_row, sequence_row
from worldloom.packing.shard import EXAMPLES, Kind
from worldloom.packing.storage import Folder
from worldloom.packing.turns import begin, holder
from worldloom.packing.weights import Rule
from worldloom.tokenizers.vocabulary import Vocabulary

VISION = Vocabulary(text_size=300, bos=1, eos=2, text_digest="t", codes=64, vision_digest="v")
LENGTH = 64
TASKS, SOURCES = ("text", "image-to-text"), ("gutenberg", "laion")


def example(rng: np.random.Generator, record: str, task: str, source: str) -> Example:
    draft = Draft(VISION)
    draft.add([1], trained=False)
    draft.add(rng.integers(3, 300, int(rng.integers(1, 9))), trained=bool(rng.random() < 0.5), kind="user", ref="7")
    if task != "text":
        clip = [*rng.integers(300, 364, 4), VISION.eof, *rng.integers(300, 364, 4), VISION.eov]
        draft.add(clip, trained=True, kind="video", ref='{"frames": 2}')
    draft.add([2], trained=True)
    return draft.example(task, source, record)


def write(folder: Folder, kind: Kind) -> Dataset:
    folder.make(UNITS, SHARDS, REJECTS)
    rng = np.random.default_rng(0)
    units = ["u-0", "u-1", "u-2"]
    for u, unit in enumerate(units):
        with UnitWriter(folder, unit, VISION, kind) as writer:
            for i in range(7):
                examples = [
                    example(rng, f"{unit}.{i}.{j}", TASKS[int(rng.integers(2))], SOURCES[int(rng.integers(2))])
                    for j in range((1 + i % 3 if u else 2 + i % 2) if kind.length else 1)
                ]
                if kind.length:
                    writer.add(sequence_row(examples, LENGTH, VISION))
                else:
                    writer.add(example_row(examples[0], VISION, bytes(16), np.empty(0, np.uint64)))
                for _ in examples:
                    writer.ledger.read += 1
                    writer.ledger.count(KEPT)
            for i in range(u):
                status = (DROPPED, FAILED)[i]
                writer.reject(Reject("gutenberg", f"bad-{u}-{i}", "read", status, "too short", "7 < 10", "a.txt:3"))
            writer.ledger.read += u
            writer.ledger.tokens_read = sum(t["tokens"] for t in writer.ledger.tasks.values())
            writer.commit("books", key="k")
    reports = [r for r in (read_report(folder, unit) for unit in units) if r]
    described = {"kind": kind.name, "length": kind.length, "weights": "lwm", "fingerprint": VISION.fingerprint}
    write_manifest(folder, write_index(folder, reports), {**described, "vocabulary": vars(VISION)})
    return Dataset(folder.url)


@pytest.fixture(params=["local", "memory"])
def build(request, tmp_path) -> str:
    """Make a build with examples and a packed data set."""
    url = str(tmp_path / "build") if request.param == "local" else f"memory://{tmp_path.name}/inspect"
    write(Folder(url).sub("examples"), EXAMPLES)
    write(Folder(url).sub("packed-64"), Kind("sequences", LENGTH))
    return url


@pytest.mark.parametrize("task", [None, "text", "none"])
@pytest.mark.parametrize("source", [None, "laion"])
@pytest.mark.parametrize("name", ["examples", "packed-64"])
def test_a_summary_is_what_counting_row_by_row_says(build, name, task, source):
    url = f"{build}/{name}"
    summary = summarise(url, task, source)
    dataset = Dataset(url)
    parts: dict[tuple[str, str], Counter[str]] = {}
    per_row, lengths, padding = [], Counter[str](), 0
    for row in dataset:
        chosen = [s for s in row.segments if task in (None, s.task) and source in (None, s.source)]
        if chosen:
            per_row.append(len(chosen))
            padding += len(row.tokens) - sum(s.length for s in row.segments)
        for s in chosen:
            power = 1
            while power * 2 <= s.length:
                power *= 2
            lengths[str(power)] += 1
            trained = s.trained_text + s.trained_vision
            parts.setdefault((s.source, s.task), Counter()).update(segments=1, tokens=s.length, trained=trained)
    assert summary.sequences == len(per_row) and summary.segments == sum(per_row)
    assert summary.tokens == sum(p["tokens"] for p in parts.values())
    assert summary.trained * summary.tokens == pytest.approx(sum(p["trained"] for p in parts.values()))
    assert summary.parts == [{"source": s, "task": t, **parts[s, t]} for s, t in sorted(parts)]
    assert summary.lengths == dict(lengths) and list(map(int, summary.lengths)) == sorted(map(int, lengths))
    if per_row:
        assert summary.per_sequence == (min(per_row), pytest.approx(np.mean(per_row)), max(per_row))
        assert summary.padding == padding
        total = LENGTH * len(per_row)
        assert summary.fill == (pytest.approx((total - padding) / total) if dataset.length else None)
    assert summary.rejects == {"dropped: too short": 2, "failed: too short": 1}
    assert json.loads(json.dumps(summary.to_json()))["root"] == dataset.root


def test_a_summary_asks_for_no_tokens(build, monkeypatch):
    monkeypatch.setattr("worldloom.packing.shard.Batch.row_tokens", None)
    if build.startswith("memory"):
        monkeypatch.setattr("worldloom.packing.shard.Shard.batch", None)
    assert summarise(f"{build}/packed-64").sequences == 21


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no complete data set"):
        summarise(str(tmp_path))


def test_a_record_is_found_in_its_rows_and_in_the_rejects(build):
    found = find_record(build, "u-1.4.0")
    assert [f["data_set"] for f in found] == ["examples", "packed-64"]
    (packed,) = find_record(f"{build}/packed-64", "u-1.4.0")
    row = Dataset(f"{build}/packed-64").row(packed["row"])
    assert packed["row"] == 7 + 4 and packed["segment"] == 1 and packed["data_set"] == ""
    assert row.segments[0].record == "u-1.4.0" and row.segments[0].length == packed["length"]
    (last,) = find_record(f"{build}/packed-64", "u-2.2.2")
    assert (last["row"], last["segment"]) == (14 + 2, 3)
    (reject,) = find_record(f"{build}/examples", "bad-2-1")
    assert reject["status"] == "failed" and reject["where"] == "a.txt:3" and "row" not in reject
    assert find_record(build, "nowhere") == []
    json.dumps(found)


def test_a_sample_is_the_same_each_time_and_of_what_was_asked(build):
    dataset = Dataset(f"{build}/packed-64")
    rows = sample_rows(dataset, 5, seed=1)
    assert rows == sorted(set(rows)) == sample_rows(dataset, 5, seed=1) and len(rows) == 5
    assert any(sample_rows(dataset, 5, seed=s) != rows for s in range(2, 5))
    assert sample_rows(dataset, 99) == list(range(21))
    asked = [i for i, row in enumerate(dataset) if any(s.task == "text" and s.source == "laion" for s in row.segments)]
    assert sample_rows(dataset, 99, task="text", source="laion") == asked
    assert sample_rows(dataset, 3, task="none") == []


@pytest.mark.parametrize("rule", [None, *Rule])
@pytest.mark.parametrize("name", ["examples", "packed-64"])
def test_a_row_in_detail_is_the_row_token_by_token(build, name, rule):
    dataset = Dataset(f"{build}/{name}")
    for number in (0, 8, 20):
        row, detail = dataset.row(number), row_detail(dataset, number, rule)
        flags = decode_runs(row.trained)
        assert detail["rule"] == (rule or "lwm") and detail["length"] == len(row.tokens)
        shown: list[tuple[int, bool, float]] = []
        for segment, s in zip(detail["segments"], row.segments, strict=True):
            assert segment["place"] == [len(shown), len(shown) + s.length]
            for run in segment["runs"]:
                assert run["start"] == len(shown) and run["end"] == len(shown) + len(run["tokens"])
                shown += [(t, run["trained"], run["weight"]) for t in run["tokens"]]
        used = sum(s.length for s in row.segments)
        assert detail["padding"] == len(row.tokens) - used
        assert [s[:2] for s in shown] == list(zip(row.tokens[:used].tolist(), flags[:used].tolist(), strict=True))
        assert [s[2] for s in shown] == pytest.approx(naive_weights(row, flags, Rule(detail["rule"])))
        json.dumps(detail)
    with pytest.raises(IndexError):
        row_detail(dataset, 21)


def naive_weights(row: Any, flags: np.ndarray, rule: Rule) -> list[float]:
    weights, low = [], 0
    for s in row.segments:
        places = range(low, low + s.length)
        for p in places:
            vision = row.tokens[p] >= 300
            alike = [q for q in places if flags[q] and (row.tokens[q] >= 300) == vision]
            trained = [q for q in places if flags[q]]
            by_rule = {Rule.TOKEN: 1, Rule.EXAMPLE: len(trained), Rule.LWM: 2 * len(alike)}
            weights.append(1 / by_rule[rule] if flags[p] else 0.0)
        low += s.length
    return weights


def test_text_is_decoded_and_frames_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("worldloom.packing.report.broken_rules", lambda *_: [])  # what no writer lets through
    dataset = toy(tmp_path, "it's", [[5, 6], [*range(300, 304), VISION.eof, *range(300, 307), VISION.eov], [300, 2]])
    (segment,) = row_detail(dataset, 0, decode=lambda ids: "".join(chr(97 + i) for i in ids))["segments"]
    assert [run["text"] for run in segment["runs"]] == [
        "b",
        "fg",
        "⟨frame of 4 codes⟩",
        "⟨last frame of 7 codes⟩",
        "⟨part of a frame of 1 codes⟩",
        "c",
    ]
    (segment,) = row_detail(dataset, 0)["segments"]
    assert segment["runs"][1]["text"] == "5 6"
    assert segment["record"] == "it's" and segment["weights"] == pytest.approx({"text": 0.5 / 3, "vision": 0.5 / 14})


def toy(tmp_path: Any, record: str, parts: list[list[int]], task: str = "image-to-text") -> Dataset:
    folder = Folder(str(tmp_path / "toy"))
    folder.make(UNITS, SHARDS, REJECTS)
    draft = Draft(VISION)
    draft.add([1], trained=False)
    for part in parts:
        draft.add(part, trained=True, kind="user", ref=f'"{record}"')
    with UnitWriter(folder, "u", VISION, Kind("sequences", LENGTH)) as writer:
        writer.add(sequence_row([draft.example(task, record, record)], LENGTH, VISION))
        writer.reject(Reject(record, record, "read", DROPPED, record))
        writer.ledger.read += 2
        writer.ledger.count(KEPT)
        writer.ledger.tokens_read = sum(t["tokens"] for t in writer.ledger.tasks.values())
        writer.commit("s", key="k")
    report = read_report(folder, "u")
    assert report
    described = {"kind": "sequences", "length": LENGTH, "weights": "lwm", "fingerprint": VISION.fingerprint}
    write_manifest(folder, write_index(folder, [report]), {**described, "vocabulary": vars(VISION)})
    return Dataset(folder.url)


def printed(what: RenderableType, colour: bool = False, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None).print(what)
    return out.getvalue()


def test_a_summary_is_legible_without_colour(build):
    text = printed(render_summary(summarise(f"{build}/packed-64")))
    assert "\x1b" not in text
    for word in ("sequences of 64 tokens", "21", "fill", "laion", "gutenberg", "failed: too short", "█", "366 ids"):
        assert word in text, word
    assert "examples" in printed(render_summary(summarise(f"{build}/examples", task="text")))


def test_a_row_is_legible_without_colour_and_coloured_with(tmp_path):
    dataset = toy(tmp_path, "moby", [[5, 6], [7] * 9])
    detail = row_detail(dataset, 0, decode=lambda ids: "".join(chr(97 + i) for i in ids))
    plain = printed(render_row(detail))
    assert "b\nuser: tokens 1 to 2, trained\n⟦fg⟧\nuser: tokens 3 to 11, trained\n⟦hhhhhhhhh⟧\n" in plain
    assert "\x1b" not in plain
    for word in ("segment 1", "record moby", "positions 0 to 11", "of weight 0.0454545", "52 tokens", "'lwm'", "user"):
        assert word in plain, word
    assert "\x1b[1;32m⟦hhhhhhhhh⟧" in printed(render_row(detail), colour=True)


HOSTILE = "\x1b[2J\x07[bold red]\r\u202e\u2028\x9b31m[/bold red]\n:smile:\x00"


@pytest.mark.parametrize("colour", [False, True])
def test_hostile_text_steers_nothing(tmp_path, colour):
    dataset = toy(tmp_path, HOSTILE, [[5]], task=HOSTILE)
    detail = row_detail(dataset, 0, decode=lambda ids: HOSTILE)
    for what in (render_row(detail), render_row(detail, full=True), render_summary(summarise(dataset.folder.url))):
        text = printed(what, colour, width=500)
        assert not set("\x07\r\u202e\u2028\x9b\x00") & set(text) and "\x1b[2J" not in text
        assert "[bold red]" in text and "\\x1b[2J" in text and ":smile:" in text


def test_long_texts_lose_their_middle_unless_asked_for(tmp_path):
    dataset = toy(tmp_path, "moby", [[5]])
    detail = row_detail(dataset, 0, decode=lambda ids: "a" * 5000 + "z")
    assert len(printed(render_row(detail))) < 3000 < len(printed(render_row(detail, full=True)))
    assert "⟨… 4,601 characters …⟩" in printed(render_row(detail), width=2000)
    assert elided("abc", 3) == "abc" and elided("abcdef", 4) == "ab ⟨… 2 characters …⟩ ef"
    assert visible("a\nb") == "a\\nb" and visible("a\nb", newlines=True) == "a\nb" and visible("é⟦") == "é⟦"


def naive_clips(segment: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Walk over a segment token by token and collect its clips, each a list of frames."""
    tokens = [(t, run["trained"]) for run in segment["runs"] for t in run["tokens"]]
    clips: list[list[dict[str, Any]]] = []
    clip_open = frame_open = False
    for place, (token, trained) in enumerate(tokens, segment["place"][0]):
        if token < VISION.text_size:
            clip_open = frame_open = False
            continue
        if not clip_open:
            clips.append([])
        if not frame_open:
            clips[-1].append({"start": place, "codes": [], "ended": False, "trained": 0})
        frame = clips[-1][-1]
        frame["trained"] += trained
        frame["end"] = place + 1
        clip_open, frame_open = token != VISION.eov, token < VISION.eof
        if frame_open:
            frame["codes"].append(token - VISION.text_size)
        else:
            frame["ended"] = True
    return clips


IDS = st.sampled_from([5, 6, 300, 301, 363, VISION.eof, VISION.eov])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(IDS, st.booleans()), min_size=1, max_size=40), st.integers(0, 9))
def test_blocks_are_what_a_walk_over_the_tokens_finds(tokens, low):
    runs = [
        {
            "start": low + i,
            "end": low + i + 1,
            "trained": on,
            "modality": "vision" if t >= 300 else "text",
            "tokens": [t],
        }
        for i, (t, on) in enumerate(tokens)
    ]
    segment = {"place": [low, low + len(tokens)], "spans": [], "turns": [], "contexts": [], "chunks": [], "runs": runs}
    found = list(blocks(segment, VISION))
    clips = [block for block in found if isinstance(block, Clip)]
    shown = [[{**f._asdict(), "codes": f.codes.tolist()} for f in clip.frames] for clip in clips]
    expected = naive_clips(segment)
    assert [
        [{k: v for k, v in f.items() if k not in ("number", "seconds")} for f in clip] for clip in shown
    ] == expected
    assert all([f["number"] for f in clip] == list(range(1, len(clip) + 1)) for clip in shown)
    assert [clip.kind for clip in clips] == ["image" if len(clip) == 1 else "video" for clip in expected]
    assert all(f.codes.dtype == np.uint16 and f.seconds is None for clip in clips for f in clip.frames)
    places = [[r["start"] for r in b] if isinstance(b, list) else range(b[2][0].start, b[2][-1].end) for b in found]
    assert [p for part in places for p in part] == list(range(low, low + len(tokens)))


def test_blocks_of_a_real_row_are_the_same_as_the_walk(build):
    dataset = Dataset(f"{build}/packed-64")
    seen = 0
    for number in range(dataset.rows):
        for segment in row_detail(dataset, number)["segments"]:
            clips = [b for b in blocks(segment, VISION) if isinstance(b, Clip)]
            assert [[f.codes.tolist() for f in c.frames] for c in clips] == [
                [f["codes"] for f in c] for c in naive_clips(segment)
            ]
            seen += len(clips)
    assert seen > 5


def clip_with(ref: str, frames: int = 3, kind: str = "video") -> Clip:
    tokens = [301, 302, VISION.eof] * (frames - 1) + [303, 304, VISION.eov]
    run = {"start": 7, "end": 7 + len(tokens), "trained": True, "modality": "vision", "tokens": tokens}
    spans = [
        {"start": 0, "end": 2, "kind": "user", "ref": '{"start": 9, "rate": 9}'},
        {"start": 2, "end": 2 + len(tokens), "kind": kind, "ref": ref},
    ]
    segment = {"place": [5, 99], "spans": spans, "turns": [], "contexts": [], "chunks": [], "runs": [run]}
    (clip,) = blocks(segment, VISION)
    assert isinstance(clip, Clip)
    return clip


def test_frames_have_the_times_that_their_span_says():
    clip = clip_with('{"start": 1.5, "rate": 4, "frames": 3, "of": 52, "sampling": "window"}')
    assert [f.seconds for f in clip.frames] == [1.5, 1.75, 2.0] and clip.ref["of"] == 52
    assert [f.seconds for f in clip_with('{"start": 0, "rate": 0.5}').frames] == [0, 2, 4]
    assert clip_with("", frames=1).kind == "video" and clip_with("", frames=2, kind="image").kind == "image"


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "moby",
        "[" * 100_000,
        "[1, 4]",
        '{"start": 1.5, "rate": 4, "frames": 4}',
        '{"rate": 4}',
        '{"start": 0, "rate": 0}',
        '{"start": -1, "rate": 4}',
        '{"start": NaN, "rate": Infinity}',
        '{"start": 1' + "0" * 400 + ', "rate": 4}',
        '{"start": true, "rate": "4"}',
        '{"start": null, "rate": []}',
    ],
)
def test_frames_without_a_plain_span_have_no_times(ref):
    assert [f.seconds for f in clip_with(ref).frames] == [None] * 3


def test_times_read_as_on_a_clock():
    assert [clock(s) for s in (0, 1.5, 59.996, 3599.99, 3600, 360_000)] == [
        "00:00.00",
        "00:01.50",
        "01:00.00",
        "59:59.99",
        "1:00:00.00",
        "100:00:00.00",
    ]


def detail_of(tokens: Any, trained: Any, spans: list[Span], decode: Any = None, low: int = 3) -> dict[str, Any]:
    """Take a row of two segments apart, the first of `low` tokens, the second with any spans at all."""
    ids, flags = np.array(tokens), np.array(trained, bool)
    counts = [int(np.count_nonzero(flags & of)) for of in (ids < 300, ids >= 300)]
    segments = (
        Segment(low, "text", "s", "r", 0, 0, 0),
        Segment(len(ids), "book-qa", "qa", "moby#7", 0, *counts, tuple(spans)),
    )
    row = Row(np.concatenate((np.full(low, 9), ids)), segments, encode_runs(np.concatenate((np.zeros(low), flags)) > 0))
    dataset = SimpleNamespace(
        row=lambda _: row,
        weights=Rule.LWM,
        starts=np.array([0]),
        vocabulary=VISION,
        index=SimpleNamespace(column=lambda _: [SimpleNamespace(as_py=lambda: "u.arrow")]),
    )
    return row_detail(cast(Dataset, dataset), 0, None, decode)


def book_qa(chunks: int, size: int, asked: list[int]) -> tuple[list[int], list[bool], list[Span]]:
    """Make a chat of a book's chunks, numbered from 7, and questions of four tokens with answers of two."""
    tokens, spans = [1, 5], []
    for i in range(chunks):
        told = {"chunk": 7 + i, "start": size * (7 + i), "end": size * (8 + i)}
        spans.append(Span(len(tokens), len(tokens) + size, "chunk", json.dumps(told)))
        tokens += [10 + i % 200] * size
    spans.append(Span(2, len(tokens), "book", '{"record": "moby.txt"}'))
    trained, low = [False] * len(tokens), 0
    for i in asked:
        tokens, trained = [*tokens, 6, 6, 6, 7, 8, 2], [*trained, *[False] * 4, True, True]
        spans.append(Span(low, len(tokens) - 2, "user", json.dumps({"chunk": i})))
        spans.append(Span(len(tokens) - 2, len(tokens), "assistant", json.dumps({"chunk": i, "model": "cloze"})))
        low = len(tokens)
    return tokens, trained, spans


WORDS = {5: "SYSTEM", 6: "why ", 7: "ASSISTANT:", 8: "because", 2: "", 1: "", 9: "other"}


def spell(ids: list[int]) -> str:
    return "".join(WORDS.get(i, chr(55 + i)) for i in ids)


def test_a_chat_about_a_book_is_shown_turn_by_turn():
    detail = detail_of(*book_qa(5, 4, [8, 11, 13]), spell)
    shown = printed(render_row(detail), width=200).partition("segment 2")[2]
    assert [line.rstrip() for line in shown.splitlines()[1:]] == [
        "book-qa from qa, record moby#7",
        "tokens 3 to 42, positions 0 to 39; 6 trained text tokens of weight 0.0833333",
        "turns: 3 user, 3 assistant by cloze; 15.00% of the tokens trained",
        "context: 5 chunks of moby.txt, tokens 5 to 24",
        "questions: 3 about 3 chunks; 1 of them about what is not all in a context before the answer",
        "0% ▕········█·······················█·······▏ 100%, up to 1 question a cell",
        'span 2 to 22: book {"record": "moby.txt"}',
        "user: tokens 3 to 28, not trained, about chunk 8, tokens 9 to 12, 20% into the context",
        "SYSTEM",
        "⟨chunk 7⟩ AAAA",
        "⟨… 12 tokens …⟩",
        "⟨chunk 11⟩ EEEE",
        "why why why ASSISTANT:",
        "assistant: tokens 29 to 30, trained",
        "⟦because⟧",
        "user: tokens 31 to 34, not trained, about chunk 11, tokens 21 to 24, 80% into the context",
        "why why why ASSISTANT:",
        "assistant: tokens 35 to 36, trained",
        "⟦because⟧",
        "user: tokens 37 to 40, not trained, about chunk 13, whose place no span tells",
        "why why why ASSISTANT:",
        "assistant: tokens 41 to 42, trained",
        "⟦because⟧",
    ]
    full = printed(render_row(detail, full=True), width=200)
    assert all(f"⟨chunk {7 + i}⟩ {letter * 4}\n" in full for i, letter in enumerate("ABCDE")) and "…" not in full
    assert full.count("\nspan ") == 5 + 1 + 6


def test_a_chat_of_a_thousand_chunks_is_short_unless_asked_for():
    tokens, trained, spans = book_qa(1000, 8, [7 + i * 389 % 1000 for i in range(1000)])
    odd = [Span(i, i + 1, "odd", "?") for i in range(3, 900)]
    detail = detail_of(tokens, trained, spans + odd, spell)
    shown, full = (printed(render_row(detail, full), width=200) for full in (False, True))
    assert len(shown.splitlines()) < 90 and "⟨… 1,976 turns, 5,928 tokens …⟩" in shown and "⟨… 886 spans …⟩" in shown
    assert shown.count("ASSISTANT:") == 12 and "⟨… 7,984 tokens …⟩" in shown
    assert full.count("ASSISTANT:") == 1000 and full.count("⟨chunk ") == 1000 and "…" not in full
    assert full.count("span ") == 1000 + 1 + 2000 + 897


KINDS = st.sampled_from(["user", "assistant", "book", "chunk", "chunk", "image"])
REFS = st.sampled_from(["", "[", '{"chunk": 1, "start": 0, "end": 3, "model": "m", "record": "r"}', "7"])
SPANS = st.lists(
    st.builds(
        lambda start, size, kind, ref: Span(start, start + size, kind, ref),
        st.integers(-1, 24),
        st.integers(-1, 9),
        KINDS,
        REFS,
    ),
    max_size=12,
)
IN_ROWS = st.sampled_from([5, 5, 5, 6, 300, VISION.eov])
ROWS = st.lists(st.tuples(IN_ROWS, st.booleans()), min_size=20, max_size=24)


@settings(max_examples=150, deadline=None)
@given(ROWS, SPANS, st.booleans())
def test_rows_with_any_spans_at_all_are_shown_whole(pairs, spans, full):
    tokens, trained = zip(*pairs, strict=True)
    detail = detail_of(tokens, trained, spans)
    json.dumps(detail)
    segment = detail["segments"][1]
    shown = [(t, run["trained"]) for run in segment["runs"] for t in run["tokens"]]
    assert shown == list(pairs)
    edges = {edge for name in ("turns", "contexts", "chunks") for item in segment[name] for edge in item["place"]}
    assert all(not edges & set(range(run["start"] + 1, run["end"])) for run in segment["runs"])
    found = list(blocks(segment, VISION))
    assert [block_start(block) for block in found] == sorted({block_start(block) for block in found})
    clips = [block for block in found if isinstance(block, Clip)]
    frames = [t for clip in clips for f in clip.frames for t in segment_ids(segment, f.start, f.end)]
    assert frames == [t for t in tokens if t >= 300]
    for block in found:
        places = {run["start"] for run in block} if isinstance(block, list) else {f.start for f in block.frames}
        for items in (segment["turns"], segment["contexts"] if isinstance(block, list) else []):
            assert len({begin(holder(items, place)) for place in places}) == 1
    text = printed(render_row(detail, full), width=500)
    assert text.count("⟨chunk") == len(segment["chunks"]) or not full
    roles = [line.split(":")[0] for line in text.splitlines() if line.startswith(("user: ", "assistant: "))]
    assert roles == [turn["role"] for turn in segment["turns"]]


def segment_ids(segment: dict[str, Any], low: int, high: int) -> list[int]:
    return [t for run in segment["runs"] for p, t in enumerate(run["tokens"], run["start"]) if low <= p < high]


def test_spans_that_lack_a_field_are_left_out():
    spans: list[Any] = [Span(None, 3, "user", ""), Span(1, 2, None, None), Span(0, 2, "user", "")]  # type: ignore[arg-type]
    (_, segment) = detail_of([1, 5, 6], [False] * 3, spans)["segments"]
    assert segment["spans"] == [Span(0, 2, "user", "")._asdict()] and len(segment["turns"]) == 1
