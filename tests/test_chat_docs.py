"""The worked examples of docs/chat-data.md: each row, built, has the ids and the trained flags that stand there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from worldloom.cli import main
from worldloom.packing.dataset import open_dataset
from worldloom.packing.row import Row, decode_runs
from worldloom.pipelines import book_questions, books
from worldloom.pipelines.book_questions import Passage, Question
from worldloom.pipelines.models import text_tokenizer
from worldloom.pipelines.records import TextDocument
from worldloom.recipe import Recipe
from worldloom.tokenizers.codebook import Codebook

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
PAGE = (Path(__file__).parents[1] / "docs" / "chat-data.md").read_text()
EXAMPLE = re.compile(
    r"^### ([^\n]*)\n(?:(?!^#).)*?```json (row|pair|book)\n(.*?)```\n\n```text ids\n(.*?)```", re.DOTALL | re.MULTILINE
)
FOUND = EXAMPLE.findall(PAGE)
SIZE, GREYS = 32, 8


def ids(lines: str) -> Iterator[tuple[int, bool]]:
    """Read ids, `4*7` for four times 7, with the flag of their line."""
    for line in lines.strip().splitlines():
        sign, *words = line.split()
        for word in words:
            times, _, token = word.rpartition("*")
            yield from [(int(token), sign == "+")] * int(times or 1)


def grey(number: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), 32 * (number % GREYS), np.uint8)


def clip(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"qp": "0", "threads": "1"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv444p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(number))))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_model: Path) -> Path:
    path = tmp_path_factory.mktemp("chats")
    patches = np.stack([grey(k)[:16, :16] for k in range(GREYS)])
    Codebook(patches, SIZE).save(str(path / "greys.npz"))
    for number in range(GREYS):
        Image.fromarray(grey(number)).save(path / f"grey-{number}.png")
    clip(path / "thirty.mp4", 30)
    clip(path / "v_two.mp4", 2)
    return path


def recipe(folder: Path, llama_model: Path, source: dict[str, Any]) -> Path:
    vocabulary = {"text": str(llama_model), "vision": {"kind": "codebook", "path": "greys.npz"}}
    path = folder / f"{source['name']}.yaml"
    path.write_text(yaml.safe_dump({"vocabulary": vocabulary, "sources": [source]}))
    return path


def only_row(folder: Path, llama_model: Path, source: dict[str, Any]) -> Row:
    name = source["name"]
    out = folder / f"out-{name}"
    assert main(["build", str(recipe(folder, llama_model, source)), "--out", str(out)]) == 0
    examples = open_dataset(str(out / "examples"))
    assert examples.rows == 1
    return examples.row(0)


def build_chat(row: str, folder: Path, llama_model: Path, name: str) -> Row:
    (folder / f"{name}.jsonl").write_text(json.dumps(json.loads(row)) + "\n")
    source = {"name": name, "kind": "chat", "path": f"{name}.jsonl", "filters": {"min_side": SIZE}}
    return only_row(folder, llama_model, source)


def build_pair(row: str, folder: Path, llama_model: Path, name: str) -> Row:
    pair = json.loads(row)
    (folder / f"{name}.jsonl").write_text(json.dumps({"caption": pair["caption"], "image": pair["image"]}) + "\n")
    source = {"name": name, "kind": "image-text", "path": f"{name}.jsonl", "render": {"form": "chat"}}
    return only_row(folder, llama_model, source | {"columns": {"caption": "caption", "media": "image"}})


def build_book(row: str, folder: Path, llama_model: Path, name: str) -> Row:
    book = json.loads(row)
    source = {"name": name, "kind": "book-questions", "path": "p", "chunk": 16}
    made = Recipe.model_validate({"vocabulary": {"text": str(llama_model)}, "sources": [source]})
    encoded = books.Encoded(text_tokenizer(str(llama_model)).encode(book["text"]), b"\0" * 16, "0" * 32)
    asked = [Question(0, question, answer, {}) for question, answer in book["questions"]]
    passage = Passage(TextDocument("b", "w", book["text"]), encoded, encoded.ids, 0, asked)
    found = book_questions.row(made, made.sources[0], passage)  # type: ignore[arg-type]
    assert isinstance(found, Row)
    return found


BUILD = {"row": build_chat, "pair": build_pair, "book": build_book}


@pytest.mark.parametrize(("title", "form", "row", "lines"), FOUND, ids=[title for title, *_ in FOUND])
def test_a_worked_example_is_what_is_built(
    folder: Path, llama_model: Path, title: str, form: str, row: str, lines: str
) -> None:
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    found = BUILD[form](row, folder, llama_model, name)
    expected = list(ids(lines))
    assert found.tokens.tolist() == [token for token, _ in expected]
    assert decode_runs(found.trained).tolist() == [trained for _, trained in expected]


def test_there_is_one_for_every_shape() -> None:
    assert [form for _, form, _, _ in FOUND] == ["row"] * 5 + ["pair", "book"]
    shapes = [set(json.loads(row)) for _, form, row, _ in FOUND if form == "row"]
    assert all(any(key in shape for shape in shapes) for key in ("data", "messages", "image", "video", "q"))
