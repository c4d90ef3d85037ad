"""The block as Pallas kernels for TPUs, by way of Mosaic.

A kernel goes over (row, head, own tile, head of the group, visible tile). How many tiles are visible is known at run
time only: the last axis is as long as the widest range, and where a range is shorter its last tile stays in place,
so that nothing is fetched or computed for tiles that nobody sees. What is added to stays in VMEM meanwhile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...errors import UserError
from ..attention import MASKED
from .tiles import Asked, Carry, Gradients, Ranges, Shard, Where

FP32 = jnp.float32
LANES = 128  # numbers side by side in a TPU's register
COLUMNS = jnp.int32, jnp.int32, FP32, FP32  # what is kept upright beside a tile: positions, segments, two numbers


@dataclass(frozen=True)
class Mosaic:
    """Attend by Mosaic's kernels; see `tiles.Block`. `interpret` runs them slowly on any machine, for tests.

    A tile is a multiple of 128 tokens; smaller ones than 512 leave a TPU waiting between its steps.
    """

    tile: int = 512
    interpret: bool = False

    def forward(self, q: Array, here: Where, shard: Shard, ranges: Ranges, carry: Carry) -> Carry:
        group = q.shape[1] // shard.k.shape[1]
        mine, theirs = (_line(here), q), (_line(shard.where), shard.k, shard.v)
        specs = *map(self._own, mine), *(self._other(x, lambda h, g: lax.div(h, group)) for x in theirs)
        sums = carry.out, carry.top[:, :, None], carry.total[:, :, None]
        out, top, total = self._call(_forward, 1, ranges, (*mine, *theirs), specs, sums, columns=4)
        return Carry(out, top[:, :, 0], total[:, :, 0])

    def backward(self, asked: Asked, shard: Shard, by_query: Ranges, by_key: Ranges, sums: Gradients) -> Gradients:
        q, d_out, lse, delta, here = asked
        group = q.shape[1] // shard.k.shape[1]
        queries = _line(here), q, d_out, lse[:, :, None], delta[:, :, None]
        keys = _line(shard.where), shard.k, shard.v
        specs = *map(self._own, queries), *(self._other(x, lambda h, g: lax.div(h, group)) for x in keys)
        (dq,) = self._call(_by_query, 1, by_query, (*queries, *keys), specs, sums[:1], columns=4)
        specs = *map(self._own, keys), *(self._other(x, lambda h, g: h * group + g) for x in queries)
        dk, dv = self._call(_by_key, group, by_key, (*keys, *queries), specs, sums[1:], columns=2)
        return dq, dk, dv

    def _call(
        self, kernel: Callable, group: int, ranges: Ranges, inputs: tuple, specs: tuple, sums: tuple, columns: int
    ) -> tuple[Array, ...]:
        """Run the kernel over every tile that is added to and all that it sees, in place."""
        _refuse(self.tile)
        batch, heads, length, _ = sums[0].shape
        width = jnp.maximum(jnp.max(ranges.hi - ranges.lo), 1)
        added, before = tuple(map(self._own, sums)), len(ranges) + len(inputs)
        return pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(ranges),
                grid=(batch, heads, length // self.tile, group, width),
                in_specs=(*specs, *added),
                out_specs=added,
                scratch_shapes=[pltpu.VMEM((self.tile, LANES), kind) for kind in COLUMNS[:columns]],
            ),
            out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in sums),
            input_output_aliases={before + n: n for n in range(len(sums))},
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3 + ("arbitrary",) * 2),
            interpret=pltpu.InterpretParams() if self.interpret else False,
        )(*ranges, *inputs, *sums)

    def _own(self, x: Array) -> pl.BlockSpec:
        """The tile of its own of [B, 2, L] (see `_line`), [B, H, 1, L] or [B, H, L, D]."""
        shape, place = _tile_of(x, self.tile)
        return pl.BlockSpec(shape, lambda b, h, i, g, j, lo, hi: place(b, h, i))

    def _other(self, x: Array, head: Callable) -> pl.BlockSpec:
        """The tile of the other side that step j looks at; the last one again where there are no more."""
        shape, place = _tile_of(x, self.tile)

        def index(b: Any, h: Any, i: Any, g: Any, j: Any, lo: Any, hi: Any) -> tuple:
            return place(b, head(h, g), jnp.minimum(lo[b, i] + j, jnp.maximum(hi[b, i] - 1, 0)))

        return pl.BlockSpec(shape, index)


def _tile_of(x: Array, tile: int) -> tuple[tuple, Callable]:
    """Give a tile's shape, and its place by row, head and number."""
    if x.ndim == 3:
        return (None, 2, tile), lambda b, h, i: (b, 0, i)
    if x.shape[2] == 1:
        return (None, None, 1, tile), lambda b, h, i: (b, h, 0, i)
    return (None, None, tile, x.shape[3]), lambda b, h, i: (b, h, i, 0)


def _line(where: Where) -> Array:
    """Lay positions over segments: int32 [B, 2, L]."""
    return jnp.stack(where, 1)


def _refuse(tile: int) -> None:
    if tile % LANES:
        raise UserError(
            f"the attention kernel for TPUs was given a tile of {tile} tokens, and takes multiples of {LANES}: "
            "choose another tile, or the form in plain JAX (training/ring/xla.py)"
        )


def _forward(
    lo: Any, hi: Any, here: Any, q: Any, there: Any, k: Any, v: Any, old_out: Any, old_top: Any, old_total: Any,
    out: Any, new_top: Any, new_total: Any, positions: Any, segments: Any, top: Any, total: Any,
) -> None:  # fmt: skip
    begins, visible, ends = _step(lo, hi)

    @pl.when(begins)
    def begin() -> None:
        out[...] = old_out[...]
        top[...], total[...] = _column(old_top[...]), _column(old_total[...])
        positions[...], segments[...] = _columns(here)

    @pl.when(visible)
    def add() -> None:
        seen = (segments[:, :1] == there[1:]) & (positions[:, :1] >= there[:1])
        scores = jnp.where(seen, _outer(q[...], k[...]) * _scale(q), MASKED)
        before = top[:, :1]
        peak = jnp.maximum(before, scores.max(1, keepdims=True))
        # Where nothing was seen yet the top is MASKED itself, and a hidden score must still lie far below.
        shares = jnp.exp(scores - jnp.maximum(peak, MASKED / 2))
        fade = jnp.exp(before - peak)
        out[...] = out[...] * fade + _dot(shares.astype(v.dtype), v[...])
        total[...] = total[...] * fade + shares.sum(1, keepdims=True)
        top[...] = jnp.broadcast_to(peak, top.shape)

    @pl.when(ends)
    def end() -> None:
        new_top[...], new_total[...] = top[...].T[:1], total[...].T[:1]


def _by_query(
    lo: Any, hi: Any, here: Any, q: Any, d_out: Any, lse: Any, delta: Any, there: Any, k: Any, v: Any, old: Any,
    dq: Any, positions: Any, segments: Any, level: Any, mean: Any,
) -> None:  # fmt: skip
    begins, visible, ends = _step(lo, hi)

    @pl.when(begins)
    def begin() -> None:
        dq[...] = jnp.zeros(dq.shape, FP32)
        level[...], mean[...] = _column(lse[...]), _column(delta[...])
        positions[...], segments[...] = _columns(here)

    @pl.when(visible)
    def add() -> None:
        seen = (segments[:, :1] == there[1:]) & (positions[:, :1] >= there[:1])
        scores = jnp.where(seen, _outer(q[...], k[...]) * _scale(q), MASKED)
        slopes = jnp.exp(scores - level[:, :1]) * (_outer(d_out[...], v[...]) - mean[:, :1])
        dq[...] += _dot(slopes.astype(k.dtype), k[...])

    @pl.when(ends)
    def end() -> None:
        dq[...] = old[...] + dq[...] * _scale(q)


def _by_key(
    lo: Any, hi: Any, there: Any, k: Any, v: Any, here: Any, q: Any, d_out: Any, lse: Any, delta: Any,
    old_dk: Any, old_dv: Any, dk: Any, dv: Any, positions: Any, segments: Any,
) -> None:  # fmt: skip
    begins, visible, ends = _step(lo, hi)

    @pl.when(begins)
    def begin() -> None:
        dk[...], dv[...] = jnp.zeros(dk.shape, FP32), old_dv[...]
        positions[...], segments[...] = _columns(there)

    @pl.when(visible)
    def add() -> None:
        seen = (segments[:, :1] == here[1:]) & (positions[:, :1] <= here[:1])
        shares = jnp.exp(jnp.where(seen, _outer(k[...], q[...]) * _scale(k), MASKED) - lse[...])
        dv[...] += _dot(shares.astype(d_out.dtype), d_out[...])
        slopes = shares * (_outer(v[...], d_out[...]) - delta[...])
        dk[...] += _dot(slopes.astype(q.dtype), q[...])

    @pl.when(ends)
    def end() -> None:
        dk[...] = old_dk[...] + dk[...] * _scale(k)


def _step(lo: Any, hi: Any) -> tuple[Array, Array, Array]:
    """Tell whether the own tile begins here, whether there is a tile to look at, and whether it ends here."""
    b, i, g, j = (pl.program_id(axis) for axis in (0, 2, 3, 4))
    ends = (g == pl.num_programs(3) - 1) & (j == pl.num_programs(4) - 1)
    return (g == 0) & (j == 0), lo[b, i] + j < hi[b, i], ends


def _columns(line: Any) -> tuple[Array, Array]:
    """Turn the own side's positions and segments upright, with padding in a segment that nothing else is in."""
    return _column(line[:1]), _column(jnp.where(line[1:] == 0, -1, line[1:]))


def _column(row: Array) -> Array:
    """Turn [1, T] to [T, 128], each number repeated along its row."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _scale(x: Any) -> float:
    return x.shape[-1] ** -0.5


def _dot(x: Array, y: Array, along: int = 0) -> Array:
    """Multiply with sums in fp32, and fp32 inputs without rounding them to bf16."""
    precision = lax.Precision.HIGHEST if x.dtype == FP32 else lax.Precision.DEFAULT
    dimensions = (((1,), (along,)), ((), ()))
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=FP32)


def _outer(x: Array, y: Array) -> Array:
    return _dot(x, y, along=1)
