"""`worldloom evaluate` with models that know the answers, or do not, and with a server in this process."""

import inspect
import json
import re
import threading
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from rich.console import Console
from worldloom import evaluation
from worldloom.cli import main
from worldloom.errors import UserError
from worldloom.evaluation import depths, run_evaluate, run_loss, run_needle, run_toy_world, run_videos, shown_prompt
from worldloom.packing.row import sequence_row
from worldloom.pipelines.chats import rows
from worldloom.pipelines.conversations import read_part
from worldloom.pipelines.pairs import Layout, Marks, render
from worldloom.pipelines.reading.listing import list_parts
from worldloom.pipelines.toy import joined
from worldloom.pipelines.toy.world import MOTIONS, caption, draw, questions, scene
from worldloom.recipe import load_recipe
from worldloom.studio import Manner, open_studio
from worldloom.tokenizers.codebook import Codebook, fit
from worldloom.tokenizers.text import TextTokenizer, load
from worldloom.tokenizers.train import train
from worldloom.toy_scores import shown_in
from worldloom.training import model as models
from worldloom.training.config import Model
from worldloom.training.generation.generate import alone

SIZE = 64
BOOK = " ".join(
    f"The {n}th fox read on. Nobody in the village heard it, and so it read page {7 * n}." for n in range(400)
)
PLACED = re.compile(r"magic ([A-Z][\w ]+) number is: (\d{7})")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("evaluation")
    (made / "book.txt").write_text(BOOK)
    train([BOOK, "You are a helpful assistant. USER: What? ASSISTANT:"] * 4, str(made / "text.model"), 400)
    return made


@pytest.fixture(scope="module")
def text(folder: Path) -> TextTokenizer:
    return load(str(folder / "text.model"))


def frames(number: int, moving: bool = True, size: int = SIZE) -> np.ndarray:
    """Draw what a build takes of a clip or picture."""
    shown = scene(0, number, moving)
    return np.stack([draw(shown, size, n / 4) for n in range(8 if moving else 1)])


@pytest.fixture(scope="module")
def vision() -> Codebook:
    pictures = [frame for n in range(120) for frame in frames(n)]
    return fit(pictures, 400, size=SIZE, patch=8, seed=0)


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=200)


def options(folder: Path, **changed: Any) -> Namespace:
    given = {"run": "run", "out": str(folder), "seed": 0, "depths": 3, "trials": 2, "server": None, "model": None}
    needle = {"haystack": [], "lengths": [600, 400], "needles": 1, "asked": 1, "new_tokens": 24}
    toy = {
        "world": 0,
        "count": 12,
        "image_data": "images",
        "clip_data": "clips",
        "clips": [1, 3],
        "template": joined.TEMPLATE,
    }
    return Namespace(**given | needle | toy | {"at_once": 2, "per_minute": None} | changed)


def studio_of(text: TextTokenizer, reply: Any, vision: Any = None, **more: Any) -> Any:
    """Stand for a model: what `open_studio` returns, as far as it is used."""
    codes = {"codes": vision.codes, "vision_digest": vision.digest} if vision else {}
    vocabulary = replace(text.vocabulary(), **codes)
    return Namespace(
        text=text, vision=vision, manner=Manner(), generator=Namespace(reply=reply, vocabulary=vocabulary), **more
    )


def recall(prompt: str) -> str:
    """Look the numbers up as a perfect reader does."""
    question = prompt.rpartition("What ")[2]
    return " and ".join(digits for city, digits in PLACED.findall(prompt) if city in question)


def test_depths_are_those_of_lwm():
    assert depths(1) == [50] and depths(3) == [0, 50, 100]
    assert depths(20) == [0, 5, 11, 16, 21, 26, 32, 37, 42, 47, 53, 58, 63, 68, 74, 79, 84, 89, 95, 100]


def test_a_model_that_forgets_long_prompts(folder, tmp_path, text, console):
    asked: list[int] = []

    def reply(prompts, new_tokens):
        asked.extend(map(len, prompts))
        assert new_tokens == 24
        return [text.encode(f"It is {recall(text.decode(p))}." if len(p) < 400 else "I forgot 1") for p in prompts]

    run_needle(options(tmp_path, haystack=[str(folder / "book.txt")]), console, text, studio_of(text, reply))
    told = json.loads((tmp_path / "needle.json").read_text())
    assert asked == [400 - 24] * 6 + [600 - 24] * 6
    assert [(c["column"], c["row"], c["right"]) for c in told["cells"]] == [
        *((400, depth, 1.0) for depth in (0, 50, 100)),
        *((600, depth, 0.0) for depth in (0, 50, 100)),
    ]
    assert len(told["trials"]) == 12 and told["right"] == 0.5
    assert len({trial["prompt"] for trial in told["trials"]}) == 12
    assert all(t["expected"][0] in t["reply"] for t in told["trials"] if t["column"] == 400)
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG") and "50.0% right" in console.export_text()


def test_some_of_several_needles(folder, tmp_path, text, console):
    def reply(prompts, new_tokens):
        return [text.encode(recall(text.decode(p))[:7]) for p in prompts]  # the first alone

    given = options(tmp_path, haystack=[str(folder / "book.txt")], needles=4, asked=2)
    run_needle(given, console, text, studio_of(text, reply))
    told = json.loads((tmp_path / "needle.json").read_text())
    assert told["needles"] == 4 and all(sorted(trial["right"]) == [False, True] for trial in told["trials"])
    assert all((cell["right"], cell["all"]) == (0.5, 0.0) for cell in told["cells"])


def test_the_same_run_writes_the_same_bytes(folder, tmp_path, text, console):
    for name in ("a", "b"):
        given = options(tmp_path / name, haystack=[str(folder / "book.txt")])
        reply = lambda prompts, _: [text.encode(recall(text.decode(p))) for p in prompts]  # noqa: E731
        run_needle(given, console, text, studio_of(text, reply))
    for name in ("needle.json", "needle.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_books_that_are_too_short_are_refused_before_anything_is_asked(folder, tmp_path, text, console):
    given = options(tmp_path, haystack=[str(folder / "book.txt")], lengths=[400, 10**6])
    with pytest.raises(UserError, match="needs a haystack of"):
        run_needle(given, console, text, studio_of(text, lambda *_: pytest.fail("asked")))


class Stub(ThreadingHTTPServer):
    """A server that recalls, but refuses prompts of more than `most` characters."""

    most = 10**9

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        said = body["messages"][-1]["content"]
        long = len(said) > self.server.most
        told = (
            {"error": {"message": "too long: 1234567"}}
            if long
            else {"choices": [{"message": {"content": recall(said)}}]}
        )
        data = json.dumps(told).encode()
        self.send_response(400 if long else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_a_server_is_asked_what_a_model_is(folder, tmp_path, text, console, stub):
    url = f"http://127.0.0.1:{stub.server_port}/v1"
    given = options(tmp_path, haystack=[str(folder / "book.txt")], server=url, model="tiny", needles=3, asked=2)
    run_needle(given, console, text, None)
    told = json.loads((tmp_path / "needle.json").read_text())
    assert told["model"] == "tiny" and told["right"] == 1.0 and len(stub.asked) == 12
    body = stub.asked[0]
    assert body["model"] == "tiny" and body["temperature"] == 0 and body["max_tokens"] == 24
    assert body["messages"][0] == {"role": "system", "content": "You are a helpful assistant."}
    assert "ASSISTANT:" not in body["messages"][1]["content"] and len(body["messages"]) == 2

    run_needle(given, console, text, None)  # every reply was kept
    assert len(stub.asked) == 12 and json.loads((tmp_path / "needle.json").read_text()) == told


def test_what_a_server_refuses_counts_as_wrong(folder, tmp_path, text, console, stub):
    url = f"http://127.0.0.1:{stub.server_port}/v1"
    stub.most = 1000
    given = options(tmp_path, haystack=[str(folder / "book.txt")], server=url, model="tiny", at_once=1)
    run_needle(given, console, text, None)
    told = json.loads((tmp_path / "needle.json").read_text())
    shares = {cell["column"]: cell["right"] for cell in told["cells"]}
    assert shares == {400: 1.0, 600: 0.0}
    assert all(trial["reply"] == "" for trial in told["trials"] if trial["column"] == 600)


def test_a_server_that_is_not_there(folder, tmp_path, text, console, stub):
    given = options(tmp_path, haystack=[str(folder / "book.txt")], server="http://127.0.0.1:9/v1", model="tiny")
    with pytest.raises(UserError, match=r"cannot be reached.*start it, or correct --server"):
        run_needle(given, console, text, None)
    with pytest.raises(UserError, match="give an http URL and a model's name"):
        run_needle(options(**vars(given) | {"folder": tmp_path, "server": "nonsense"}), console, text, None)


@pytest.fixture
def packed(text: TextTokenizer, vision: Codebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put scenes 1200 to 1213 into packed sets of images and of clips, some twice and some without a caption."""
    vocabulary, rows, of_world = studio_of(text, None, vision).generator.vocabulary, {}, [*range(1200, 1214), 1201]
    for name, medium in (("images", "image"), ("clips", "video")):
        examples = []
        for n in of_world:
            shown, codes = scene(0, n, name == "clips"), vision.encode(frames(n, name == "clips"))
            layout = Layout(n % 2 == 0, n != 1213, True)
            words = text.encode(caption(shown))
            examples.append(render(words, codes, medium, {}, layout, Marks.of(text), vocabulary, name, str(n)))
        rows[name] = [sequence_row(examples[low : low + 3], 4096, vocabulary) for low in range(0, 15, 3)]
    monkeypatch.setattr(evaluation, "open_dataset", rows.__getitem__)


def test_scenes_are_found_by_their_captions(packed, text, vision):
    vocabulary = studio_of(text, None, vision).generator.vocabulary
    for name, medium in (("images", "image"), ("clips", "video")):
        found = shown_in(evaluation.open_dataset(name), text, vocabulary, 0, medium)
        words = [caption(scene(0, n, name == "clips")) for n in range(1200, 1213)]
        assert [caption(one.scene) for one in found] == words
        for n, one in enumerate(found, 1200):
            assert np.array_equal(one.codes, vision.encode(frames(n, name == "clips")))
        with pytest.raises(UserError, match="no caption is one of the toy world 0: name packed pairs"):
            shown_in(evaluation.open_dataset(name)[-1:], text, vocabulary, 0, "audio")


class Knowing:
    """Look each clip or picture up by its codes, and answer the question about it."""

    def __init__(self, text: TextTokenizer, vision: Codebook, moving: bool):
        self.text, self.cells = text, vision.size**2 // vision.patch**2
        vocabulary, medium = studio_of(text, None, vision).generator.vocabulary, "video" if moving else "image"
        rows = evaluation.open_dataset("clips" if moving else "images")
        self.known = {one.codes.tobytes(): one.scene for one in shown_in(rows, text, vocabulary, 0, medium)}

    def __call__(self, prompts, new_tokens):
        return [self.text.encode(self.answer(np.array(p))) for p in prompts]

    def answer(self, prompt: np.ndarray) -> str:
        seen = prompt[prompt >= self.text.text_size] - self.text.text_size
        frames = seen.reshape(-1, self.cells + 1)[:, :-1].astype(np.uint16)
        question = self.text.decode(prompt[prompt < self.text.text_size].tolist()).split("USER: ")[1].split("\n")[0]
        if named := re.fullmatch(r"In clip (\d+), (.*)", question):
            which, question = int(named[1]) - 1, named[2]
            frames = frames[8 * which : 8 * which + 8]
        shown = self.known.get(frames.tobytes())
        answers = {q.lower(): a for q, a in questions(shown)} if shown else {}
        return answers.get(question.lower(), "I do not know")


def test_all_frames_beside_eight(packed, tmp_path, text, vision, console):
    run_videos(options(tmp_path), console, studio_of(text, Knowing(text, vision, moving=True), vision))
    every, few = (json.loads((tmp_path / f"videos-{name}.json").read_text()) for name in ("all", "8"))
    assert every["right"] == 1.0 and every["template"] == "In clip {number}, {question}"
    assert {cell["column"]: cell["right"] for cell in few["cells"]} == {1: 1.0, 3: 0.0}
    assert [t["expected"] for t in every["trials"]] == [t["expected"] for t in few["trials"]]
    assert (tmp_path / "videos-all.png").exists() and (tmp_path / "videos-8.png").exists()
    with pytest.raises(UserError, match="joined of 13 clips: there are 12"):
        run_videos(options(tmp_path, clips=[13]), console, studio_of(text, Knowing(text, vision, moving=True), vision))


def test_the_toy_world_is_judged(packed, tmp_path, text, vision, console):
    shown = {caption(s): s for moving in (False, True) for n in range(1200, 1212) for s in [scene(0, n, moving)]}
    left = [s for s in shown.values() if s.motion == "left"]
    blue = [s for s in shown.values() if not s.motion and s.colour == "blue"]
    assert left and blue

    def images(captions, *how):
        pictures = {c: draw(shown[c], 128) for c in captions}
        return np.stack([p // 2 if shown[c].colour == "blue" else p for c, p in pictures.items()])

    def clips(captions, number, *how):
        assert number == 8
        films = {c: frames(shown[c].number, size=128) for c in captions}
        return np.stack([film[::-1] if shown[c].motion == "left" else film for c, film in films.items()])

    given, knowing = options(tmp_path), Knowing(text, vision, moving=False)
    run_toy_world(given, console, studio_of(text, knowing, vision, images=images, videos=clips))
    told = json.loads((tmp_path / "toy-world.json").read_text())
    wrong = [one for one in told["images"]["all"] if not one["right"]]
    assert told["images"]["count"] == 12 and {one["expected"][1] for one in wrong} <= {"blue"}
    assert told["images"]["right"] == 1 - len(wrong) / 12
    assert told["clips"]["right"] == 1 - len(left) / 12 and told["clips"]["look"] > 0.9
    assert {one["seen"] for one in told["clips"]["all"] if not one["right"]} == {"right"}
    assert all(one["seen"] in MOTIONS for one in told["clips"]["all"])
    assert told["questions about images"]["right"] == 1.0 and told["questions about images"]["count"] == 72
    assert told["questions about clips"]["right"] == 0.0


def test_training_data_has_the_form_of_the_questions(folder, tmp_path, text, vision):
    """A source of chats reads what `write_joined` writes, and lays it out as the evaluation lays its prompts out."""
    vision.save(str(tmp_path / "codebook.npz"))
    table = joined.write_joined(tmp_path / "videos", 3, [2, 3], range(40), seed=0, size=SIZE)
    source = {"name": "joined", "kind": "chat", "path": str(table), "filters": {"min_side": SIZE}}
    vocabulary = {"text": str(folder / "text.model"), "vision": {"kind": "codebook", "path": "codebook.npz"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"vocabulary": vocabulary, "sources": [source]}))
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), [])
    chats = [chat for part, _ in list_parts(recipe.sources[0]) for chat in read_part(recipe.sources[0], part)]
    made = list(rows(recipe, recipe.sources[0], chats, frozenset(), tmp_path))
    assert len(made) == 3
    for row, chat in zip(made, chats, strict=True):
        prompt, answer, *_ = (s for s in row.segments[0].spans if s.kind in ("user", "assistant"))
        ids = row.tokens[prompt.start : prompt.end]
        question = " ".join(part for part in chat.turns[0].parts if isinstance(part, str))
        assert re.match(r"In clip [123], [a-z]", question)
        frames = ids[(ids >= text.text_size) & (ids < text.text_size + vision.codes)] - text.text_size
        codes = frames.reshape(-1, 64)
        assert len(codes) in (16, 24)
        assert shown_prompt(codes, question, studio_of(text, None, vision)) == ids.tolist()
        assert text.decode(row.tokens[answer.start : answer.end].tolist()) == chat.turns[1].text


def test_loss_by_task(toy_dataset, tmp_path, console):
    dataset = toy_dataset(rows=5)
    model, mesh = Model.model_validate({"preset": "debug", "width": 8, "layers": 1, "heads": 1, "kv_heads": 1}), alone()
    params = models.init(jax.random.key(0), model, dataset.vocabulary)
    params["text"]["head"] *= 0
    studio: Any = Namespace(generator=Namespace(params=params, model=model, vocabulary=dataset.vocabulary, mesh=mesh))
    given = options(tmp_path, data=dataset.folder.url, weights=None, rows=2, limit=None)
    run_loss(given, console, studio)
    told = json.loads((tmp_path / "loss.json").read_text())
    assert told["weights"] == "example" and told["data"] == dataset.root
    assert [task["task"] for task in told["tasks"]] == ["text", "all"]
    assert told["tasks"][1]["perplexity"] == pytest.approx(300) and told["tasks"][1]["examples"] == 15
    assert "perplexity" in console.export_text()
    studio.generator.vocabulary = replace(dataset.vocabulary, text_digest="another")
    with pytest.raises(UserError, match="measure on data built with that one"):
        run_loss(given, console, studio)


def test_something_must_be_measured(tmp_path, console):
    for given in ({"run": None}, {"run": "run", "server": "http://x/v1"}):
        with pytest.raises(UserError, match="name a RUN, or a server"):
            run_evaluate(options(tmp_path, what="needle", **given), console)
    with pytest.raises(UserError, match="a server needs --model"):
        run_evaluate(options(tmp_path, what="needle", run=None, server="http://x/v1", tokenizer=None), console)


@pytest.mark.parametrize(
    "command",
    [["evaluate", "needle", "run", "--lengths", "64", "--out", "charts"], ["generate", "run", "text", "--prompt", "x"]],
    ids=lambda command: command[0],
)
def test_the_flags_of_a_model_reach_the_studio(command, monkeypatch):
    """Against the studio's own names: whatever stands in the wrong place is another argument."""
    bound = {}

    def record(*given, **named):
        bound.update(inspect.signature(open_studio).bind(*given, **named).arguments)
        raise UserError("seen")

    monkeypatch.setattr(f"worldloom.{'evaluation' if command[0] == 'evaluate' else 'generation'}.open_studio", record)
    flags = {"tokenizer": "t", "vision": "v", "form": "chat", "mesh": "sp=2", "preset": "7b", "theta": "5e7"}
    assert main([*command, *(f"--{name}={value}" for name, value in flags.items())]) == 2
    want = {"path": "run", "tokenizer": "t", "vision": "v", "form": "chat", "devices": "sp=2", "preset": "7b"}
    assert {name: bound[name] for name in want} == want and bound["theta"] == 5e7
    assert bound.get("rows", 16) == 16
