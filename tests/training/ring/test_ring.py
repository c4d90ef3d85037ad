"""The ring, on devices that the host stands for, against attention in float64 that looks at every pair of tokens."""

import json
import os
import re
import subprocess
import sys
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from worldloom.errors import UserError
from worldloom.training.ring import ring as ring_module
from worldloom.training.ring import xla
from worldloom.training.ring.layout import snake
from worldloom.training.ring.ring import choose_block, make_ring, ring_forward
from worldloom.training.ring.tiles import Where
from worldloom.training.ring.xla import Xla

TILE, LENGTH, HEADS, DEPTH = 4, 96, 8, 8
SHARD = P(None, "sp")


def packed(rows, length=LENGTH):
    positions, segments = np.zeros((2, len(rows), length), np.int32)
    for row, documents in enumerate(rows):
        positions[row, : sum(documents)] = np.concatenate([np.arange(n) for n in documents])
        segments[row, : sum(documents)] = np.repeat(np.arange(len(documents)) + 1, documents)
    return positions, segments


# One row of documents across borders of tiles and devices, and padding; another of one document, and a little padding.
ROWS = packed([[3, 30, 2, 21, 1, 26], [93]])
LOCAL = packed([[12, 5, 7, 24, 20, 4], [24, 24, 24]])  # nothing crosses a border of four devices


def draw(kv_heads, length=LENGTH, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, length, n, DEPTH)).astype(np.float32) for n in (HEADS, kv_heads, kv_heads, HEADS)]


def dense(q, k, v, d_out, positions, segments):
    """Return out, dq, dk and dv in float64, every formula written out."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    share, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    k, v = np.repeat(k, share, 2), np.repeat(v, share, 2)
    seen = (segments[:, :, None] == segments[:, None]) & (segments[:, :, None] > 0)
    seen = (seen & (positions[:, :, None] >= positions[:, None]))[:, None]
    scores = np.where(seen, np.einsum("bqhd,bkhd->bhqk", q, k) * scale, -np.inf)
    weights = np.exp(scores - np.where(seen.any(-1), scores.max(-1), 0)[..., None])
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    d_weights = np.einsum("bqhd,bkhd->bhqk", d_out, v)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) * scale
    dk, dv = np.einsum("bhqk,bqhd->bkhd", d_scores, q), np.einsum("bhqk,bqhd->bkhd", weights, d_out)
    dk, dv = (x.reshape(*x.shape[:2], -1, share, x.shape[3]).sum(3) for x in (dk, dv))
    return np.einsum("bhqk,bkhd->bqhd", weights, v), np.einsum("bhqk,bkhd->bqhd", d_scores, k), dk, dv


def spread(function, size, inputs, outputs):
    mesh = jax.make_mesh((size,), ("sp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:size])
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False))


def both_passes(attend):
    def run(q, k, v, d_out, positions, segments):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, positions, segments), q, k, v)
        return out, *pull(d_out)

    return run


@lru_cache
def compiled(size, kv_heads=8, gather_below=0, dtype="float32"):
    """Compile both passes, once for all tests that run them or read them."""
    run = both_passes(make_ring("sp", Xla(TILE), (), gather_below))
    arrays = *(x.astype(dtype) for x in draw(kv_heads)), *ROWS
    return spread(run, size, (SHARD,) * 6, (SHARD,) * 4).lower(*arrays).compile()


def columns(layout, size, length=LENGTH):
    order = snake(length // TILE, size) if layout == "snake" else np.arange(length // TILE)
    return (order[:, None] * TILE + np.arange(TILE)).ravel()


def through(function, arrays, permutation):
    """Arrange the columns, run, and put them back."""
    results = function(*(x[:, permutation] for x in arrays))
    return [np.asarray(x.astype(jnp.float32))[:, np.argsort(permutation)] for x in results]


def errors(got, expected):
    return [np.abs(x - y).max() / np.abs(y).max() for x, y in zip(got, expected, strict=True)]


@pytest.mark.parametrize(
    ("size", "kv_heads", "gather_below"),
    [(1, 8, 0), (2, 2, 0), (3, 1, 0), (4, 8, 0), (6, 2, 0), (8, 1, 0), (3, 2, LENGTH)],
)
def test_equals_dense_attention_in_values_and_gradients(size, kv_heads, gather_below):
    arrays = *draw(kv_heads), *ROWS
    expected = dense(*arrays)
    for layout in ("contiguous", "snake"):
        got = through(compiled(size, kv_heads, gather_below), arrays, columns(layout, size))
        assert max(errors(got, expected)) <= 1e-5
        for result in got:
            assert np.isfinite(result).all()
            assert (result[ROWS[1] == 0] == 0).all(), "padding gives and gets exactly nothing"


def test_rings_that_stop_early_bring_every_gradient_home():
    arrays = *draw(8), *LOCAL
    assert max(errors(through(compiled(4), arrays, columns("contiguous", 4)), dense(*arrays))) <= 1e-5


def test_rings_side_by_side_agree_on_the_number_of_hops():
    """One row's documents stay on their devices, the other's cross every border."""
    arrays = *draw(8), *(np.stack([few[0], many[1]]) for few, many in zip(LOCAL, ROWS, strict=True))
    mesh, shard = jax.make_mesh((2, 4), ("dp", "sp"), axis_types=(AxisType.Auto,) * 2), P("dp", "sp")
    run = both_passes(make_ring("sp", Xla(TILE), ("dp",), 0))
    rings = jax.shard_map(run, mesh=mesh, in_specs=(shard,) * 6, out_specs=(shard,) * 4, check_vma=False)
    assert max(errors(jax.jit(rings)(*arrays), dense(*arrays))) <= 1e-5


def test_any_arrangement_of_tokens_is_right():
    arrays = *draw(8), *ROWS
    got = through(compiled(4), arrays, np.random.default_rng(0).permutation(LENGTH))
    assert max(errors(got, dense(*arrays))) <= 1e-5


def test_long_shards_go_round_with_some_heads_at_a_time(monkeypatch):
    monkeypatch.setattr(ring_module, "ROUND", 3 * LENGTH // 4)  # of 8 key heads in 2 rows no more than 2
    arrays = *draw(8), *ROWS
    run = spread(both_passes(make_ring("sp", Xla(TILE), (), 0)), 4, (SHARD,) * 6, (SHARD,) * 4)
    assert max(errors(through(run, arrays, columns("snake", 4)), dense(*arrays))) <= 1e-5


def test_bf16_is_as_near_on_a_ring_as_on_one_device():
    arrays = *(jnp.asarray(x, jnp.bfloat16) for x in draw(8)), *ROWS
    expected = dense(*(np.asarray(x.astype(jnp.float32)) for x in arrays[:4]), *ROWS)
    alone, ring = (compiled(size, dtype="bfloat16") for size in (1, 4))
    near = errors(through(alone, arrays, columns("contiguous", 1)), expected)
    there = errors(through(ring, arrays, columns("snake", 4)), expected)
    assert all(x <= 1.25 * y for x, y in zip(there, near, strict=True))
    assert {x.dtype for x in ring(*arrays)} == {jnp.dtype(jnp.bfloat16)}


def test_queries_of_another_length_look_at_a_sharded_cache():
    """Fill a cache: the last 24 tokens ask, and a third of the ring's devices holds each part of the 96 keys."""
    q, k, v, d_out = draw(2)
    asking = slice(LENGTH - 24, LENGTH)
    here, there = Where(*(x[:, asking] for x in ROWS)), Where(*ROWS)
    look = spread(
        lambda q, k, v, here, there: ring_forward(q, k, v, here, there, "sp", Xla(TILE), ()), 3, (SHARD,) * 5, SHARD
    )
    out = look(q[:, asking], k, v, here, there)
    np.testing.assert_allclose(out, dense(q, k, v, d_out, *ROWS)[0][:, asking], atol=2e-6)


@pytest.mark.parametrize(
    ("machine", "depth", "form", "tile"),
    [
        ("gpu", 128, "Triton", 128),
        ("gpu", 100, "Xla", 128),  # preset 3b
        ("gpu", 8, "Xla", 128),
        ("tpu", 128, "Mosaic", 256),
        ("tpu", 100, "Mosaic", 256),
        ("cpu", 128, "Xla", 128),
    ],
)
def test_the_form_suits_the_machine_and_the_heads(monkeypatch, machine, depth, form, tile):
    monkeypatch.setattr(jax, "default_backend", lambda: machine)
    block = choose_block(768, depth)
    assert (type(block).__name__, block.tile) == (form, tile)


@pytest.mark.parametrize("length", [1009, 2 * 251, 7 * 131])
def test_lengths_that_divide_into_no_tiles_are_refused(length):
    with pytest.raises(UserError, match=rf"{length} tokens on a device .* multiple of 128 .* 8 at least"):
        choose_block(length, 128)


@pytest.mark.parametrize(("length", "tile"), [(61, 61), (67, 67), (8 * 131, 8), (1000, 125)])
def test_lengths_that_divide_poorly_take_what_tiles_there_are(length, tile):
    assert choose_block(length, 128).tile == tile


def test_shards_that_are_no_whole_tiles_are_refused():
    q, k, v, _ = draw(8, length=30)
    with pytest.raises(UserError, match="multiple of 4 "):
        make_ring(None, Xla(TILE))(q, k, v, *packed([[30], [30]], 30))


def test_nothing_travels_after_the_last_useful_hop(monkeypatch):
    """Count the turns of the ring as they happen."""
    turns, original = [], ring_module._pass_on

    def counting(ring, x, places):
        jax.debug.callback(lambda: turns.append(places))
        return original(ring, x, places)

    monkeypatch.setattr(ring_module, "_pass_on", counting)
    q, k, v, _ = draw(8)
    run = spread(make_ring("sp", Xla(TILE), (), 0), 4, (SHARD,) * 5, SHARD)
    for rows, last in ((LOCAL, 0), (ROWS, 3)):
        turns.clear()
        jax.block_until_ready(run(q, k, v, *rows))
        jax.effects_barrier()
        assert len(turns) == 4 * last


def test_compiled_ring_gathers_no_activations_and_holds_no_square():
    text = compiled(4).as_text()
    gathered = re.findall(r"= (.*?) all-gather", text)
    assert gathered and all("f32" not in shape for shape in gathered)
    assert not re.search(rf"\[(\d+,)*{LENGTH},{LENGTH}\]", text)
    assert not re.search(rf"\[(\d+,)*{LENGTH // 4},{LENGTH // 4}\]", text)
    assert "f32" in str(re.findall(r"= (.*?) all-gather", compiled(3, 2, LENGTH).as_text()))


def test_compiled_ring_permutes_only_within_its_loops():
    text = compiled(4).as_text()
    entry = text[text.index("\nENTRY") :]
    assert "collective-permute" not in entry[: entry.index("\n}")]
    assert "collective-permute" in text


def test_the_block_visits_no_other_tiles(monkeypatch):
    """Let every visit leave a mark, forward and backward: a document of 3 tiles has 6 pairs, one of a tile 1."""
    documents = packed([[12, 4, 80], [96]])
    expected = {0: 6 + 1 + 20 * 21 // 2, 1: 24 * 25 // 2}
    one = partial(jnp.ones_like, dtype=jnp.float32)
    monkeypatch.setattr(xla, "_attend", lambda q, k, v, seen, carry: carry._replace(total=carry.total + 1))
    monkeypatch.setattr(xla, "_differentiate", lambda queries, k, v, seen: (one(queries[0]), one(k), one(v)))
    monkeypatch.setattr(ring_module, "_finish", lambda carry: (0 * carry.out + carry.total[..., None], carry.top))
    run = spread(both_passes(make_ring("sp", Xla(TILE), (), 0)), 3, (SHARD,) * 6, (SHARD,) * 4)
    results = through(run, (*draw(8), *documents), columns("snake", 3))
    for result in results:
        visits = result[:, ::TILE, 0, 0].sum(1)
        assert visits.tolist() == list(expected.values())


MEMORY = """
import json, jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from worldloom.training.ring.ring import make_ring
from worldloom.training.ring.xla import Xla

def held(size, tokens=16384):
    mesh = jax.make_mesh((size,), ("sp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:size])
    spec = P(None, "sp")
    def run(q, k, v, d_out, positions, segments):
        out, pull = jax.vjp(lambda q, k, v: make_ring("sp", Xla(), ())(q, k, v, positions, segments), q, k, v)
        return out, *pull(d_out)
    def shape(dtype, *rest):
        return jax.ShapeDtypeStruct((1, size * tokens, *rest), dtype, sharding=NamedSharding(mesh, spec))
    arrays = [shape(jnp.float32, 4, 64)] * 4 + [shape(jnp.int32)] * 2
    ring = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec,) * 6, out_specs=(spec,) * 4, check_vma=False))
    return ring.lower(*arrays).compile().memory_analysis().temp_size_in_bytes / tokens

print(json.dumps([held(4), held(64)]))
"""


def test_memory_of_a_device_is_the_same_for_64_thousand_and_for_a_million_tokens():
    """Both passes, compiled and not run; `ringattention` 0.1.2 holds 10,416 bytes a token at these shapes."""
    flags = re.sub(r"device_count=\d+", "device_count=64", os.environ["XLA_FLAGS"])
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY], env=environment, cwd=Path.cwd(), capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stderr
    few, many = json.loads(ran.stdout)
    assert abs(many / few - 1) <= 0.05
    assert many <= 10_416 * 2 / 3
