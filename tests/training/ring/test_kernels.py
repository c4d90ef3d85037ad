"""The kernels for GPUs and TPUs, interpreted, against attention in float64 that looks at every pair of tokens."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from worldloom.errors import UserError
from worldloom.training.attention import MASKED
from worldloom.training.ring.mosaic import Mosaic
from worldloom.training.ring.tiles import Asked, Block, Carry, Ranges, Shard, Where, bounds, by_key, by_query
from worldloom.training.ring.triton import Triton

ROWS, HEADS, KEY_HEADS, DEPTH = 2, 4, 2, 16


class Case(NamedTuple):
    """A shard of queries, and two shards of keys that they look at in turn: one from before, and their own."""

    q: np.ndarray
    d_out: np.ndarray
    here: Where
    k: list[np.ndarray]
    v: list[np.ndarray]
    there: list[Where]


def draw(tile: int, dtype: Any) -> Case:
    """Draw rows of four tiles, whose second half asks.

    One row has a document that ends before the queries begin, one across the border, one within a tile, one across
    two tiles, and padding; the other a long document, and a tile of nothing but padding.
    """
    lengths = [[tile + 3, tile + 1, 4, tile - 2, 5], [3 * tile - 6]]
    positions, segments = np.zeros((2, ROWS, 4 * tile), np.int32)
    for row, documents in enumerate(lengths):
        positions[row, : sum(documents)] = np.concatenate([np.arange(n) for n in documents])
        segments[row, : sum(documents)] = np.repeat(np.arange(len(documents)) + 1, documents)
    rng = np.random.default_rng(tile)

    def rounded(*shape: int) -> np.ndarray:
        return np.asarray(jnp.asarray(rng.normal(size=shape), dtype).astype(jnp.float32), np.float64)

    shards = [Where(positions[:, n : n + 2 * tile], segments[:, n : n + 2 * tile]) for n in (0, 2 * tile)]
    queries = [rounded(ROWS, HEADS, 2 * tile, DEPTH) for _ in range(2)]
    k, v = ([rounded(ROWS, KEY_HEADS, 2 * tile, DEPTH) for _ in range(2)] for _ in range(2))
    return Case(*queries, shards[1], k, v, shards)


def dense(case: Case) -> dict[str, np.ndarray]:
    """Attend and differentiate one head after the other, with every score at once."""
    k, v = np.concatenate(case.k, 2), np.concatenate(case.v, 2)
    positions, segments = (np.concatenate(x, 1) for x in zip(*case.there, strict=True))
    lse, out, dq = np.zeros(case.q.shape[:3]), np.zeros(case.q.shape), np.zeros(case.q.shape)
    dk, dv = np.zeros(k.shape), np.zeros(v.shape)
    for row in range(ROWS):
        real = case.here.segments[row] > 0
        asking = case.here.positions[row][real, None], case.here.segments[row][real, None]
        seen = (asking[1] == segments[row]) & (asking[0] >= positions[row])
        for head in range(HEADS):
            key = head // (HEADS // KEY_HEADS)
            q, d_out, scale = case.q[row, head, real], case.d_out[row, head, real], DEPTH**-0.5
            scores = np.where(seen, q @ k[row, key].T * scale, -np.inf)
            lse[row, head, real] = np.logaddexp.reduce(scores, 1)
            shares = np.exp(scores - np.logaddexp.reduce(scores, 1)[:, None])
            out[row, head, real] = shares @ v[row, key]
            d_shares = d_out @ v[row, key].T
            d_scores = shares * (d_shares - (d_shares * shares).sum(1, keepdims=True)) * scale
            dq[row, head, real] = d_scores @ k[row, key]
            dk[row, key] += d_scores.T @ q
            dv[row, key] += shares.T @ d_out
    return {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}


def poison(x: np.ndarray, where: Where, tiles: np.ndarray, dtype: Any) -> Array:
    """Put NaN where no pair of tiles is to be looked at, so that looking shows."""
    hidden = np.repeat(tiles, x.shape[2] // tiles.shape[1], 1)[:, None, :, None]
    return jnp.asarray(np.where(hidden, np.nan, x), dtype)


def run(block: Block, case: Case, dtype: Any) -> dict[str, np.ndarray]:
    """Go through the two shards as the ring does, with gradients that begin at one instead of zero."""
    here, bound = case.here, [bounds(where, block.tile) for where in case.there]
    ranges = [(by_query(bound[1], b), by_key(bound[1], b)) for b in bound]
    idle = np.logical_and(*(np.asarray(x.hi) == x.lo for x, _ in ranges))
    q, d_out = (poison(x, here, idle, dtype) for x in (case.q, case.d_out))
    shards = [
        Shard(*(poison(x, where, np.asarray(by.hi) == by.lo, dtype) for x in (k, v)), Where(*map(jnp.asarray, where)))
        for k, v, where, (_, by) in zip(case.k, case.v, case.there, ranges, strict=True)
    ]
    carry = Carry(jnp.zeros(q.shape), jnp.full(q.shape[:3], MASKED), jnp.zeros(q.shape[:3]))
    forward, backward = jax.jit(block.forward), jax.jit(block.backward)
    for shard, (by, _) in zip(shards, ranges, strict=True):
        carry = forward(q, here, shard, by, carry)
    some = carry.total > 0
    out, lse = carry.out / jnp.where(some, carry.total, 1)[..., None], carry.top + jnp.log(carry.total + ~some)
    delta = jnp.where(some, (out * d_out.astype(jnp.float32)).sum(-1), 0)
    asked, dq, dkv = Asked(q, d_out, jnp.where(some, lse, -MASKED), delta, here), jnp.ones(q.shape), []
    for shard, both in zip(shards, ranges, strict=True):
        ones = jnp.ones(shard.k.shape)
        dq, *more = backward(asked, shard, *both, (dq, ones, ones))
        dkv.append(more)
    dk, dv = (jnp.concatenate(x, 2) for x in zip(*dkv, strict=True))
    assert all(x.dtype == jnp.float32 for x in (*carry, dq, dk, dv))
    assert (lse[~some] == MASKED).all()
    found = {"out": out, "lse": jnp.where(some, lse, 0), "dq": dq - 1, "dk": dk - 1, "dv": dv - 1}
    return {name: np.asarray(x) for name, x in found.items()}


@pytest.mark.parametrize(
    ("block", "dtype", "error"),
    [
        (Triton(64, interpret=True), jnp.float32, 2e-6),  # steps of half a tile backward
        (Triton(16, interpret=True), jnp.bfloat16, 1e-2),
        (Mosaic(128, interpret=True), jnp.float32, 2e-6),
    ],
    ids=["triton-fp32", "triton-bf16", "mosaic-fp32"],
)
def test_equals_dense_attention_over_two_shards(block: Block, dtype: Any, error: float) -> None:
    case = draw(block.tile, dtype)
    expected, found = dense(case), run(block, case, dtype)
    padding = case.here.segments == 0
    for name in ("out", "lse", "dq"):
        assert not found[name].swapaxes(1, 2)[padding].any()
    for name in expected:
        assert np.abs(found[name] - expected[name]).max() <= error * np.abs(expected[name]).max(), name


@pytest.mark.parametrize(
    ("block", "depth", "wrong"),
    [(Triton(48), 16, "tile of 48"), (Triton(16), 24, "head size of 24"), (Mosaic(64), 16, "tile of 64")],
)
def test_refuses_what_does_not_fit_the_machine(block: Block, depth: int, wrong: str) -> None:
    x, where = jnp.zeros((1, 1, 192, depth)), Where(*jnp.zeros((2, 1, 192), jnp.int32))
    ranges = Ranges(*jnp.zeros((2, 1, 192 // block.tile), jnp.int32))
    with pytest.raises(UserError, match=wrong):
        block.forward(x, where, Shard(x, x, where), ranges, Carry(x, x[..., 0], x[..., 0]))


def test_lowers_to_triton_without_a_gpu_at_hand() -> None:
    if jax.__version_info__ >= (0, 11):
        pytest.skip("JAX 0.11 compiles Triton's kernels while it lowers them, and needs a GPU for that")
    x, line = jax.ShapeDtypeStruct((1, 2, 512, 64), jnp.bfloat16), jax.ShapeDtypeStruct((1, 512), jnp.int32)
    number, row = jax.ShapeDtypeStruct((1, 4), jnp.int32), jax.ShapeDtypeStruct((1, 2, 512), jnp.float32)
    wide, where, ranges = jax.ShapeDtypeStruct(x.shape, jnp.float32), Where(line, line), Ranges(number, number)
    block, shard = Triton(), Shard(x, x, where)
    calls = [
        jax.jit(block.forward).trace(x, where, shard, ranges, Carry(wide, row, row)),
        jax.jit(block.backward).trace(Asked(x, x, row, row, where), shard, ranges, ranges, (wide, wide, wide)),
    ]
    texts = [call.lower(lowering_platforms=("cuda",)).as_text() for call in calls]
    assert [text.count("__gpu$xla.gpu.triton") for text in texts] == [1, 2]
