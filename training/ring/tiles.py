"""Which tiles of tokens see each other, from no more than what each tile begins and ends with.

Tokens lie in tiles of a fixed number. Within a row, tokens are ordered by (segment, position); a tile of keys can be
left out where it lies wholly after the queries' tile in that order, or in segments that have all ended before it.
Where tiles are runs of a packed row this is exact; whatever the arrangement, no visible pair is lost.
"""

from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array

from ...errors import UserError

NOBODY = np.iinfo(np.int32).max


class Where(NamedTuple):
    """Where tokens stand: `positions` and `segments` are int32 [B, L]; segment 0 is padding."""

    positions: Array
    segments: Array


class Bounds(NamedTuple):
    """The first and the last token of every tile in order of (segment, position), int32 [B, L/tile] each.

    A tile of nothing but padding begins after everything and ends before everything.
    """

    first_segment: Array
    first_position: Array
    last_segment: Array
    last_position: Array


class Ranges(NamedTuple):
    """Of each tile of one side the visible tiles [lo, hi) of the other, int32 [B, tiles]; none where lo = hi = 0."""

    lo: Array
    hi: Array


class Carry(NamedTuple):
    """The online softmax between two calls, fp32.

    Attributes:
      out: [B, Hq, Lq, D], not yet divided by `total`.
      top: [B, Hq, Lq], greatest score so far; `MASKED` where nothing was seen.
      total: [B, Hq, Lq], sum of exp(score - top).
    """

    out: Array
    top: Array
    total: Array


class Shard(NamedTuple):
    """Keys of one device, which go round.

    Attributes:
      k, v: [B, Hkv, Lk, D].
      where: those tokens stand.
    """

    k: Array
    v: Array
    where: Where


class Asked(NamedTuple):
    """Queries of one device, which stay, and what their gradients are made of.

    Attributes:
      q, d_out: [B, Hq, Lq, D], the queries and the cotangent of their result.
      lse: fp32 [B, Hq, Lq], log-sum-exp of the final softmax; 1e30 where nothing was seen.
      delta: fp32 [B, Hq, Lq], Σ_d d_out·out.
      where: those tokens stand.
    """

    q: Array
    d_out: Array
    lse: Array
    delta: Array
    where: Where


Gradients = tuple[Array, Array, Array]  # fp32: dq [B, Hq, Lq, D], dk and dv [B, Hkv, Lk, D]


class Block(Protocol):
    """Attention of one device's queries to one shard of keys, in whatever form suits the machine.

    Key head g serves the Hq/Hkv query heads from g·Hq/Hkv on. Lq and Lk are multiples of `tile`. Tiles outside the
    ranges are not looked at; inside, the mask of `attention.visible` is exact, so that padding gives and gets nothing.
    """

    @property
    def tile(self) -> int:
        """Tokens in a tile, of queries and of keys."""
        ...

    def forward(self, q: Array, here: Where, shard: Shard, ranges: Ranges, carry: Carry) -> Carry:
        """Add what queries q [B, Hq, Lq, D], which stand `here`, see in a shard to the online softmax."""
        ...

    def backward(self, asked: Asked, shard: Shard, by_query: Ranges, by_key: Ranges, sums: Gradients) -> Gradients:
        """Add to dq, dk and dv what these queries and this shard have to do with each other."""
        ...


def bounds(where: Where, tile: int) -> Bounds:
    """Find what each tile begins and ends with.

    Raises:
      UserError: if the tokens do not fill whole tiles.
    """
    length = where.segments.shape[1]
    if length % tile:
        raise UserError(
            f"attention works on tiles of {tile} tokens, and {length} tokens on a device are not a multiple of that: "
            f"choose a length that is a multiple of {tile} times the size of the ring"
        )
    positions, segments = (x.reshape(x.shape[0], -1, tile) for x in where)
    real = segments != 0
    first, last = jnp.min(jnp.where(real, segments, NOBODY), -1), jnp.max(segments, -1)
    begins, ends = real & (segments == first[..., None]), real & (segments == last[..., None])
    earliest = jnp.min(jnp.where(begins, positions, NOBODY), -1)
    return Bounds(first, earliest, last, jnp.max(jnp.where(ends, positions, -1), -1))


def sees(queries: Bounds, keys: Bounds) -> Array:
    """Tell which pairs of tiles may hold a visible pair of tokens: bool [B, query tiles, key tiles]."""
    (first, _, last, until), (begin, since, end, _) = (
        (x[:, :, None] for x in queries),
        (x[:, None, :] for x in keys),
    )
    not_after = (begin < last) | ((begin == last) & (since <= until))
    return not_after & (first <= end)


def by_query(queries: Bounds, keys: Bounds) -> Ranges:
    """Of each tile of queries, the tiles of keys that it may see."""
    return _hull(sees(queries, keys))


def by_key(queries: Bounds, keys: Bounds) -> Ranges:
    """Of each tile of keys, the tiles of queries that may see it."""
    return _hull(sees(queries, keys).swapaxes(1, 2))


def _hull(pairs: Array) -> Ranges:
    number = jnp.arange(pairs.shape[2], dtype=jnp.int32)
    hi = jnp.max(jnp.where(pairs, number + 1, 0), -1)
    return Ranges(jnp.minimum(jnp.min(jnp.where(pairs, number, NOBODY), -1), hi), hi)
