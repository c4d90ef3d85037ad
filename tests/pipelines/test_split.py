"""The split goes by content: whatever holds a picture, a clip or a book is on the side of it, or on none."""

import json
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.packing.dataset import Dataset
from worldloom.packing.example import TEXT, Draft, Example, Span
from worldloom.packing.row import example_row, row_examples
from worldloom.pipelines.build import describe_packed, pack_job
from worldloom.pipelines.job import finish, run_in_memory
from worldloom.pipelines.plan import shape_of
from worldloom.pipelines.split import content_keys, in_eval, side_of
from worldloom.recipe import PackSection, Recipe
from worldloom.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test", codes=64, vision_digest="codes")
SHARE = 0.4


def content(name: str) -> str:
    return blake2b(name.encode(), digest_size=16).hexdigest()


def chat(record: str, media: list[str]) -> Example:
    draft = Draft(VOCABULARY)
    draft.add([1, 9], trained=False)
    for name in media:
        draft.add([300, 365], False, "image", json.dumps({"width": 1, "content": content(name)}))
    start = draft.length
    draft.add([7, 2], trained=True)
    draft.span(start, "assistant")
    return draft.example("image-chat", "chats", record)


def text(record: str, length: int) -> Example:
    draft = Draft(VOCABULARY)
    draft.add([1], trained=False)
    draft.add([5] * length, True, "document", '{"url": "a://b"}')
    return draft.example(TEXT, "books", record)


def test_the_keys_are_the_contents_or_the_hash_of_the_whole() -> None:
    exact = bytes(range(16))
    spans = (Span(0, 1, "image", '{"content": "aa"}'), Span(1, 2, "book", '{"of": 1, "content": "bb"}'))
    assert content_keys(spans, exact) == {"aa", "bb"}
    others = (Span(0, 1, "user"), Span(0, 1, "x", '"a \\"content\\""'), Span(0, 1, "x", '{"a": {"content": "cc"}}'))
    assert content_keys(others, exact) == {exact.hex()}
    assert content_keys((*others, spans[0]), exact) == {"aa"}


STRANGE = ['["content"', "[" * 10**5 + '"content"', '{"content": ["x"]}', '{"content": {"x": 1}}', '{"content": null}']


@pytest.mark.parametrize("ref", [*STRANGE, '{"content": 7}', '{"content": true}', '["content"]', '"content"'])
def test_what_is_no_content_tells_nothing(ref: str) -> None:
    exact = bytes(range(16))
    assert content_keys((Span(0, 1, "image", ref),), exact) == {exact.hex()}
    assert content_keys((Span(0, 1, "image", ref), Span(0, 1, "x", '{"content": "aa"}')), exact) == {"aa"}


@given(st.lists(st.text(max_size=5), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_an_example_is_on_the_side_of_all_its_contents(keys: list[str], share: float, seed: int) -> None:
    sides = ["eval" if in_eval(seed, share, key) else "train" for key in keys]
    assert side_of(seed, share, keys) == (sides[0] if len(set(sides)) == 1 else "both")


class Side:
    """What packing one side made."""

    def __init__(self, examples: str, out: str, **section: Any):
        job = pack_job(examples, out, PackSection.model_validate({"length": 32, **section}))
        run_in_memory(job)
        self.ledger = finish(job, describe_packed(job), 0.0)["ledger"]
        self.pieces = [piece for row in Dataset(out) for piece in row_examples(row)]
        self.records = {piece.record for piece in self.pieces}


def contents(piece: Example) -> set[str]:
    return {json.loads(s.ref)["content"] for s in piece.spans if s.kind == "image"}


@pytest.mark.parametrize("seed", range(4))
def test_no_content_is_on_both_sides(tmp_path: Path, write_examples: Callable[..., str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    chats = [chat(f"c{i}", [f"m{m}" for m in rng.integers(0, 12, rng.integers(0, 4))]) for i in range(60)]
    books = [text(f"b{i}", int(rng.integers(5, 150))) for i in range(20)]
    rows = {e.record: (e, bytes.fromhex(content(e.record))) for e in (*chats, *books)}
    units = {"chats-0": [rows[c.record] for c in chats], "books-0": [rows[b.record] for b in books]}
    url = write_examples(str(tmp_path / "examples"), units, VOCABULARY, seed, SHARE)
    sides = {name: Side(url, str(tmp_path / name), split=name) for name in ("train", "eval", "all")}
    train, held = sides["train"], sides["eval"]
    assert not {c for p in train.pieces for c in contents(p)} & {c for p in held.pieces for c in contents(p)}
    expected: dict[str, set[str]] = {"train": set(), "eval": set(), "both": set()}
    for e, exact in rows.values():
        on = {in_eval(seed, SHARE, key) for key in contents(e) or {exact.hex()}}
        expected["both" if len(on) > 1 else "eval" if True in on else "train"].add(e.record)
    assert (train.records, held.records) == (expected["train"], expected["eval"]) and expected["both"]
    assert sides["all"].records == set(rows) and not train.records & held.records
    for mine, other in ((train, held), (held, train)):
        reasons = mine.ledger["reasons"]
        assert mine.ledger["read"] == len(rows) == len(mine.records) + sum(reasons.values())
        assert reasons["dropped: on both sides of the split"] == len(expected["both"])
        assert reasons["dropped: other side of the split"] == len(other.records)
    windows = Counter((p.record, p.start) for side in (train, held) for p in side.pieces if p.task == TEXT)
    assert windows == Counter((p.record, p.start) for p in sides["all"].pieces if p.task == TEXT)


def test_a_picture_in_a_pair_and_in_a_chat_is_on_one_side() -> None:
    pair = Draft(VOCABULARY)
    pair.add([1], False)
    pair.add([300, 365], True, "image", "{}")  # a pair's hash is that of its frames
    for i in range(20):
        exact = bytes.fromhex(content(f"m{i}"))
        sides = [
            side_of(3, SHARE, content_keys(e.spans, h))
            for e, h in ((pair.example("image", "s", "r"), exact), (chat("c", [f"m{i}"] * 2), bytes(16)))
        ]
        assert sides[0] == sides[1]


def test_a_plan_takes_the_same_sides() -> None:
    recipe = Recipe.model_validate(
        {
            "seed": 5,
            "eval": SHARE,
            "vocabulary": {"text": "x"},
            "sources": [{"name": "b", "kind": "books", "path": "x"}],
        }
    )
    for i in range(20):
        e, exact = chat(f"c{i}", ["m1", f"m{i}"][: i % 3]), bytes.fromhex(content(f"c{i}"))
        shape = shape_of(example_row(e, VOCABULARY, exact, np.empty(0, np.uint64)), recipe, recipe.sources[0], set())
        assert shape.side == side_of(5, SHARE, contents(e) or {exact.hex()})
