"""The block in plain JAX: loops over tiles whose bounds are known only at run time. Runs everywhere."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..attention import MASKED
from .tiles import Asked, Carry, Gradients, Ranges, Shard, Where

FP32 = jnp.float32


@dataclass(frozen=True)
class Xla:
    """Attend tile by tile; see `tiles.Block`."""

    tile: int = 128

    def forward(self, q: Array, here: Where, shard: Shard, ranges: Ranges, carry: Carry) -> Carry:
        k, v, there = shard

        def one(i: Array, carry: Carry) -> Carry:
            row, query = jnp.divmod(i, ranges.lo.shape[1])
            cut = partial(_cut, row=row, tile=self.tile)
            mine, queries = Where(*(cut(x, query) for x in here)), _grouped(cut(q, query), k.shape[1])

            def add(j: Array, softmax: Carry) -> Carry:
                seen = _seen(mine, Where(*(cut(x, j) for x in there)))
                return _attend(queries, cut(k, j), cut(v, j), seen, softmax)

            softmax = Carry(*(_grouped(cut(x, query), k.shape[1]) for x in carry))
            softmax = lax.fori_loop(ranges.lo[row, query], ranges.hi[row, query], add, softmax)
            return Carry(*(_paste(x, y, row, query, self.tile) for x, y in zip(carry, softmax, strict=True)))

        return lax.fori_loop(0, ranges.lo.size, one, carry)

    def backward(self, asked: Asked, shard: Shard, by_query: Ranges, by_key: Ranges, sums: Gradients) -> Gradients:
        *asking, here = asked
        k, v, there = shard

        def one(i: Array, sums: Gradients) -> Gradients:
            row, key = jnp.divmod(i, by_key.lo.shape[1])
            cut = partial(_cut, row=row, tile=self.tile)
            theirs, keys, values = Where(*(cut(x, key) for x in there)), cut(k, key), cut(v, key)

            def add(j: Array, state: Gradients) -> Gradients:
                dq, dk, dv = state
                seen = _seen(Where(*(cut(x, j) for x in here)), theirs)
                queries = [_grouped(cut(x, j), k.shape[1]) for x in asking]
                more = _differentiate(queries, keys, values, seen)
                old = cut(dq, j)
                return _paste(dq, old + more[0].reshape(old.shape), row, j, self.tile), dk + more[1], dv + more[2]

            state = sums[0], cut(sums[1], key), cut(sums[2], key)
            dq, *tiles = lax.fori_loop(by_key.lo[row, key], by_key.hi[row, key], add, state)
            dk, dv = (_paste(x, y, row, key, self.tile) for x, y in zip(sums[1:], tiles, strict=True))
            return dq, dk, dv

        return lax.fori_loop(0, by_key.lo.size, one, sums)


def _attend(q: Array, k: Array, v: Array, seen: Array, softmax: Carry) -> Carry:
    """Take in a tile of keys: q [Hkv, G, T, D], k, v [Hkv, T, D], seen [T, T]."""
    scores = jnp.where(seen, _product("hgqd,hkd->hgqk", q, k) * q.shape[-1] ** -0.5, MASKED)
    top = jnp.maximum(softmax.top, scores.max(-1))
    shares = jnp.exp(scores - jnp.where(top == MASKED, 0.0, top)[..., None])
    fade = jnp.exp(softmax.top - top)
    out = softmax.out * fade[..., None] + _product("hgqk,hkd->hgqd", shares.astype(v.dtype), v)
    return Carry(out, top, softmax.total * fade + shares.sum(-1))


def _differentiate(queries: list[Array], k: Array, v: Array, seen: Array) -> Gradients:
    """Return what a pair of tiles adds to dq, dk and dv; queries are q, d_out, lse and delta."""
    q, d_out, lse, delta = queries
    scale = q.shape[-1] ** -0.5
    scores = jnp.where(seen, _product("hgqd,hkd->hgqk", q, k) * scale, MASKED)
    shares = jnp.exp(scores - lse[..., None])
    d_shares = _product("hgqd,hkd->hgqk", d_out, v)
    d_scores = (shares * (d_shares - delta[..., None]) * scale).astype(q.dtype)
    dv = _product("hgqk,hgqd->hkd", shares.astype(d_out.dtype), d_out)
    return _product("hgqk,hkd->hgqd", d_scores, k), _product("hgqk,hgqd->hkd", d_scores, q), dv


def _product(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=FP32)


def _seen(queries: Where, keys: Where) -> Array:
    same = (queries.segments[:, None] == keys.segments[None, :]) & (queries.segments[:, None] != 0)
    return same & (queries.positions[:, None] >= keys.positions[None, :])


def _grouped(x: Array, heads: int) -> Array:
    """Split query heads by the key head that serves them: [Hq, …] to [Hkv, G, …]."""
    return x.reshape(heads, -1, *x.shape[1:])


def _cut(x: Array, j: Any, row: Any, tile: int) -> Array:
    """Take tile j of a row: from [B, L] a [T], from [B, H, L] an [H, T], from [B, H, L, D] an [H, T, D]."""
    axis = min(x.ndim - 1, 2)
    start, size = [row] + [0] * (x.ndim - 1), [1, *x.shape[1:]]
    start[axis], size[axis] = j * tile, tile
    return lax.dynamic_slice(x, start, size)[0]


def _paste(x: Array, part: Array, row: Any, j: Any, tile: int) -> Array:
    """Put tile j of a row back, see `_cut`."""
    start = [row, 0, j * tile, 0][: x.ndim]
    return lax.dynamic_update_slice(x, part.reshape(1, x.shape[1], tile, *x.shape[3:]), start)
