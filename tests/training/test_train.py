"""The step against design §4 written out naively, and whole runs: learning, resuming, refusing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from worldloom.errors import UserError
from worldloom.packing.batch import Batch, Table
from worldloom.packing.dataset import open_dataset
from worldloom.packing.weights import Rule
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training import metrics
from worldloom.training.checkpoint import open_run
from worldloom.training.config import Config, Model, parse
from worldloom.training.curve import running_mean
from worldloom.training.step import begin as first_state
from worldloom.training.step import cut, loss_and_gradients, make_step, schedule
from worldloom.training.train import Diverged, Loader, identify, open_loader, train

BOTH = Vocabulary(23, 1, 2, "text", 6, "vision")
TEXT = Vocabulary(23, 1, 2, "text")
MODEL = Model(preset="debug", width=16, layers=2, heads=4, kv_heads=2, ffn=24, theta=1e4)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Let all runs of this file, the killed one too, share what XLA compiles."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)
    del os.environ["JAX_COMPILATION_CACHE_DIR"], os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]


# ---- packed equals unpacked, and equals the formula -------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """An example: its tokens and which of them are trained; the first never is."""

    tokens: np.ndarray
    trained: np.ndarray


def toys(vocabulary: Vocabulary) -> list[Toy]:
    """Unequal lengths; with and without each modality; one without any trained token; one of a single token."""
    rng = np.random.default_rng(0)
    made = []
    for length, share, ids in [
        (11, 0.6, vocabulary.size),
        (3, 1.0, vocabulary.size),
        (7, 0.0, vocabulary.size),
        (1, 1.0, vocabulary.size),
        (14, 1.0, vocabulary.text_size),
        (5, 0.5, vocabulary.size),
        (2, 1.0, vocabulary.text_size),
        (9, 0.9, vocabulary.size),
    ]:
        trained = rng.random(length) < share
        trained[0] = False
        made.append(Toy(rng.integers(0, ids, length), trained))
    return made


def lay(rows: list[list[Toy]], length: int, rule: Rule, vocabulary: Vocabulary) -> Batch:
    """Place examples in rows, with weights by the rule, one token at a time."""
    arrays = {name: np.zeros((len(rows), length), np.int32) for name in ("tokens", "targets", "positions", "segments")}
    weights = np.zeros((len(rows), length), np.float32)
    for r, row in enumerate(rows):
        at = 0
        for number, toy in enumerate(row, 1):
            modality = toy.tokens >= vocabulary.text_size
            for i, token in enumerate(toy.tokens):
                arrays["tokens"][r, at + i], arrays["positions"][r, at + i] = token, i
                arrays["segments"][r, at + i] = number
                if i + 1 < len(toy.tokens):
                    arrays["targets"][r, at + i] = toy.tokens[i + 1]
                    if toy.trained[i + 1]:
                        alike = (toy.trained & (modality == modality[i + 1])).sum()
                        half = 0.5 if vocabulary.vision_size else 1.0
                        of = {"lwm": half / alike, "example": 1 / toy.trained.sum(), "token": 1.0}
                        weights[r, at + i] = of[rule]
            at += len(toy.tokens)
    return Batch(**arrays, weights=weights, examples=sum(map(len, rows)))


def reference(params, examples: list[Toy], vocabulary: Vocabulary):
    """Compute design §4's three losses example by example: no packing, no masks, no weights, plain means."""
    kinds = ["text", "vision"] if vocabulary.vision_size else ["text"]
    by_kind, by_example, by_token = [], [], []
    for toy in examples:
        nll = {kind: jnp.zeros(0) for kind in kinds}
        if len(toy.tokens) > 1:
            logits, targets, trained = plain_logits(params, toy.tokens[:-1]), toy.tokens[1:], toy.trained[1:]
            for kind in kinds:
                (at,) = np.nonzero(trained & ((targets >= vocabulary.text_size) == (kind == "vision")))
                own = targets[at] - vocabulary.text_size * (kind == "vision")
                nll[kind] = jnp.log(jnp.exp(logits[kind][at]).sum(-1)) - logits[kind][at, own]
        every = jnp.concatenate(list(nll.values()))
        by_kind.append(sum(part.sum() / max(1, len(part)) for part in nll.values()) / len(kinds))
        by_example.append(every.sum() / max(1, len(every)))
        by_token.append(every)
    return {
        Rule.LWM: sum(by_kind) / len(examples),
        Rule.EXAMPLE: sum(by_example) / len(examples),
        Rule.TOKEN: jnp.concatenate(by_token).mean(),
    }


def plain_logits(params, tokens):
    """Run the model on one sequence, layer by layer, every head repeated, positions 0, 1, 2, …"""
    tables = [params[kind]["embedding"] for kind in ("text", "vision") if kind in params]
    x = jnp.concatenate(tables)[tokens]
    d, w = MODEL.width // MODEL.heads, params["layers"]
    angles = np.arange(len(tokens))[:, None] * MODEL.theta ** (-np.arange(d // 2) * 2 / d)
    turn = np.exp(1j * angles)[:, None]

    def norm(x, scale):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + MODEL.eps) * scale

    def turned(x):
        z = (x[..., : d // 2] + 1j * x[..., d // 2 :]) * turn
        return jnp.concatenate([z.real, z.imag], -1)

    for n in range(MODEL.layers):
        y = norm(x, w["attention_norm"][n])
        q, k, v = (jnp.tensordot(y, w[name][n], 1) for name in "qkv")
        k, v = (jnp.repeat(z, MODEL.heads // MODEL.kv_heads, axis=1) for z in (turned(k), v))
        scores = jnp.einsum("ihd,jhd->hij", turned(q), k) / np.sqrt(d)
        scores = jnp.where(np.tril(np.ones((len(tokens),) * 2, bool)), scores, -jnp.inf)
        x = x + jnp.einsum("hij,jhd,hde->ie", jax.nn.softmax(scores), v, w["o"][n])
        y = norm(x, w["ffn_norm"][n])
        x = x + (jax.nn.silu(y @ w["gate"][n]) * (y @ w["up"][n])) @ w["down"][n]
    x = norm(x, params["norm"])
    return {kind: x @ params[kind]["head"] for kind in ("text", "vision") if kind in params}


GROUPING = [[6, 5, 0, 2], [], [1, 7, 4, 3], []]  # rows of 27 tokens, some empty


@pytest.fixture(scope="module")
def wanted(request):
    """The float64 loss and gradients of the formula, by rule, and the parameters that they are of."""
    vocabulary = request.param
    config = parse({"data": {"path": "x"}, "out": "x", "steps": 99, "rows": 1, "model": MODEL.model_dump()})
    params = jax.tree.map(lambda x: 8 * x if x.std() else x, first_state(config, vocabulary).params)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), params)
        losses, pull = jax.vjp(jax.jit(lambda p: reference(p, toys(vocabulary), vocabulary)), wide)
        ones = {rule: {other: jnp.float64(other == rule) for other in Rule} for rule in Rule}
        results = {rule: (np.asarray(losses[rule]), jax.tree.map(np.asarray, pull(ones[rule])[0])) for rule in Rule}
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(results))
    return vocabulary, params, results


@pytest.mark.parametrize(
    ("wanted", "rule"),
    [*((BOTH, rule) for rule in Rule), (TEXT, Rule.LWM)],
    indirect=["wanted"],
    ids=["lwm", "example", "token", "text alone"],
)
def test_packed_equals_the_formula_in_loss_and_gradients(wanted, rule):
    vocabulary, params, results = wanted
    examples = toys(vocabulary)
    batch = lay([[examples[i] for i in row] for row in GROUPING], 27, rule, vocabulary)
    run = jax.jit(loss_and_gradients, static_argnames=("model", "rule"))
    loss, gradients = run(params, cut(batch, 4), batch.examples, MODEL, rule)
    want_loss, want_gradients = results[rule]
    assert float(loss) == pytest.approx(float(want_loss), rel=1e-6)

    def check(path, got, want):
        assert np.abs(want).max() > 0, path
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), path

    jax.tree.map_with_path(check, gradients, want_gradients)


# ---- whole runs on a synthetic language -------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Stand for a packed data set: its rows are drawn from (seed, t) alone."""

    length: int = 32
    vocabulary: Vocabulary = TEXT
    root: str = "c0ffee"
    rows: int = 1000


@dataclass(frozen=True)
class Synthetic:
    """Stand for the loader: sequences that count upwards by one, in segments of uneven length."""

    dataset: Corpus = Corpus()
    rule: Rule = Rule.EXAMPLE
    seed: int = 0
    poisoned: int = -1  # batch whose weights are not numbers

    def plan(self, t: int) -> SimpleNamespace:
        lengths = np.array([len(toy.tokens) for row in self.rows(t) for toy in row], np.int32)
        table = Table(np.full(4, 3), lengths, lengths, 0 * lengths)
        return SimpleNamespace(t=t, sets=np.zeros(4, int), table=table, examples=12)

    def load(self, plan, rows, columns, permutation) -> Batch:
        batch = self.batch(plan.t).take(columns, permutation)
        arrays = (getattr(batch, name)[rows] for name in ("tokens", "targets", "positions", "segments", "weights"))
        return Batch(*arrays, batch.examples)

    def rows(self, t: int) -> list[list[Toy]]:
        rng = np.random.default_rng([self.seed, t])
        return [[self.toy(rng, n) for n in rng.multinomial(self.dataset.length - 6, [0.5, 0.3, 0.2])] for _ in range(4)]

    def batch(self, t: int) -> Batch:
        rows = self.rows(t)
        batch = lay(rows, self.dataset.length, self.rule, self.dataset.vocabulary)
        return replace(batch, weights=batch.weights * np.nan) if t == self.poisoned else batch

    def toy(self, rng: np.random.Generator, length: int) -> Toy:
        tokens = (rng.integers(0, 20) + np.arange(length + 1)) % 20
        return Toy(tokens, np.arange(length + 1) > 0)


def configure(out: Path, /, **changes) -> Config:
    return parse(
        {
            "data": {"path": "synthetic"},
            "out": str(out),
            "steps": 36,
            "rows": 4,
            "model": MODEL.model_dump(),
            "optimizer": {"lr": 1e-2, "warmup": 4},
            "checkpoint": {"every": 5, "keep": 2},
            "mesh": {"fsdp": 2},
        }
        | changes
    )


def losses(out: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics.read(out / "metrics.jsonl") if "loss" in line}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    train(configure(out), Synthetic())
    return out


def test_a_run_learns_and_tells(tmp_path):
    told = []
    config = configure(
        tmp_path,
        evaluation={"path": "held-out", "every": 10, "batches": 3},
        accumulation=2,
        steps=40,
        mesh={"fsdp": 2, "tp": 2},
    )
    summary = train(config, Synthetic(), Synthetic(seed=1), told.append)
    assert summary.last_loss < 0.7 * summary.first_loss
    assert summary.held_out_loss is not None and summary.held_out_loss < 0.8 * summary.first_loss
    assert told == metrics.read(summary.metrics)
    steps = [line for line in told if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 41))
    assert [line["step"] for line in told if "held_out_loss" in line] == [10, 20, 30, 40]
    for line in steps:
        batch = Synthetic().batch(line["step"] - 1)
        assert line["tokens"] == (batch.segments > 0).sum()
        assert line["lr"] == pytest.approx(float(schedule(config)(line["step"] - 1)), rel=1e-4)
        assert line["gradient_norm"] > 0 and line["tokens_per_second"] > 0
    assert summary.curve.read_bytes().startswith(b"\x89PNG")
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [35, 40]


def test_the_first_loss_is_the_formulas(undisturbed):
    config = configure(undisturbed)
    params = first_state(config, TEXT).params
    rng = np.random.default_rng([0, 0])
    synthetic = Synthetic()
    examples = [synthetic.toy(rng, n) for _ in range(4) for n in rng.multinomial(26, [0.5, 0.3, 0.2])]
    want = jax.jit(lambda p: reference(p, examples, TEXT)[Rule.EXAMPLE])(params)
    assert losses(undisturbed)[1] == pytest.approx(float(want), rel=1e-5)


def test_a_killed_run_goes_on_bitwise(undisturbed, tmp_path):
    """SIGKILL after step 13: what a fresh process then computes equals an undisturbed run in every bit."""
    run_and_kill(tmp_path, 13, {})
    assert 13 <= max(losses(tmp_path)) < 16, "the child was to be killed long before its end"
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 14, "lo')
    begun = []
    summary = train(configure(tmp_path), Synthetic(), report=begun.append)
    assert begun[0]["step"] in (6, 11), "a checkpoint was to be used"
    assert len(begun) >= 20
    assert losses(tmp_path) == losses(undisturbed)
    assert [line["step"] for line in metrics.read(summary.metrics)] == list(range(1, 37))


def run_and_kill(out: Path, step: int, changes: dict[str, object]) -> None:
    """Train in a process of its own, and kill that once so many steps are told."""
    code = f"import runpy; runpy.run_path({__file__!r})['run_slowly']({str(out)!r}, {step}, {changes!r})"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, env=os.environ)
    deadline = time.monotonic() + 240
    while len(losses(out)) < step:
        assert child.poll() is None and time.monotonic() < deadline, child.stderr and child.stderr.read().decode()
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()


def run_slowly(out: str, step: int, changes: dict[str, object]) -> None:
    """Run the child; after so many steps it waits to be killed."""

    def report(line: metrics.Line) -> None:
        if line["step"] > step:
            time.sleep(600)

    train(configure(Path(out), **changes), None if "mixture" in changes else Synthetic(), report=report)


@pytest.fixture
def mixed(toy_dataset, tmp_path) -> dict[str, object]:
    """Two data sets in a config, 7:3, that give the shapes of the synthetic language: nothing is compiled again."""
    made = [toy_dataset(rows=n, length=32, vocabulary=TEXT, url=str(tmp_path / f"set-{n}")) for n in (17, 5)]
    members = [{"data": dataset.folder.url, "share": share} for dataset, share in zip(made, (0.7, 0.3), strict=True)]
    return {"data": None, "mixture": members}


def test_a_killed_run_on_a_mixture_goes_on_bitwise_and_counts_each_set(mixed, tmp_path):
    """The counts against the data sets' rows, looked up one by one."""
    run_and_kill(tmp_path / "killed", 13, mixed)
    assert 13 <= max(losses(tmp_path / "killed")) < 16, "the child was to be killed long before its end"
    begun = []
    train(configure(tmp_path / "killed", **mixed), report=begun.append)
    assert begun[0]["step"] in (6, 11), "a checkpoint was to be used"
    config = configure(tmp_path / "whole", **mixed)
    lines = metrics.read(train(config).metrics)
    assert losses(tmp_path / "killed") == {line["step"]: line["loss"] for line in lines}
    sets, loader = [open_dataset(url) for url in config.source.shares], open_loader(config, config.source)
    for t, line in enumerate(lines):
        rows, tokens, plan = [0, 0], [0, 0], loader.plan(t)
        for number, row in zip(plan.sets.tolist(), plan.rows.tolist(), strict=True):
            rows[number] += 1
            tokens[number] += sum(s.length for s in sets[number].row(row).segments)
        assert (line["rows_by_set"], line["tokens_by_set"], sum(tokens)) == (rows, tokens, line["tokens"])
    assert [sum(line["rows_by_set"][i] for line in lines) for i in (0, 1)] == [101, 43]  # of 144


def test_a_mixtures_checkpoint_by_other_shares_is_refused(mixed, tmp_path):
    config = configure(tmp_path / "run", **mixed)
    identity = identify(config, open_loader(config, config.source))
    assert re.fullmatch(r"7 x \w+ \+ 3 x \w+", identity["data"])
    members = [member | {"share": share} for member, share in zip(mixed["mixture"], (3, 2), strict=True)]
    other = configure(tmp_path / "run", **mixed | {"mixture": members})
    assert identify(other, open_loader(other, other.source))["data"] != identity["data"]


def test_a_mixture_of_another_vocabulary_is_refused(mixed, tmp_path):
    mixture = {"sets": mixed["mixture"], "vocabulary": "f00"}
    with pytest.raises(UserError, match=r"set-17 and .*set-5 is .*, but the config's mixture.vocabulary asks for f00"):
        train(configure(tmp_path / "run", **mixed | {"mixture": mixture}))


def test_a_checkpoint_by_another_rule_is_refused(undisturbed):
    with pytest.raises(UserError, match=r"data.weights is example, but this run's is token"):
        train(configure(undisturbed), Synthetic(rule=Rule.TOKEN))


def test_a_finished_run_does_nothing_more(undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    told = []
    summary = train(configure(undisturbed), Synthetic(), report=told.append)
    assert not told and summary.steps == 36
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "corpus", "words"),
    [
        ({}, Corpus(root="decaf"), ["data is c0ffee", "decaf"]),
        ({}, Corpus(vocabulary=replace(TEXT, text_digest="other")), ["vocabulary"]),
        ({"model": MODEL.model_dump() | {"layers": 3}}, Corpus(), ["model.layers is 2", "this run's is 3"]),
        ({"seed": 5}, Corpus(), ["seed is 0", "5"]),
        ({"rows": 8}, Corpus(), ["rows is 4", "8"]),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(undisturbed, changes, corpus, words):
    with pytest.raises(UserError) as caught:
        train(configure(undisturbed, **changes), Synthetic(corpus))
    text = str(caught.value)
    assert all(word in text for word in [*words, str(undisturbed), "choose another `out`"]), text


@pytest.mark.parametrize(
    ("changes", "corpus", "words"),
    [
        ({"data": {"path": "d", "vocabulary": "f00"}}, Corpus(), ["vocabulary of d is", "f00", TEXT.fingerprint]),
        ({}, Corpus(length=2**23), ["8388608 tokens", "4194304", "shorter"]),
        ({"out": "/dev/null/run"}, Corpus(), ["cannot write to /dev/null/run", "choose another `out`"]),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_first_step(tmp_path, changes, corpus, words):
    with pytest.raises(UserError) as caught:
        train(configure(tmp_path, **changes), Synthetic(corpus))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_held_out_data_of_another_vocabulary_are_refused(tmp_path):
    config = configure(tmp_path, evaluation={"path": "held-out"})
    with pytest.raises(UserError, match=r"the vocabulary of held-out is .*, but that of synthetic is .*build both"):
        train(config, Synthetic(), Synthetic(Corpus(vocabulary=BOTH)))


def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    def again(line):
        with pytest.raises(UserError, match=r"another run is training into .*choose another `out`"):
            train(config, Synthetic())
        refused.append(line["step"])

    refused, config = [], configure(tmp_path, steps=1, optimizer={"warmup": 0})
    train(config, Synthetic(), report=again)
    assert refused == [1]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(undisturbed, tmp_path):
    with pytest.raises(Diverged, match=r"step 13 gave loss nan .* on batch 12 of synthetic .*lower optimizer.lr"):
        train(configure(tmp_path), Synthetic(poisoned=12))
    assert max(losses(tmp_path)) == 12
    told = []
    train(configure(tmp_path), Synthetic(), report=told.append)
    assert told[0]["step"] == 13
    assert losses(tmp_path) == losses(undisturbed)


def test_accumulation_changes_nothing_but_rounding(undisturbed, tmp_path):
    train(configure(tmp_path, accumulation=4, steps=36, mesh={"fsdp": 1, "tp": 2, "sp": 2}), Synthetic())
    got, want = losses(tmp_path), losses(undisturbed)
    assert [got[s] for s in range(1, 9)] == pytest.approx([want[s] for s in range(1, 9)], rel=1e-4)


def test_the_update_is_adamw_with_clipping_written_out(tmp_path):
    """Three steps in NumPy float64: clip, moments, bias correction, decoupled decay of every array."""
    config = configure(tmp_path, optimizer={"lr": 1e-2, "warmup": 1, "clip": 0.05, "weight_decay": 0.3})
    loader, step, state = Synthetic(), make_step(config, Rule.EXAMPLE), first_state(config, TEXT)
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: np.asarray(x, np.float64), state.params))
    first, second = ([np.zeros_like(x) for x in leaves] for _ in range(2))
    for t in range(3):
        batch = loader.batch(t)
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), jax.tree.unflatten(tree, leaves))
        _, gradients = loss_and_gradients(params, cut(batch, 1), batch.examples, MODEL, Rule.EXAMPLE)
        gradients = [np.asarray(g, np.float64) for g in jax.tree.leaves(gradients)]
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        lr = 0.0 if t == 0 else 1e-2 * 0.5 * (1 + np.cos(np.pi * (t - 1) / 35))
        assert norm > 0.05
        for i, g in enumerate(g * 0.05 / norm for g in gradients):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.95 * second[i] + 0.05 * g * g
            mean, square = first[i] / (1 - 0.9 ** (t + 1)), second[i] / (1 - 0.95 ** (t + 1))
            leaves[i] = leaves[i] - lr * (mean / (np.sqrt(square) + 1e-8) + 0.3 * leaves[i])
        state, told = step(state, cut(batch, 1), batch.examples)
        assert float(told.norm) == pytest.approx(norm, rel=1e-4)
        assert float(told.lr) == pytest.approx(lr, rel=1e-5)
    for got, want in zip(jax.tree.leaves(state.params), leaves, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4 * 1e-2 + 1e-6)


def test_the_constant_schedule(tmp_path):
    rates = schedule(configure(tmp_path, optimizer={"lr": 2.0, "warmup": 4, "schedule": "constant"}))
    assert [float(rates(t)) for t in (0, 1, 2, 4, 5, 35)] == [0, 0.5, 1, 2, 2, 2]


def test_the_cosine_schedule_ends_at_min_lr(tmp_path):
    rates = schedule(configure(tmp_path, optimizer={"lr": 2.0, "warmup": 4, "min_lr": 0.5}))
    assert [float(rates(t)) for t in (0, 4, 20, 36)] == pytest.approx([0, 2, 1.25, 0.5])


def test_metrics_are_rewound_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        metrics.append(path, {"step": step, "loss": 0.1 * step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    metrics.rewind(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert metrics.read(path)[1]["loss"] == 0.2
    metrics.rewind(tmp_path / "new.jsonl", 0)
    assert metrics.read(tmp_path / "new.jsonl") == []


def test_running_mean():
    values = np.arange(100.0)
    want = [values[max(0, i - 4) : i + 1].mean() for i in range(100)]
    np.testing.assert_allclose(running_mean(values), want)


def test_the_stand_in_keeps_to_the_seam():
    loader: Loader = Synthetic()
    plan = loader.plan(7)
    batch = loader.load(plan, slice(1, 3), slice(0, 16), None)
    assert batch.examples == plan.examples == 12 and batch.tokens.shape == (2, 16)


def test_a_run_begins_from_another_runs_weights_and_only_once(undisturbed, tmp_path):
    """The first loss is that of the parameters it begins from; going on, they are not read again."""
    first = configure(tmp_path / "next", init=str(undisturbed), steps=8, optimizer={"lr": 1e-3, "warmup": 2})
    train(first, Synthetic())
    params = open_run(undisturbed)[0]
    batch = Synthetic().batch(0)
    want, _ = jax.jit(loss_and_gradients, static_argnames=("model", "rule"))(
        params, cut(batch, 1), batch.examples, MODEL, Rule.EXAMPLE
    )
    assert losses(tmp_path / "next")[1] == pytest.approx(float(want), rel=1e-5)
    assert losses(tmp_path / "next")[1] < 0.8 * losses(undisturbed)[1]
    again = first.model_copy(update={"init": "/nowhere", "steps": 10})
    told = []
    train(again, Synthetic(), report=told.append)
    assert [line["step"] for line in told] == [9, 10]


def test_weights_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no weights: name the folder of a run"):
        train(configure(tmp_path / "run", init=str(tmp_path / "nothing")), Synthetic())


def test_a_refused_run_leaves_the_other_ones_description_alone(undisturbed):
    before = (undisturbed / "run.json").read_bytes()
    with pytest.raises(UserError, match=r"model\.theta is"):
        train(configure(undisturbed, model=MODEL.model_dump() | {"theta": 5e7}), Synthetic())
    assert (undisturbed / "run.json").read_bytes() == before


def test_an_update_that_is_no_number_is_not_kept(tmp_path, monkeypatch):
    """Moments that overflow give such updates though loss and gradient are sound."""
    broken = optax.GradientTransformation(lambda _: (), lambda g, s, p: (jax.tree.map(lambda x: x * jnp.nan, g), s))
    monkeypatch.setattr("worldloom.training.step.make_optimizer", lambda config: broken)
    with pytest.raises(Diverged, match="step 1 gave"):
        train(configure(tmp_path), Synthetic())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(open_run(tmp_path)[0]))


def test_held_out_rows_count_once(tmp_path):
    """Of six rows in batches of four, one batch is whole; the rows of a second would count twice."""
    seen = []

    class Few(Synthetic):
        def plan(self, t: int) -> SimpleNamespace:
            seen.append(t)
            return super().plan(t)

    config = configure(tmp_path, evaluation={"path": "few", "every": 4, "batches": 4}, steps=5)
    train(config, Synthetic(), Few(Corpus(rows=6), seed=1))
    assert seen == [0, 0]
    with pytest.raises(UserError, match="few holds 3 sequences, fewer than the 4 rows"):
        train(configure(tmp_path / "other", evaluation={"path": "few"}), Synthetic(), Few(Corpus(rows=3)))


def test_a_line_that_is_none_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\nnonsense\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics.jsonl .*delete that line"):
        metrics.read(path)
