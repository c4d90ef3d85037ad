"""Ladders of stages: LWM's tree against a table written here, what is refused, and a small ladder trained for real."""

import argparse
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from rich.console import Console
from worldloom.errors import RunFailed, UserError
from worldloom.recipe import load_recipe
from worldloom.stages import draw, length_of, run_stages
from worldloom.training import checkpoint, config, mesh, metrics, stages
from worldloom.training.checkpoint import open_run
from worldloom.training.stages import choose, open_ladder
from worldloom.training.train import train

LWM = Path(__file__).resolve().parents[2] / "recipes" / "lwm"

# arXiv 2402.08268 v4, Tables 11 and 13; of Text-Chat only parent, length and theta are sure.
TEXT, VISION = 4 * 2**20, 8 * 2**20  # tokens a step
CONSTANT, FALLING = ("constant", 4e-5, 0.0), ("cosine", 6e-4, 6e-5)
LEVEL = ("cosine", 8e-5, 8e-5)
TREE = {  # parent, length, theta, steps, warm-up, rate, tokens a step, mesh
    "text-32k": (None, 32_768, 1e6, 1200, 100, CONSTANT, TEXT, (1, -1, 4, 1)),
    "text-128k": ("text-32k", 131_072, 1e7, 3000, 200, CONSTANT, TEXT, (1, -1, 8, 1)),
    "text-256k": ("text-128k", 262_144, 1e7, 3000, 200, CONSTANT, TEXT, (1, -1, 16, 1)),
    "text-512k": ("text-256k", 524_288, 2.5e7, 720, 50, CONSTANT, TEXT, (1, -1, 16, 2)),
    "text-1m": ("text-512k", 1_048_576, 5e7, 450, 25, CONSTANT, TEXT, (1, -1, 16, 4)),
    "text-chat-128k": ("text-128k", 131_072, 1e7, 300, 25, CONSTANT, TEXT, (1, -1, 8, 1)),
    "text-chat-256k": ("text-256k", 262_144, 1e7, 300, 25, CONSTANT, TEXT, (1, -1, 16, 1)),
    "text-chat-512k": ("text-512k", 524_288, 2.5e7, 300, 25, CONSTANT, TEXT, (1, -1, 16, 2)),
    "text-chat-1m": ("text-1m", 1_048_576, 5e7, 300, 25, CONSTANT, TEXT, (1, -1, 16, 4)),
    "vision-1k": ("text-1m", 1_024, 5e7, 45_000, 1000, FALLING, VISION, (1, -1, 1, 1)),
    "vision-8k": ("vision-1k", 8_192, 5e7, 14_000, 500, FALLING, VISION, (1, -1, 1, 1)),
    "chat-32k": ("vision-8k", 32_768, 5e7, 1200, 100, LEVEL, VISION, (1, -1, 4, 1)),
    "chat-128k": ("chat-32k", 131_072, 5e7, 450, 50, LEVEL, VISION, (1, -1, 8, 1)),
    "chat-1m": ("chat-128k", 1_048_576, 5e7, 50, 5, LEVEL, VISION, (1, -1, 16, 4)),
}


@pytest.fixture(scope="module")
def lwm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder").resolve()
    return folder, {rung.stage.name: rung for rung in open_ladder(LWM / "stages.yaml", folder / "lwm")}


def test_the_tree_has_all_of_lwms_stages(lwm):
    assert list(lwm[1]) == list(TREE)
    assert {path.stem for path in (LWM / "train").iterdir()} == set(TREE)


@pytest.mark.parametrize("name", TREE)
def test_each_stage_has_the_papers_numbers(lwm, name):
    folder, rungs = lwm
    stage, found = rungs[name].stage, rungs[name].config
    parent, length, theta, steps, warmup, rate, tokens, sizes = TREE[name]
    assert (stage.parent, length_of(rungs[name]), found.model.theta) == (parent, length, theta)
    assert found.init == str(folder / "lwm" / parent if parent else LWM / "models" / "llama-2-7b")
    assert (found.steps, found.optimizer.warmup) == (steps, warmup)
    assert (found.optimizer.schedule, found.optimizer.lr, found.optimizer.min_lr) == rate
    assert found.rows * length == tokens
    assert tuple(size for _, size in found.mesh) == sizes
    assert (found.model.width, found.model.layers, found.model.ffn, found.model.dtype) == (4096, 32, 11008, "float32")
    assert (found.optimizer.betas, found.optimizer.weight_decay, found.optimizer.clip) == ((0.9, 0.95), 0.1, 1.0)


@pytest.mark.parametrize("name", TREE)
def test_each_stage_fits_on_lwms_chips_with_16384_tokens_on_each(lwm, name):
    """256 chips for text, 512 for pictures; and with the ring in place of tensor parallelism, as its comment says."""
    found, (_, length, _, _, _, _, tokens, (_, _, tp, sp)) = lwm[1][name].config, TREE[name]
    chips = 256 if tokens == TEXT else 512
    assert tokens / chips == 16_384
    for across in {(tp, sp), (1, tp * sp)}:
        shape = (1, chips // (tp * sp), *across)
        mesh.check(jax.sharding.AbstractMesh(shape, mesh.NAMES), found, length)


@pytest.mark.parametrize("name", TREE)
def test_each_stage_reads_what_its_recipes_build(lwm, name):
    folder, rungs = lwm
    stage, found = rungs[name].stage, rungs[name].config
    built = {}
    for recipe in stage.recipe:
        for section in load_recipe(recipe).pack:
            built[str(folder / "lwm" / "data" / Path(recipe).stem / f"packed-{section.name}")] = section
    assert set(found.source.shares) <= set(built)
    assert {built[path].length for path in found.source.shares} == {TREE[name][1]}
    if "chat" in name:
        assert {path: float(share) for path, share in found.source.shares.items()} == {
            path: section.share for path, section in built.items()
        }


def test_pure_text_is_a_sixth_of_the_tokens_of_the_first_two_stages_of_pictures(lwm):
    for name, shares in (("vision-1k", [84, 16]), ("vision-8k", [42, 42, 16])):
        source = lwm[1][name].config.source
        assert (list(source.shares.values()), source.by) == (shares, "tokens")
        assert "pure-text" in list(source.shares)[-1]


@pytest.mark.parametrize("name", TREE)
def test_the_command_in_each_comment_trains_the_same_stage(lwm, name, monkeypatch):
    folder, rungs = lwm
    comment = re.findall(r"^#   (worldloom train(?:.*\\\n)*.*)$", (LWM / "train" / f"{name}.yaml").read_text(), re.M)
    words = shlex.split(comment[0].replace("\\\n#", ""))
    assert words[2] == f"recipes/lwm/train/{name}.yaml" and set(words[3::2]) == {"--set"}
    monkeypatch.chdir(folder)
    alone = config.load(LWM / "train" / f"{name}.yaml", words[4::2])
    if name == "text-32k":
        alone = alone.model_copy(update={"init": rungs[name].config.init})
    assert alone == rungs[name].config


def test_the_tree_is_drawn(lwm):
    console = Console(width=80)
    with console.capture() as drawn:
        console.print(draw(list(lwm[1].values())))
    lines = [line.split() for line in drawn.get().splitlines()]
    assert lines[0] == ["stage", "from", "length", "theta", "steps", "rows", "tokens", "mesh"]
    assert lines[1] == ["text-32k", "llama-2-7b", "32,768", "1e6", "1,200", "128", "5.0B", "1,-1,4,1"]
    assert lines[14] == ["chat-1m", "chat-128k", "1,048,576", "5e7", "50", "8", "419.4M", "1,-1,16,4"]
    assert len(lines) == 15


A, B = {"name": "a", "config": "one.yaml"}, {"name": "b", "config": "two.yaml", "parent": "a"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "stages: found"),
        ([A, {**B, "recipes": "r"}], "unknown key stages.1.recipes; allowed here: .*; did you mean recipe?"),
        ([{"name": "a"}], "the key stages.0.config is missing"),
        ([A, {**B, "parent": "z"}], "b has the parent z, which is no stage; stages: a, b"),
        ([B, A], "b has the parent a, which does not come before it"),
        ([{**A, "parent": "b"}, B], "a has the parent b, which does not come before it: .* none descend from itself"),
        ([{**A, "parent": "a"}], "a has the parent a, which does not come before it"),
        ([A, {**B, "init": "w"}], "b has both parent and init"),
        ([A, A], "the name a is used twice"),
        ([{**A, "name": "data"}], "data is a key of training configs"),
        ([{**A, "name": "../a"}], "stages.0.name: found '../a'"),
    ],
)
def test_files_at_fault_are_refused(tmp_path, given, words):
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump({"stages": given}))
    with pytest.raises(UserError, match=rf"stages\.yaml: {words}"):
        open_ladder(tmp_path / "stages.yaml", tmp_path)


def test_a_folder_elsewhere_than_here_is_refused():
    with pytest.raises(UserError, match="gs://x is a URL: name a local directory"):
        open_ladder(LWM / "stages.yaml", "gs://x")


def test_stages_are_chosen_by_name_or_by_descent(lwm):
    ladder = list(lwm[1].values())
    names = lambda rungs: [rung.stage.name for rung in rungs]  # noqa: E731
    assert choose(ladder) == ladder
    assert names(choose(ladder, ["chat-1m", "text-32k"])) == ["text-32k", "chat-1m"]
    late = ["text-512k", "text-1m", "text-chat-512k", "text-chat-1m"]
    assert names(choose(ladder, first="text-512k")) == [*late, *list(TREE)[9:]]
    assert names(choose(ladder, first="text-chat-1m")) == ["text-chat-1m"]
    for wrong in ({"only": ["text-2m"]}, {"first": "text-2m"}):
        with pytest.raises(UserError, match="there is no stage text-2m; stages: text-32k, "):
            choose(ladder, **wrong)


def test_changes_are_of_all_stages_or_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ["steps=2000", "text-1m.steps=700", "text-128k.init=elsewhere", "text-1m.optimizer.lr=1e-5"]
    ladder = {r.stage.name: r.config for r in open_ladder(LWM / "stages.yaml", tmp_path / "l", changes, "/weights")}
    assert [ladder[name].steps for name in ("text-32k", "text-1m", "chat-1m")] == [2000, 700, 2000]
    assert (ladder["text-1m"].optimizer.lr, ladder["text-32k"].optimizer.lr) == (1e-5, 4e-5)
    inits = [ladder[name].init for name in ("text-32k", "text-128k", "text-256k")]
    assert inits == ["/weights", str(tmp_path / "elsewhere"), str(tmp_path.resolve() / "l" / "text-128k")]


# ---- a small ladder, for real -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Let all trainings share what XLA compiles."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


MODEL = {"preset": "debug", "width": 16, "layers": 1, "heads": 4, "kv_heads": 4, "ffn": 16}
STEPS = 3


class Trainer:
    """Train, note which steps of which stage were done, and be interrupted where one is told to."""

    def __init__(self):
        self.told, self.interrupt, self.calls = [], None, 0

    def __call__(self, given):
        self.calls += 1

        def report(line):
            self.told.append((Path(given.out).name, line["step"]))
            if self.told[-1] == self.interrupt:
                raise KeyboardInterrupt

        return train(given, report=report)

    def take(self):
        told, self.told = self.told, []
        return told


@pytest.fixture
def ladder(tmp_path, toy_dataset, compiled_once):
    """Write a ladder of two stages; return what runs it, its trainer, and the builds it asked for."""
    files, out = tmp_path / "files", tmp_path / "out"
    files.mkdir()
    still = {"lr": 1e-12, "warmup": 0, "weight_decay": 0.0}  # so that each ends as it began
    common = {"data": {"path": "data/toy/packed-48"}, "steps": STEPS, "rows": 8, "out": "x", "checkpoint": {"every": 1}}
    first = common | {"model": MODEL, "optimizer": still, "seed": 1}
    second = common | {"model": MODEL, "optimizer": still, "seed": 2}
    for name, given in (("first", first), ("second", second)):
        (files / f"{name}.yaml").write_text(yaml.safe_dump(given))
    listed = [
        {"name": "short", "config": "first.yaml", "recipe": "toy.yaml"},
        {"name": "long", "config": "second.yaml", "recipe": ["toy.yaml"], "parent": "short"},
    ]
    (files / "stages.yaml").write_text(yaml.safe_dump({"stages": listed}))
    trainer, built = Trainer(), []

    def command(arguments):
        built.append(arguments)
        if arguments[1] == str(files / "toy.yaml") and not (out / "data" / "toy").exists():
            toy_dataset(rows=12, length=48, url=str(out / "data" / "toy" / "packed-48"))
        return 0 if arguments[1] == str(files / "toy.yaml") else 1

    def run(**changes):
        options = {"only": [], "first": None, "init": None, "set": [], "list": False, "build": False}
        options |= {"stages": str(files / "stages.yaml"), "out": str(out), "workers": 2, "beam": []}
        run_stages(argparse.Namespace(**options | changes), Console(quiet=True), command, trainer)

    return run, trainer, built, out


def test_a_ladder_is_built_trained_interrupted_and_gone_on_with(ladder):
    run, trainer, built, out = ladder
    with pytest.raises(UserError, match="long begins with the weights of short, which has done 0 of 3 steps: train"):
        run(only=["long"])
    assert built == [] and not out.exists()

    trainer.interrupt = ("short", 3)  # before that is saved
    with pytest.raises(KeyboardInterrupt):
        run()
    with pytest.raises(UserError, match="which has done 2 of 3 steps"):
        run(only=["long"])
    trainer.interrupt = None
    assert trainer.take() == [("short", 1), ("short", 2), ("short", 3)]
    run()
    assert trainer.take() == [("short", 3), ("long", 1), ("long", 2), ("long", 3)]
    recipe = str(out.parent / "files" / "toy.yaml")
    assert built == [["build", recipe, "--out", str(out / "data" / "toy"), "--workers", "2"]]

    short, long = (open_run(out / name)[0] for name in ("short", "long"))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=0, atol=1e-9), short, long)))
    assert sorted(path.name for path in out.iterdir()) == ["data", "long", "short"]
    assert [line["step"] for line in metrics.read(out / "long" / "metrics.jsonl")] == [1, 2, 3]

    run()
    assert trainer.calls == 3 and len(built) == 1
    run(build=True)
    assert trainer.calls == 3 and len(built) == 2


def test_missing_weights_and_failed_builds_are_told(ladder, tmp_path):
    run, trainer, built, _ = ladder
    with pytest.raises(UserError, match=r"short begins with the weights at .*/none, where nothing is: .* --init PATH"):
        run(init=str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no stage x"):
        run(first="x", list=True)
    file = tmp_path / "files" / "stages.yaml"
    file.write_text(file.read_text().replace("toy.yaml", "other/toy.yaml"))
    with pytest.raises(RunFailed, match=r"build .*/other/toy\.yaml .* -- --runner=X' ended with 1: see above"):
        run(beam=["--runner=X"])
    assert trainer.told == [] and len(built) == 1


def test_the_name_of_the_checkpoints_is_theirs():
    assert stages.CHECKPOINTS == checkpoint.CHECKPOINTS
