"""The block as Pallas kernels for GPUs, by way of Triton.

A program owns one tile of one head, loops over the tiles that it sees and no others, and keeps what it adds up in
registers. The other side goes by in steps smaller than a tile, since registers hold no square of two tiles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ...errors import UserError
from ..attention import MASKED
from .tiles import Asked, Carry, Gradients, Ranges, Shard, Where

FP32 = jnp.float32
LOG2E = 1.4426950408889634  # GPUs raise 2 to a power at a third of what e costs
# Tokens of the other side in a step, warps of a program, and steps in flight: with these Triton 3.9 compiles heads of
# 128 in bf16 for Hopper to warp-group products without spilling a register, in 97 KB of shared memory.
FORWARD, BACKWARD, WARPS, STAGES = 64, 32, 8, 2


@dataclass(frozen=True)
class Triton:
    """Attend by Triton's kernels; see `tiles.Block`. `interpret` runs them slowly on any machine, for tests.

    Tile and D are powers of two, 16 or more, as Triton's products ask.
    """

    tile: int = 128
    interpret: bool = False

    def forward(self, q: Array, here: Where, shard: Shard, ranges: Ranges, carry: Carry) -> Carry:
        k, v, there = shard
        keys = partial(_serving, q.shape[1] // k.shape[1])
        specs = *self._sides(here, there), self._own(q), keys(k), keys(v)
        kernel = partial(_forward, min(FORWARD, self.tile))
        return self._call(kernel, q, (ranges, here, there, q, k, v), specs, carry)

    def backward(self, asked: Asked, shard: Shard, by_query: Ranges, by_key: Ranges, sums: Gradients) -> Gradients:
        (*queries, here), (*keys, there) = asked, shard
        group, step = asked.q.shape[1] // shard.k.shape[1], min(BACKWARD, self.tile)
        specs = *self._sides(here, there), *map(self._own, queries), *(_serving(group, x) for x in keys)
        inputs = by_query, here, there, *queries, *keys
        dq = self._call(partial(_by_query, step), asked.q, inputs, specs, sums[0])
        specs = *self._sides(there, here), *map(self._own, keys), *(_served(group, x) for x in queries)
        inputs = by_key, there, here, *keys, *queries
        return dq, *self._call(partial(_by_key, step), shard.k, inputs, specs, sums[1:])

    def _call(self, kernel: Callable, owners: Array, inputs: tuple, specs: tuple, sums: Any) -> Any:
        """Run one program for each tile, head and row of the owners; it adds to its tile of the sums, in place."""
        batch, heads, length, depth = owners.shape
        _refuse(self.tile, depth)
        before, added = len(jax.tree.leaves(inputs)), jax.tree.map(self._own, sums)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), sums)
        (sums,) = pl.pallas_call(
            kernel,
            grid=(length // self.tile, heads, batch),
            in_specs=(*specs, added),
            out_specs=(added,),
            out_shape=(shapes,),
            input_output_aliases={before + n: n for n in range(len(jax.tree.leaves(sums)))},
            compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
            interpret=self.interpret,
        )(*inputs, sums)
        return sums

    def _sides(self, own: Where, other: Where) -> tuple[Ranges, Where, Where]:
        one = pl.BlockSpec((None, None), lambda i, h, b: (b, i))
        whole = pl.BlockSpec((None, other.segments.shape[1]), lambda i, h, b: (b, 0))
        return Ranges._make((one, one)), Where._make(map(self._own, own)), Where._make((whole, whole))

    def _own(self, x: Array) -> pl.BlockSpec:
        """The program's own tile of [B, L], [B, H, L] or [B, H, L, D]."""
        if x.ndim == 2:
            return pl.BlockSpec((None, self.tile), lambda i, h, b: (b, i))
        return pl.BlockSpec((None, None, self.tile, *x.shape[3:]), lambda i, h, b: (b, h, i, 0)[: x.ndim])


def _serving(group: int, x: Array) -> pl.BlockSpec:
    """The key head [L, D] that serves the program's query head."""
    return pl.BlockSpec((None, None, *x.shape[2:]), lambda i, h, b: (b, lax.div(h, group), 0, 0))


def _served(group: int, x: Array) -> pl.BlockSpec:
    """The query heads [group, L, …] that the program's key head serves."""
    return pl.BlockSpec((None, group, *x.shape[2:]), lambda i, h, b: (b, h, 0, 0)[: x.ndim])


def _refuse(tile: int, depth: int) -> None:
    for name, size in (("tile", tile), ("head size", depth)):
        if size < 16 or size & (size - 1):
            raise UserError(
                f"the attention kernel for GPUs was given a {name} of {size}, and takes powers of two from 16 on: "
                f"choose another {name}, or the form in plain JAX (training/ring/xla.py)"
            )


def _forward(
    step: int, ranges: Ranges, here: Where, there: Where, q: Any, k: Any, v: Any, old: Carry, new: Carry
) -> None:
    queries, mine, scale = q[...], _column(here), _scale(q)

    def turn(at: Any, carry: Carry) -> Carry:
        seen = _seen(mine, _row(there, at))
        scores = jnp.where(seen, _dot(queries, k[at, :].T) * scale, MASKED)
        top = jnp.maximum(carry.top, scores.max(1))
        # Where nothing was seen yet the top is MASKED itself, and a hidden score must still lie far below.
        shares = jnp.exp2((scores - jnp.maximum(top, MASKED / 2)[:, None]) * LOG2E)
        fade = jnp.exp2((carry.top - top) * LOG2E)
        out = carry.out * fade[:, None] + _dot(shares.astype(v.dtype), v[at, :])
        return Carry(out, top, carry.total * fade + shares.sum(1))

    softmax = _over(ranges, step, q.shape[0], turn, Carry(*(x[...] for x in old)))
    for x, y in zip(new, softmax, strict=True):
        x[...] = y


def _by_query(
    step: int, ranges: Ranges, here: Where, there: Where, q: Any, d_out: Any, lse: Any, delta: Any, k: Any, v: Any,
    old: Any, new: Any,
) -> None:  # fmt: skip
    queries, slopes, mine, scale = q[...], d_out[...], _column(here), _scale(q)
    level, mean = (lse[...] * LOG2E)[:, None], delta[...][:, None]

    def turn(at: Any, dq: Array) -> Array:
        keys = k[at, :]
        seen = _seen(mine, _row(there, at))
        shares = jnp.exp2(jnp.where(seen, _dot(queries, keys.T) * (scale * LOG2E), MASKED) - level)
        d_scores = shares * (_dot(slopes, v[at, :].T) - mean)
        return dq + _dot(d_scores.astype(k.dtype), keys)

    dq = _over(ranges, step, q.shape[0], turn, jnp.zeros(q.shape, FP32))
    new[...] = old[...] + dq * scale


def _by_key(
    step: int, ranges: Ranges, there: Where, here: Where, k: Any, v: Any, q: Any, d_out: Any, lse: Any, delta: Any,
    old: tuple[Any, Any], new: tuple[Any, Any],
) -> None:  # fmt: skip
    keys, values, mine, scale = k[...], v[...], _column(there), _scale(k)

    def turn(head: Any, at: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        queries, slopes = q[head, at, :], d_out[head, at, :]
        seen = _seen(_row(here, at), mine)
        level = (lse[head, at] * LOG2E)[None, :]
        shares = jnp.exp2(jnp.where(seen, _dot(keys, queries.T) * (scale * LOG2E), MASKED) - level)
        dv = sums[1] + _dot(shares.astype(q.dtype), slopes)
        d_scores = shares * (_dot(values, slopes.T) - delta[head, at][None, :])
        return sums[0] + _dot(d_scores.astype(q.dtype), queries), dv

    def each(head: Array, sums: Any) -> Any:
        return _over(ranges, step, k.shape[0], partial(turn, head), sums)

    sums = jnp.zeros(k.shape, FP32), jnp.zeros(k.shape, FP32)
    dk, dv = lax.fori_loop(0, q.shape[0], each, sums)
    new[0][...] = old[0][...] + dk * scale
    new[1][...] = old[1][...] + dv


def _over(ranges: Ranges, step: int, tile: int, turn: Callable, start: Any) -> Any:
    """Take the visible tiles of the other side, step by step."""
    steps = tile // step

    def part(n: Array, sums: Any) -> Any:
        return turn(pl.ds(n * step, step), sums)

    return lax.fori_loop(ranges.lo[...] * steps, ranges.hi[...] * steps, part, start)


def _column(own: Where) -> Where:
    """Load the own side, with padding in a segment that nothing else is in."""
    segments = own.segments[...]
    return Where(own.positions[...][:, None], jnp.where(segments == 0, -1, segments)[:, None])


def _row(other: Where, at: Any) -> Where:
    return Where(other.positions[at][None, :], other.segments[at][None, :])


def _seen(queries: Where, keys: Where) -> Array:
    return (queries.segments == keys.segments) & (queries.positions >= keys.positions)


def _scale(x: Any) -> float:
    return x.shape[-1] ** -0.5


def _dot(x: Array, y: Array) -> Array:
    """Multiply with sums in fp32, and fp32 inputs without rounding them to TF32."""
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST, preferred_element_type=FP32)
