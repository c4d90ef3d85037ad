"""Books with questions, against slow counting: every token in one chunk, every question about one in its context."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.cli import main
from worldloom.packing.dataset import Dataset, open_dataset
from worldloom.packing.row import Segment
from worldloom.packing.verify import verify
from worldloom.pipelines import books, question_rows
from worldloom.pipelines.asking.outcome import Outcome
from worldloom.pipelines.book_questions import SPARE, Cost, Question, choose, chunks, fitting
from worldloom.pipelines.media import Unfit
from worldloom.pipelines.records import TextDocument
from worldloom.recipe import Recipe
from worldloom.sources import BookQuestionsSource
from worldloom.tokenizers.text import load

BOOKS = {
    "fox.txt": "The fox went over the river. He carried seven lanterns in winter. Nobody saw him at the mill. " * 9,
    "mill.txt": "A miller kept four brown geese behind the door. They spoke of weather and of bread all morning. " * 30,
    "short.txt": "One word.",
}


@pytest.fixture
def corpus(tmp_path: Path, small_model: Path) -> Path:
    (tmp_path / "books").mkdir()
    for name, text in BOOKS.items():
        (tmp_path / "books" / name).write_text(text)
    source = {"name": "qa", "kind": "book-questions", "path": "books", "chunk": 50, "length": 400, "trained": 0.1}
    recipe = {
        "vocabulary": {"text": str(small_model)},
        "sources": [source | {"unit_bytes": 1, "filters": {"min_tokens": 20}}],
        "pack": {"length": 400, "weights": "lwm"},
        "limits": {"failed": 0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def run(command: str, corpus: Path, out: str = "out", *flags: str) -> None:
    assert main([command, str(corpus / "recipe.yaml"), "--out", str(corpus / out), *flags]) == 0


def told(segment: Segment, kind: str) -> list[tuple[int, int, dict[str, Any]]]:
    return [(s.start, s.end, json.loads(s.ref)) for s in segment.spans if s.kind == kind]


def segments(dataset: Dataset) -> Iterator[tuple[np.ndarray, Segment]]:
    for number in range(dataset.rows):
        row, low = dataset.row(number), 0
        for segment in row.segments:
            yield row.tokens[low : low + segment.length].astype(int), segment
            low += segment.length


def check_contexts(dataset: Dataset, books: dict[str, np.ndarray], length: int, trained: float) -> None:
    """Hold every example against its book's ids: the chunks side by side, each question about one of them."""
    for tokens, segment in segments(dataset):
        ((low, high, book),) = told(segment, "book")
        shown = told(segment, "chunk")
        assert [start for start, _, _ in shown] + [high] == [low] + [end for _, end, _ in shown]
        for start, end, chunk in shown:
            assert np.array_equal(tokens[start:end], books[book["record"]][chunk["start"] : chunk["end"]])
        inside = {chunk["chunk"] for _, _, chunk in shown}
        asked = [ref["chunk"] for _, _, ref in told(segment, "user")]
        answered = [ref["chunk"] for _, _, ref in told(segment, "assistant")]
        assert asked == answered and len(set(asked)) == len(asked) > 0 and set(asked) <= inside
        assert len(tokens) <= length and segment.trained_text <= trained * len(tokens)


def test_books_become_contexts_with_questions(corpus: Path, small_model: Path) -> None:
    run("build", corpus)
    assert verify(str(corpus / "out")) == []
    model = load(str(small_model))
    books = {name: model.encode(text) for name, text in BOOKS.items()}
    asked = open_dataset(str(corpus / "out" / "questions"))
    examples = open_dataset(str(corpus / "out" / "examples"))
    # every chunk is one record of the question job, and every chunk stands in one passage
    cut = {name: -(-len(ids) // 50) for name, ids in books.items() if len(ids) >= 20}
    assert asked.manifest["ledger"]["read"] == sum(cut.values()) + 1  # and the book that is too short
    assert asked.manifest["ledger"]["reasons"]["dropped: below min_tokens"] == 1
    assert asked.manifest["ledger"]["usage"] == {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    check_contexts(asked, books, 400, 1.0)
    check_contexts(examples, books, 400, 0.1)
    check_contexts(open_dataset(str(corpus / "out" / "packed-400")), books, 400, 0.1)
    seen = [(book["record"], chunk["chunk"]) for _, s in segments(examples) for _, _, book in told(s, "book")
            for _, _, chunk in told(s, "chunk")]  # fmt: skip
    assert len(set(seen)) == len(seen)
    assert {task for _, s in segments(examples) for task in [s.task]} == {"book-qa"}


def test_questions_alone_are_those_of_a_build(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("build", corpus, "whole")
    run("questions", corpus)
    assert "questions: " in capsys.readouterr().out
    run("build", corpus, "out", "--workers", "2")
    for name in ("questions", "examples", "packed-400"):
        assert open_dataset(str(corpus / "out" / name)).root == open_dataset(str(corpus / "whole" / name)).root


def reports(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "units").iterdir()}


def test_only_what_a_change_touches_is_made_again(corpus: Path) -> None:
    """Another length asks nothing again; another text asks about that book alone; a denied book is gone."""
    run("build", corpus)
    out = corpus / "out"
    asked, made = reports(out / "questions"), reports(out / "examples")
    run("build", corpus, "out", "--set", "sources.qa.length=300")
    assert reports(out / "questions") == asked and reports(out / "examples") != made
    run("build", corpus)
    (corpus / "books" / "fox.txt").write_text(BOOKS["mill.txt"][:2000])
    run("build", corpus)
    now = reports(out / "questions")
    assert [name for name in asked if now[name] != asked[name]] == ["qa-0000000.json"]
    run("build", corpus, "out", "--set", "sources.qa.deny=[mill.txt]")
    run("build", corpus, "fresh", "--set", "sources.qa.deny=[mill.txt]")
    for name in ("questions", "examples", "packed-400"):
        fresh = open_dataset(str(corpus / "fresh" / name))
        assert open_dataset(str(out / name)).root == fresh.root
        assert "mill.txt" not in {ref["record"] for _, s in segments(fresh) for _, _, ref in told(s, "book")}
    assert verify(str(out)) == []


def test_a_passage_may_be_denied(corpus: Path) -> None:
    """By the id that is shown for it, or its content: a build that goes on ends where a fresh one does."""
    run("build", corpus)
    examples = open_dataset(str(corpus / "out" / "examples"))
    named = examples.row(0).segments[0].record
    denied = f"[{named},{examples.row(examples.rows - 1).exact.hex()}]"
    for out in ("out", "fresh"):
        run("build", corpus, out, "--set", f"sources.qa.deny={denied}")
    again = open_dataset(str(corpus / "out" / "examples"))
    assert again.manifest["ledger"]["reasons"]["dropped: denied"] == 2 and again.rows == examples.rows - 2
    for name in ("questions", "examples", "packed-400"):
        assert open_dataset(str(corpus / "out" / name)).root == open_dataset(str(corpus / "fresh" / name)).root


def test_books_of_one_id_are_told_apart(corpus: Path) -> None:
    rows = [{"id": "same", "text": text} for text in (BOOKS["fox.txt"], BOOKS["mill.txt"], BOOKS["fox.txt"])]
    (corpus / "books.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("build", corpus, "out", "--set", "sources.qa.path=" + str(corpus / "books.jsonl"), "--set",
        "sources.qa.columns.id=id", "--set", "sources.qa.unit_bytes=100000")  # fmt: skip
    assert verify(str(corpus / "out")) == []
    texts = {books.content_hash(row["text"]).hex() for row in rows}
    examples = open_dataset(str(corpus / "out" / "examples"))
    assert {ref["content"] for _, s in segments(examples) for _, _, ref in told(s, "book")} == texts


def test_a_book_and_questions_about_it_are_no_near_duplicates(corpus: Path) -> None:
    recipe = yaml.safe_load((corpus / "recipe.yaml").read_text()) | {"duplicates": "near"}
    recipe["sources"].append({"name": "plain", "kind": "books", "path": "books"})
    (corpus / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run("build", corpus)
    listed = pq.read_table(corpus / "out" / "examples" / "duplicates.parquet").to_pylist()
    assert listed and all(d["source"] == d["of_source"] == "qa" for d in listed)  # the miller's book repeats itself


def test_what_had_no_reply_is_asked_again(corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A run that failed asks again by itself; one within the limit where `questions` is called again."""
    healthy, asked = question_rows.ask, []

    def ask(chunks: Any, section: Any, seed: int, replies: Any) -> Iterator[Outcome]:
        for number, outcome in enumerate(healthy(chunks, section, seed, replies)):
            asked.append(outcome.chunk.key)
            down = outcome.chunk.book == "mill.txt" and number < 3
            yield outcome._replace(found=Unfit("failed", "no reply", "500")) if down else outcome

    run("build", corpus, "whole")
    monkeypatch.setattr(question_rows, "ask", ask)
    recipe = str(corpus / "recipe.yaml")
    assert main(["build", recipe, "--out", str(corpus / "out")]) == 1
    assert "what has no reply is asked again" in capsys.readouterr().err
    first = len(asked)
    run("questions", corpus, "out", "--set", "limits.failed=0.5")  # within the limit: complete, with a gap
    mill = [key for key in asked if key.startswith("mill.txt")]
    assert asked[first:] == mill[: len(mill) // 2]  # that unit alone
    run("build", corpus, "out", "--set", "limits.failed=0.5")
    assert len(asked) == first + len(mill) // 2
    monkeypatch.setattr(question_rows, "ask", healthy)
    run("questions", corpus)
    run("build", corpus)
    for name in ("questions", "examples", "packed-400"):
        assert open_dataset(str(corpus / "out" / name)).root == open_dataset(str(corpus / "whole" / name)).root


@pytest.mark.parametrize("strip", [False, True])
def test_a_book_is_one_content_however_it_is_read(small_model: Path, strip: bool) -> None:
    """With its header or without, with either end of lines: the split goes by it."""
    start, end = "*** START OF THE PROJECT GUTENBERG EBOOK X ***", "*** END OF THE PROJECT GUTENBERG EBOOK X ***"
    text = f"Title\n{start}\n{BOOKS['fox.txt']}\n{end}\nLicence\n"
    source = {"name": "s", "kind": "books", "path": "p", "strip_gutenberg": strip}
    recipe = Recipe.model_validate({"vocabulary": {"text": str(small_model)}, "sources": [source]})
    found = [
        books.encode(recipe, recipe.sources[0], TextDocument("b", "w", t), frozenset())
        for t in (text, text.replace("\n", "\r\n"))
    ]  # type: ignore[arg-type]
    assert {b.content for b in found} == {books.content_hash(text).hex()}  # type: ignore[union-attr]


def test_a_plan_counts_what_is_built(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("build", corpus)
    capsys.readouterr()
    assert main(["plan", str(corpus / "recipe.yaml"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    made = open_dataset(str(corpus / "out" / "examples")).manifest
    assert plan["examples"]["tokens"] == made["tokens"]
    assert plan["sources"]["qa"]["kept"] == made["ledger"]["kept"]
    assert plan["packs"]["packed-400"]["sequences"] == open_dataset(str(corpus / "out" / "packed-400")).rows


def test_a_recipe_without_books_asks_nothing(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = yaml.safe_load((corpus / "recipe.yaml").read_text())
    recipe["sources"] = [{"name": "b", "kind": "books", "path": "books"}]
    (corpus / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["questions", str(corpus / "recipe.yaml"), "--out", str(corpus / "out")]) == 2
    assert "nothing to ask" in capsys.readouterr().err


def test_real_books(real_data: Path, llama_model: Path, tmp_path: Path) -> None:
    """Chunks of 1,000 tokens cover every token once, and sequences of 128K and of 1M ask about what they hold."""
    model, paths = load(str(llama_model)), sorted((real_data / "books").glob("*.txt"))
    source = {"name": "qa", "kind": "book-questions", "path": str(real_data / "books" / "*.txt")}
    recipe = {"vocabulary": {"text": str(llama_model)}, "sources": [source]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ids = {path.name: model.encode(path.read_bytes().decode("utf-8-sig")) for path in paths}
    asked = {}
    for length in (131072, 1048576):
        run("build", tmp_path, "out", "--set", f"sources.qa.length={length}", "--set", f"pack.length={length}")
        packed = open_dataset(str(tmp_path / "out" / f"packed-{length}"))
        check_contexts(packed, ids, length, 0.01)
        assert max(segment.length for _, segment in segments(packed)) > 0.99 * length
        asked[length] = reports(tmp_path / "out" / "questions")
    assert asked[131072] == asked[1048576]
    questions = open_dataset(str(tmp_path / "out" / "questions"))
    covered = sorted(
        (book["record"], chunk["start"], chunk["end"])
        for _, s in segments(questions)
        for _, _, book in told(s, "book")
        for _, _, chunk in told(s, "chunk")
    )
    lengths = {name: len(book) for name, book in ids.items()}
    assert covered == [(b, low, min(low + 1000, n)) for b, n in lengths.items() for low in range(0, n, 1000)]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_as_many_chunks_are_joined_as_fit(data: st.DataObject) -> None:
    """The next chunk would not fit, or there is none: against trying every number of chunks."""
    size = data.draw(st.integers(16, 60))
    sizes = [size] * data.draw(st.integers(0, 30)) + [data.draw(st.integers(1, size))]
    length = data.draw(st.integers(2 * size, 20 * size))
    source = BookQuestionsSource.model_validate(
        {"name": "s", "kind": "book-questions", "path": "p", "chunk": size, "length": max(256, length), "trained": 0.2}
    )
    costs = {
        n: Cost(data.draw(st.integers(1, 4 * size)), data.draw(st.integers(1, 9))) for n in range(len(sizes)) if n % 5
    }
    drawn = [Question(n, "", "", {}) for n in data.draw(st.permutations(sorted(costs)))]

    def tokens(count: int) -> int:
        chosen = choose(drawn, costs, 0, count, sum(sizes[:count]), source)
        assert len({q.chunk for q in chosen}) == len(chosen) and all(q.chunk < count for q in chosen)
        return sum(sizes[:count]) + sum(sum(costs[q.chunk]) + SPARE for q in chosen)

    count = fitting(sizes, 0, drawn, costs, source, length)
    assert count == max((n for n in range(1, len(sizes) + 1) if tokens(n) <= length), default=1)


@given(st.integers(0, 500), st.integers(1, 60))
def test_chunks_miss_no_token(tokens: int, size: int) -> None:
    ids = np.arange(tokens)
    parts = chunks(ids, size)
    assert np.concatenate([ids[:0], *parts]).tolist() == ids.tolist()
    assert all(len(part) == size for part in parts[:-1]) and all(0 < len(part) <= size for part in parts)
