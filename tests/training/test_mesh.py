"""Every mesh against one device: the same step, no more memory, and checkpoints that move between them."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.packing.weights import Rule
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training import metrics
from worldloom.training.config import Mesh, parse
from worldloom.training.mesh import PARTS, check, make_mesh, own_slices, place, start, state_shardings
from worldloom.training.ring.ring import make_ring
from worldloom.training.ring.xla import Xla
from worldloom.training.step import begin, loss_and_gradients, make_step
from worldloom.training.train import train

BOTH = Vocabulary(23, 1, 2, "text", 6, "vision")
MODEL = {"preset": "debug", "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 24}
ROWS, LENGTH = 8, 48


def configure(**changes):
    return parse(
        {"data": {"path": "x"}, "out": "x", "steps": 9, "rows": ROWS, "optimizer": {"warmup": 2}, "model": MODEL}
        | {"memory": {"loss_chunk": 5, "ffn_chunk": 5, "remat": "attention"}}
        | changes
    )


def draw(rng, rows=ROWS, length=LENGTH, vocabulary=BOTH):
    """Draw a step in two parts: rows of unequal segments, weights of every size, padding at the end."""
    arrays = {name: np.zeros((rows, length), np.int32) for name in ("tokens", "targets", "positions", "segments")}
    arrays["tokens"][:], arrays["targets"][:] = rng.integers(0, vocabulary.size, (2, rows, length))
    for row in range(rows):
        low = 0
        for number, size in enumerate(rng.multinomial(length - 3, [0.6, 0.1, 0.3]), 1):
            arrays["positions"][row, low : low + size] = range(size)
            arrays["segments"][row, low : low + size] = number
            low += size
    weights = rng.random((rows, length), np.float32) * (arrays["segments"] > 0)
    return {name: array.reshape(2, rows // 2, length) for name, array in (arrays | {"weights": weights}).items()}


MESHES = [{"dp": 2, "fsdp": 2}, {"fsdp": 2, "tp": 2}, {"fsdp": 1, "tp": 2, "sp": 2}, {"fsdp": 1, "sp": 4}]


@pytest.fixture(scope="module")
def one_device():
    """Give parameters, a step's parts, and the loss and gradients that one device finds."""
    config, parts = configure(), draw(np.random.default_rng(0))
    params = jax.tree.map(lambda x: 8 * x if x.std() else x, begin(config, BOTH).params)
    return params, parts, jax.jit(lambda p, q: loss_and_gradients(p, q, 24, config.model, Rule.LWM))(params, parts)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_step_on_a_mesh_equals_one_device(one_device, sizes):
    config, mesh, (params, parts, want) = configure(), make_mesh(Mesh(**sizes)), one_device
    there = jax.device_put(params, state_shardings(params, mesh)), place(parts, mesh, ROWS, LENGTH)
    attend = make_ring(block=Xla(4), gather_below=0)
    run = jax.jit(lambda p, q: loss_and_gradients(p, q, 24, config.model, Rule.LWM, attend, config.memory, mesh))
    for path, got in jax.tree_util.tree_leaves_with_path(run(*there)):
        expected = want
        for key in path:
            expected = expected[getattr(key, "key", getattr(key, "idx", None))]
        assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max(), path


def test_parameters_are_drawn_alike_on_any_mesh():
    config, mesh = configure(), make_mesh(Mesh(fsdp=2, tp=2))
    state = begin(config, BOTH, mesh)
    jax.tree.map(np.testing.assert_array_equal, begin(config, BOTH), state)
    assert state.params["layers"]["q"].sharding.shard_shape((2, 32, 4, 8)) == (2, 16, 2, 8)
    assert state.optimizer[1][0].mu["layers"]["q"].sharding == state.params["layers"]["q"].sharding


def test_the_compiled_step_gathers_no_activations_and_holds_no_square():
    """Read the program of a ring of four: 8 rows of 4 x 208 tokens, 30,000 ids; no size is another's."""
    vocabulary, length = Vocabulary(30_011, 1, 2, "text"), 4 * 208
    config, mesh = configure(memory={"loss_chunk": 52, "remat": "attention"}), make_mesh(Mesh(fsdp=1, sp=4))
    state = jax.eval_shape(lambda: begin(config, vocabulary))
    placed = jax.tree.map(
        lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y), state, state_shardings(state, mesh)
    )
    where = jax.NamedSharding(mesh, PARTS)
    kinds = dict.fromkeys(("tokens", "targets", "positions", "segments"), np.int32) | {"weights": np.float32}
    parts = {k: jax.ShapeDtypeStruct((1, ROWS, length), t, sharding=where) for k, t in kinds.items()}
    attend = make_ring(block=Xla(52), gather_below=0)
    step = make_step(config, Rule.EXAMPLE, attend, mesh)
    text = step.lower(placed, parts, np.int32(9)).compile().as_text()
    gathered = re.findall(r"= \(?(\w+\[[\d,]*\]).* all-gather(?:-start)?\(", text)
    assert gathered, "parameters are gathered"
    ours = {str(n) for n in (208, length, ROWS * 208, ROWS * length)}
    assert not [shape for shape in gathered if ours & set(re.findall(r"\d+", shape[shape.index("[") :]))], gathered
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", text)}
    assert not [s for s in shapes if sum(n in (208, length) for n in s) > 1], "scores of all pairs"
    tokens = {208, length, ROWS * 208, ROWS * length}
    assert not [s for s in shapes if 30_011 in s and tokens & set(s)], "logits of all tokens"
    assert any(52 in s and 30_011 in s for s in shapes), "logits of a chunk"


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"fsdp": 9}, ["fsdp 9", "there are 8", "multiply to 8"]),
        ({"fsdp": -1, "tp": 3}, ["tp 3", "make 3 devices or a multiple", "there are 8"]),
    ],
)
def test_a_mesh_of_another_number_of_devices_is_refused(sizes, words):
    with pytest.raises(UserError) as caught:
        make_mesh(Mesh(**sizes))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "changes", "words"),
    [
        ({"fsdp": 4}, {"accumulation": 4}, ["rows / accumulation is 2", "dp 1 x fsdp 4", "lower accumulation"]),
        ({"fsdp": 1, "sp": 4}, {"rows": 1, "length": 50}, ["length of the sequences of data is 50", "sp 4"]),
        ({"fsdp": 1, "tp": 4}, {}, ["model.kv_heads is 2", "tp 4"]),
        ({"fsdp": 4}, {"model": MODEL | {"width": 18, "heads": 1, "kv_heads": 1}}, ["model.width is 18", "fsdp 4"]),
    ],
)
def test_what_a_mesh_does_not_divide_is_refused(sizes, changes, words):
    length = changes.pop("length", LENGTH)
    with pytest.raises(UserError) as caught:
        check(make_mesh(Mesh(**sizes)), configure(**changes), length)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_single_process_loads_everything():
    assert own_slices(make_mesh(Mesh(sp=2)), 8, 64) == (slice(0, 8), slice(0, 64))


def test_a_coordinator_without_numbers_is_refused(monkeypatch):
    monkeypatch.setenv("WORLDLOOM_COORDINATOR", "localhost:1")
    with pytest.raises(UserError, match="WORLDLOOM_PROCESSES must be the number"):
        start()


def run(out: Path, data: str, **changes):
    rows = {"data": {"path": data}, "out": str(out), "rows": 4, "checkpoint": {"every": 4}, "steps": 8}
    rows |= {"mesh": {"fsdp": 4}}
    return configure(**rows | changes)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in metrics.read(out / "metrics.jsonl")]


def test_a_checkpoint_goes_on_on_another_mesh(toy_dataset, tmp_path):
    data = toy_dataset(rows=12, length=48, vocabulary=BOTH).folder.url
    constant = {"optimizer": {"warmup": 2, "schedule": "constant"}}
    train(run(tmp_path / "whole", data, **constant))
    train(run(tmp_path / "moved", data, steps=4, mesh={"fsdp": 1, "tp": 2, "sp": 2}, **constant))
    train(run(tmp_path / "moved", data, **constant))
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert len(losses(tmp_path / "moved")) == 8


HOST = """
import json, sys
from worldloom.training.config import parse
from worldloom.training.train import train
train(parse(json.loads(sys.argv[1])))
"""


def test_two_hosts_do_what_one_does(toy_dataset, tmp_path):
    """Two processes of two devices each, a ring across them, against this one of four."""
    data = toy_dataset(rows=12, length=48, vocabulary=BOTH).folder.url
    cheap = {"mesh": {"fsdp": 1, "sp": 4}, "memory": {}, "steps": 3, "checkpoint": {"every": 3}}
    train(run(tmp_path / "alone", data, **cheap))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    config = run(tmp_path / "both", data, **cheap).model_dump_json()
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    told = {"XLA_FLAGS": flags, "WORLDLOOM_COORDINATOR": address, "WORLDLOOM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, config],
            env=os.environ | told | {"WORLDLOOM_PROCESS": str(n)},
            stderr=subprocess.PIPE,
        )
        for n in range(2)
    ]
    try:
        errors = [host.communicate(timeout=240)[1].decode() for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], errors
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
