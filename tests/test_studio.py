"""Opening a model: what is wrong is said in one sentence, what is not there first; lines of files end at line ends."""

import json
from argparse import Namespace
from dataclasses import asdict

import pytest
from worldloom import conversation
from worldloom.errors import UserError
from worldloom.generation import lines_of
from worldloom.recipe import VocabularySection
from worldloom.studio import Manner, load_model, mesh_sizes, open_studio
from worldloom.tokenizers.train import train
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training.checkpoint import CHECKPOINTS, RUN, describe_run, open_run
from worldloom.training.config import Model
from worldloom.training.generation.sample import Sampling
from worldloom.training.weights import huggingface
from worldloom.weights import run_import

VOCABULARY = Vocabulary(text_size=23, bos=1, eos=2, text_digest="text")
ODD = "one\u2028line\fwith\u2029breaks\x85inside"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train(["No one in the village had heard it leave; the rope hung over the water."] * 9, str(path), 280)
    return str(path)


@pytest.mark.parametrize(
    ("preset", "theta", "words"),
    [
        ("9b", None, r"^--preset and --theta: preset: found '9b'; .*'7b'"),
        ("debug", -3.0, r"^--preset and --theta: theta: found -3\.0; .*greater than 1$"),
        ("debug", 0.0, r"^--preset and --theta: theta: found 0\.0"),
        (None, 5e7, "name it by --preset"),
    ],
)
def test_a_wrong_shape_is_told_by_its_flags(tokenizer, tmp_path, preset, theta, words):
    (tmp_path / "stream").write_bytes(b"x")
    with pytest.raises(UserError, match=words) as told:
        load_model(str(tmp_path / "stream"), VocabularySection(text=tokenizer), None, preset, theta)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", [RUN, huggingface.CONFIG])
@pytest.mark.parametrize("shape", [("7b", None), (None, 5e7)])
def test_a_shape_that_is_known_is_not_given_again(tokenizer, tmp_path, name, shape):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="tells the shape of its model itself: leave out --preset and --theta"):
        open_studio(str(tmp_path), tokenizer, None, None, "", 1, *shape)


def test_a_path_that_is_not_there_is_told_first(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    for call in (
        lambda: open_studio(nowhere, "none.model", preset="9b"),
        lambda: open_studio(f"params::{nowhere}", devices="sp=x"),
        lambda: run_import(nowhere, str(tmp_path / "run"), "none.model"),
        lambda: run_import(f"params::{nowhere}", str(tmp_path / "run"), "none.model", preset="9b"),
    ):
        with pytest.raises(UserError, match="nowhere does not exist: name the folder of a run"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("sp=2,sp=3", "names sp twice"),
        ("sp", "give sizes along dp, fsdp, tp, sp"),
        ("pp=2", "unknown key pp; allowed here: dp, fsdp, sp, tp"),
        ("dp=0", "dp: must be 1 or more, or -1"),
        ("sp=-1,dp=-1", "give all but one a size"),
    ],
)
def test_a_wrong_mesh_is_told_with_its_reason(devices, words):
    with pytest.raises(UserError, match=words) as told:
        mesh_sizes(devices)
    assert str(told.value).startswith(f"--mesh {devices}")


def test_sizes_of_a_mesh():
    assert dict(mesh_sizes("sp=4,tp=2")) == {"dp": 1, "fsdp": 1, "tp": 2, "sp": 4}
    assert dict(mesh_sizes("")) == {"dp": 1, "fsdp": 1, "tp": 1, "sp": 1}
    assert mesh_sizes("fsdp=1,sp=-1").sp == -1


def test_a_prompt_is_a_line_whatever_is_in_it(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(f"{ODD}\r\n\nanother\n".encode())
    assert lines_of(Namespace(prompt=["first"], prompts=str(tmp_path / "prompts.txt"))) == ["first", ODD, "another"]


def test_a_conversation_is_a_line_whatever_is_in_it(tokenizer, tmp_path, monkeypatch):
    rows = [{"messages": [{"role": "user", "content": f"{ODD} {n}"}]} for n in range(2)]
    asked = "".join(json.dumps(row, ensure_ascii=False).replace("\\f", " ") + "\n" for row in rows)
    (tmp_path / "asked.jsonl").write_text(asked, "utf-8")
    said = lambda studio, lines, *how: [[str(part) for turn in one for part in turn.said[:1]][:1] for one in lines]  # noqa: E731
    monkeypatch.setattr(conversation, "answer", said)
    section = VocabularySection(text=tokenizer)
    studio = Namespace(generator=Namespace(rows=4), manner=Manner(), section=section)
    conversation.answer_file(studio, tmp_path / "asked.jsonl", tmp_path / "out.jsonl", 4, Sampling(), 0)
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [row["messages"][1]["content"] for row in made] == [f"{ODD} {n}".replace("\f", " ") for n in range(2)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model": {"wid', "Unterminated string"),
        ("null", "not subscriptable"),
        ('{"vocabulary": {}}', r"run\.json lacks 'model'"),
        ('{"model": {"layers": "x", "heads": "y"}, "vocabulary": {}}', "model: layers: found 'x'"),
        (json.dumps({"model": {"preset": "debug"}, "vocabulary": {"bos": 1}}), "missing"),
    ],
)
def test_a_damaged_run_is_told_in_one_line(tmp_path, text, words):
    (tmp_path / RUN).write_text(text)
    with pytest.raises(UserError, match=f"is not the folder of a training run .*{words}") as told:
        open_run(tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("there", [False, True])
def test_reading_makes_no_folder(tmp_path, there):
    describe_run(tmp_path, Model(preset="debug"), VOCABULARY)
    assert json.loads((tmp_path / RUN).read_text())["vocabulary"] == asdict(VOCABULARY)
    if there:
        (tmp_path / CHECKPOINTS).mkdir()
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        open_run(tmp_path)
    assert (tmp_path / CHECKPOINTS).exists() == there
