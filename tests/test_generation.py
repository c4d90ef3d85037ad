"""Prompts are training's token for token, and what is generated becomes texts, pictures, videos and replies."""

import argparse
import io
import json
import sys
from pathlib import Path

import av
import jax
import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from worldloom import conversation, generation
from worldloom.errors import UserError
from worldloom.generation import run_generate
from worldloom.pipelines import book_questions, chats, pictured
from worldloom.pipelines.chat_layout import ASSISTANT, USER, Line
from worldloom.pipelines.conversations import read_part
from worldloom.pipelines.encoding import Pending
from worldloom.pipelines.models import vocabulary_of
from worldloom.pipelines.records import ImageText, Media
from worldloom.pipelines.toy.files import write_clips, write_images, write_questions
from worldloom.pipelines.units import Part
from worldloom.recipe import Recipe, VisionSection, VocabularySection
from worldloom.sources import ChatFilters, ChatSource, ImageTextSource, RenderSection, VideoTextSource
from worldloom.studio import Manner, Studio, open_studio
from worldloom.tokenizers.codebook import Codebook
from worldloom.tokenizers.train import train
from worldloom.training import checkpoint
from worldloom.training.config import Model
from worldloom.training.generation.generate import Generator, alone, place
from worldloom.training.model import init

PROSE = ["The red circle moves left on blue ground.", "What shape is it? A circle, a square or a triangle."] * 20
MODEL = Model(preset="debug", width=16, layers=1, heads=2, kv_heads=1, ffn=24)
SIZE, PATCH = 32, 16  # pixels: a grid of 2 x 2 codes


@pytest.fixture(scope="session")
def section(tmp_path_factory) -> VocabularySection:
    """Make small tokenizers of text and pictures."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train(PROSE, str(folder / "text.model"), 300)
    patches = np.random.default_rng(0).integers(0, 256, (24, PATCH, PATCH, 3), dtype=np.uint8)
    Codebook(patches, SIZE).save(str(folder / "codebook.npz"))
    vision = VisionSection(kind="codebook", path=str(folder / "codebook.npz"))
    return VocabularySection(text=str(folder / "text.model"), vision=vision)


@pytest.fixture(scope="session")
def studio(section) -> Studio:
    vocabulary, mesh = vocabulary_of(section), alone()
    params = jax.tree.map(lambda x: 9 * x if x.std() else x, init(jax.random.key(0), MODEL, vocabulary))
    return Studio(Generator(place(params, MODEL, mesh), MODEL, vocabulary, mesh, rows=4), section, Manner())


@pytest.mark.parametrize("form", ["pair", "chat"])
@pytest.mark.parametrize(("medium", "kind"), [("image", ImageTextSource), ("video", VideoTextSource)])
def test_captions_are_written_out_as_in_training(studio, form, medium, kind):
    render = RenderSection(form=form)
    source = kind(name="s", kind=f"{medium}-text", path=["x"], render=render)
    recipe = Recipe(vocabulary=studio.section, sources=[source])
    codes = np.array([[3, 1, 2, 0], [5, 5, 5, 5]][: 1 + (medium == "video")], np.uint16)
    for number in range(4):  # the order of a pair is drawn for each record: some have the caption first
        pending = Pending(ImageText(f"r{number}", "", "a red circle", Media()))
        pending.info |= dict.fromkeys(("width", "height", "start", "rate", "chosen", "total"), 1)
        tokens = pictured.laid_out(pending, codes, recipe, source).tokens.tolist()
        prompt = Studio(studio.generator, studio.section, Manner(render, render)).picture_prompt("a red circle", medium)
        if tokens[: len(prompt)] == prompt:
            first = studio.generator.vocabulary.text_size + int(codes[0, 0])
            assert tokens[len(prompt)] == first
            return
    raise AssertionError("no record has the prompt")


def test_chats_are_written_out_as_in_training(studio, tmp_path):
    """Prompts and the encoded answers, put together, are the tokens of the data set's job, pictures and clips too."""
    write_images(tmp_path, 1, size=SIZE)
    write_clips(tmp_path, 1, size=SIZE, seconds=1)
    write_questions(tmp_path / "images.jsonl", 1)
    write_questions(tmp_path / "clips.jsonl", 1, clips=True)
    for name in ("images", "clips"):
        path = tmp_path / f"{name}.jsonl"
        source = ChatSource(name="c", kind="chat", path=[str(path)], filters=ChatFilters(min_side=1))
        recipe = Recipe(vocabulary=studio.section, sources=[source])
        records = list(read_part(source, Part("c", str(path), 0, -1, path.stat().st_size, "")))
        (row,) = chats.rows(recipe, source, records, frozenset(), tmp_path)
        asked = json.loads(path.read_text())
        answers = [m["content"][0]["text"] for m in asked["messages"] if m["role"] == "assistant"]
        asked["messages"] = [message for message in asked["messages"] if message["role"] == "user"]
        (lines,) = conversation.read([asked], str(tmp_path), studio)
        prompts = conversation.prompts_of(lines, studio)
        assert len(prompts) == len(answers) > 1
        put = [[*p, *studio.text.encode(a), studio.text.eos] for p, a in zip(prompts, answers, strict=True)]
        assert [token for part in put for token in part] == row.tokens.tolist()


def test_answers_that_are_there_are_part_of_the_prompt(studio):
    said = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A red circle."}]
    rows = [{"messages": [*said, {"role": "user", "content": "Where?"}]}]
    (lines,) = conversation.read(rows, "/", studio)
    (prompt,) = conversation.prompts_of(lines, studio)
    text = studio.text
    parts = ["You are a helpful assistant. USER: What? ASSISTANT:", "A red circle."]
    want = [text.bos, *text.encode(parts[0]), *text.encode(parts[1]), text.eos]
    assert prompt == [*want, *text.encode("USER: Where? ASSISTANT:")]


def test_books_are_written_out_as_in_training(studio, tmp_path):
    (tmp_path / "book.txt").write_text("The red circle moves left. A square.", "utf-8")
    content = [{"type": "book", "book": "book.txt"}, {"type": "text", "text": "What moves?"}]
    (lines,) = conversation.read([{"messages": [{"role": "user", "content": content}]}], str(tmp_path), studio)
    ids = studio.text.encode("The red circle moves left. A square.")
    question = book_questions.Question(0, "What moves?", "A circle.", {})
    from types import SimpleNamespace

    found = SimpleNamespace(record="b", columns={}, where="")
    passage = book_questions.Passage(found, SimpleNamespace(content="x"), ids, 0, [question])
    trained = book_questions.laid_out(passage, SimpleNamespace(chunk=4))
    want = conversation.prompts_of([Line(USER, trained[0].said), Line(ASSISTANT, [])], studio)
    assert conversation.prompts_of(lines, studio) == want
    assert ids.tolist() == want[0][want[0].index(ids[0]) :][: len(ids)] or ids.tolist()[1:] in [
        want[0][n : n + len(ids) - 1] for n in range(len(want[0]))
    ]


def options(**given):
    """Give the command line's options, all of which have a default."""
    names = ["prompt", "prompts", "out", "tokenizer", "vision", "form", "mesh", "preset", "theta", "cache"]
    names += ["temperature", "top_k", "guidance"]
    return argparse.Namespace(**{**dict.fromkeys(names), "seed": 0, "new_tokens": 5, "frames": 2, "rows": 4, **given})


@pytest.fixture(scope="session")
def run(studio, section, tmp_path_factory) -> Path:
    """Make the folder of a run, whose data's recipe names the tokenizers."""
    from worldloom.training.checkpoint import CHECKPOINTS, Checkpoints
    from worldloom.training.step import State

    folder, data = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("data")
    sources = [{"kind": "image-text", "render": {"form": "chat"}}]
    (data / "recipe.yaml").write_text(yaml.safe_dump({"vocabulary": section.model_dump(), "sources": sources}))
    checkpoint.describe_run(folder, MODEL, studio.generator.vocabulary)
    told = json.loads((folder / checkpoint.RUN).read_text())
    (folder / checkpoint.RUN).write_text(json.dumps(told | {"data": [str(data / "packed-64")]}))
    saved = Checkpoints(folder / CHECKPOINTS, 1, {})
    saved.save(State(params=studio.generator.params, optimizer=(), step=np.int32(1)))
    saved.close()
    return folder


def called(what, run, **given):
    console = Console(file=io.StringIO(), width=1000)
    run_generate(options(what=what, run=str(run), **given), console)
    return console.file.getvalue()


def test_a_run_finds_its_tokenizers_and_manner(run, studio):
    opened = open_studio(str(run))
    assert opened.section == studio.section and opened.generator.vocabulary == studio.generator.vocabulary
    assert (opened.manner.image.form, opened.manner.video.form) == ("chat", "pair")
    assert open_studio(str(run), form="pair").manner.image.form == "pair"


def test_text(run, tmp_path):
    words = called("text", run, prompt=["The red", "What shape"])
    assert words.startswith("The red") and "\nWhat shape" in words
    path = called("text", run, prompt=["The red", "What shape"], out=str(tmp_path)).strip()
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["The red", "What shape"]


def test_images_and_videos(run, tmp_path):
    (tmp_path / "captions.txt").write_text("a red circle\n\na blue square\n")
    given = {"prompts": str(tmp_path / "captions.txt"), "out": str(tmp_path / "made"), "cache": 1000}
    said = called("image", run, **given).splitlines()
    assert "a cache of 1,000 tokens" in said[0] and len(said) == 3
    pictures = np.stack([np.asarray(Image.open(path)) for path in said[1:]])
    model = open_studio(str(run)).vision
    assert (model.decode(model.encode(pictures)) == pictures).all() and pictures.shape == (2, SIZE, SIZE, 3)
    for path in map(Path, called("video", run, **given | {"cache": None}).splitlines()):
        with av.open(str(path)) as film:
            stream = film.streams.video[0]
            assert (stream.codec.name, stream.average_rate, stream.width) == ("h264", 4, SIZE)
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
        stills = [np.asarray(Image.open(still)) for still in sorted(path.with_suffix("").iterdir())]
        assert len(frames) == len(stills) == 2
        assert np.abs(np.stack(frames) / 255 - np.stack(stills) / 255).mean() < 0.2  # noise, which codecs lose


class Parrot:
    """Stand for a model: note what every row hears, and say the numbers of rows and turns, now and then with an end."""

    def __init__(self, generator):
        self.vocabulary, self.rows, self.heard, self.spoke = generator.vocabulary, 4, [], []

    def fitting(self, rows):
        return -(-rows // 4) * 4

    def begin(self, rows, tokens):
        return 0

    def hear(self, state, prompts):
        self.heard.append(prompts)
        return state + 1

    def speak(self, state, new_tokens, sampling, seed, prompts):
        self.spoke.append(list(prompts))
        return state, [[10 + state] * (new_tokens if n % 2 else 2) if n >= 0 else [] for n in prompts]


@pytest.fixture
def parrot(studio, monkeypatch) -> Parrot:
    made = Parrot(studio.generator)
    monkeypatch.setattr(generation, "open_studio", lambda *_, **__: Studio(made, studio.section, studio.manner))
    return made


def test_conversations_of_a_file(parrot, studio, tmp_path):
    write_images(tmp_path, 1, size=SIZE)
    first = [{"type": "image", "image": "000000.png"}, {"type": "text", "text": "What shape is it?"}]
    asked = [{"role": "user", "content": first}, {"role": "user", "content": "And its ground?"}]
    rows = [{"id": 7, "messages": asked}, {"messages": asked[1:]}, *[{"messages": asked}] * 3]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = called("chat", "none", prompts=str(tmp_path / "asked.jsonl")).strip()
    answered = [json.loads(line) for line in Path(path).read_text().splitlines()]
    roles = [[message["role"] for message in row["messages"]] for row in answered]
    assert roles == [["user", "assistant"] * (2 if n != 1 else 1) for n in range(5)] and answered[0]["id"] == 7
    texts = [studio.text.decode(ids).strip() for ids in ([11] * 2, [12] * 2, [11] * 5)]
    said = [[m["content"] for m in row["messages"] if m["role"] == "assistant"] for row in answered]
    assert said[0] == texts[:2] and said[1] == texts[2:]
    (lines,) = conversation.read(rows[:1], str(tmp_path), studio)
    one, two = conversation.prompts_of(lines, studio)
    assert parrot.heard[0] == [one, two_first(studio, rows[1]), one, one]
    # Row 3 was cut off in its first answer, so the end that training has there is read before the next question.
    assert parrot.heard[1] == [two, [], two, [studio.text.eos, *two]]
    assert parrot.spoke == [[0, 1, 2, 3], [0, -1, 2, 3], [4, -1, -1, -1], [4, -1, -1, -1]]


def two_first(studio, row):
    """Write out a conversation of one question."""
    return conversation.prompts_of(next(conversation.read([row], "/", studio)), studio)[0]


def test_a_talk_at_the_terminal(parrot, studio, tmp_path, monkeypatch):
    write_images(tmp_path, 1, size=SIZE)
    said = f"/image {tmp_path}/000000.png\nWhat?\n/image {tmp_path}/none.png\nAnd now?\nWhy?\n/new\nWhy?\n/help\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    words = called("chat", "none")
    assert "none.png" in words and "/new: begin anew" in words
    what, why, anew = (heard[0] for heard in parrot.heard)
    assert anew == two_first(studio, {"messages": [{"role": "user", "content": "Why?"}]})
    assert what[0] == studio.text.bos and sum(token >= parrot.vocabulary.text_size for token in what) == 5
    assert why == studio.text.encode("USER: Why? ASSISTANT:").tolist()


@pytest.mark.parametrize(
    ("what", "given", "words"),
    [
        ("text", {}, "give a --prompt"),
        ("text", {"prompts": "nowhere.txt"}, "nowhere.txt cannot be read"),
        ("text", {"prompt": ["x"], "mesh": "sp=two"}, "--mesh sp=two"),
        ("text", {"prompt": ["x"], "tokenizer": "nowhere.model"}, "nowhere.model cannot be read"),
        ("text", {"prompt": ["x"], "temperature": -1.0}, "numbers from 0 on"),
        ("video", {"prompt": ["x"], "frames": 0}, "--frames 0"),
    ],
)
def test_wrong_calls(run, what, given, words):
    with pytest.raises(UserError, match=words):
        called(what, run, **given)


def test_no_weights_and_no_tokenizers(tmp_path, section):
    with pytest.raises(UserError, match="--tokenizer"):
        open_studio(str(tmp_path))
    with pytest.raises(UserError, match="--preset"):
        open_studio(str(tmp_path), section.text)


def test_a_conversation_that_wants_no_answer(studio):
    said = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A circle."}]
    with pytest.raises(UserError, match="wants none"):
        conversation.completed({"messages": said})
    with pytest.raises(UserError, match="`messages`"):
        conversation.completed({"text": "What?"})


def test_names_of_files():
    assert generation.slug("A red / circle!") == "a-red-circle" and generation.slug("…") == "untitled"
