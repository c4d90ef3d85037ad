"""Attention over a ring of devices: queries stay, keys go round, and nothing goes further than somebody needs it.

Every device holds a shard of each row's tokens, in any arrangement. Hop h works on the keys of the device h places
before, while the next ones are on their way. All devices know every shard's bounds of tiles, so they agree on the
last hop that is of use to any of them, and stop there.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from ..attention import MASKED, Attention
from .tiles import Block, Bounds, Carry, Gradients, Where, bounds, by_key, by_query, sees
from .xla import Xla

FP32 = jnp.float32
UNSEEN = -MASKED  # a log-sum-exp that makes every share of a row that sees nothing 0
GATHER_BELOW = 2048  # tokens on a device: at 2K a ring of 16 ran half as fast as gathering (MaxText, pull request 4687)
ROUND = 1 << 15  # tokens times key heads that go round together in the backward pass, where shards are long
KEPT = "attention"  # what a policy of `jax.checkpoint` may save, so that the backward pass need not go round first


class Ring(NamedTuple):
    """Say which devices work together, and how.

    Attributes:
      axis: of the mesh, which the sequence is spread over; None where it is not.
      block: the form for one device.
      agree: other axes of the mesh, whose rings make as many hops as this one.
      gather: whether all keys are fetched at once, for shards so short that going round would only wait.
    """

    axis: str | None
    block: Block
    agree: Sequence[str]
    gather: bool

    @property
    def size(self) -> int:
        return lax.axis_size(self.axis) if self.axis else 1


class Sight(NamedTuple):
    """Bounds of the queries here and of all shards of keys [N, …], and the last hop that anybody needs."""

    queries: Bounds
    keys: Bounds
    last: Array


def choose_block(length: int) -> Block:
    """Take the form that is made for this machine, in the largest of its tiles that divide so many tokens.

    Where none does, it is the form in plain JAX, whose tiles may be of any size.
    """
    match jax.default_backend():
        case "gpu":
            from .triton import Triton

            forms: list[Block] = [Triton(tile) for tile in (128, 64, 32, 16)]
        case "tpu":
            from .mosaic import Mosaic

            forms = [Mosaic(tile) for tile in (512, 256, 128)]
        case _:
            forms = []
    forms += [Xla(tile) for tile in range(Xla().tile, 0, -1)]
    return next(form for form in forms if length % form.tile == 0)


def make_ring(
    axis: str | None = "sp",
    block: Block | None = None,
    agree: Sequence[str] = ("dp", "fsdp"),
    gather_below: int = GATHER_BELOW,
) -> Attention:
    """Make attention for the inside of a `jax.shard_map` (with check_vma=False): each device has its own shard.

    Args:
      axis: of the mesh, which the sequence is spread over; None for one device alone, outside of any mesh.
      block: the form for one device; left out, what suits the machine.
      agree: the other axes over which rows are spread.
      gather_below: tokens on a device; shorter shards are gathered at once instead of going round.

    Returns:
      a function equal in signature and result to `attention.attention`.
    """

    def ring_for(length: int) -> Ring:
        return Ring(axis, block or choose_block(length), agree, length < gather_below)

    @jax.custom_vjp
    def attend(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> Array:
        return forward(q, k, v, positions, segments)[0]

    def forward(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> tuple[Array, Any]:
        ring, here = ring_for(q.shape[1]), Where(positions, segments)
        carry = _forward(ring, (q, k, v), here, here, _look(ring, here, here))
        out, lse = _finish(carry)
        out, lse = checkpoint_name(_heads_first(out.astype(q.dtype)), KEPT), checkpoint_name(lse, KEPT)
        return out, (q, k, v, positions, segments, out, lse)

    def backward(saved: Any, d_out: Array) -> tuple[Any, ...]:
        q, k, v, positions, segments, out, lse = saved
        ring, here = ring_for(q.shape[1]), Where(positions, segments)
        delta = jnp.einsum("blhd,blhd->bhl", d_out, out, preferred_element_type=FP32)
        lse = jnp.where(lse <= MASKED, UNSEEN, lse)
        sums = _by_heads(ring, q, k, v, d_out, lse, delta, here, _look(ring, here, here))
        return *sums, None, None

    attend.defvjp(forward, backward)
    return attend


def ring_forward(
    q: Array,
    k: Array,
    v: Array,
    here: Where,
    there: Where,
    axis: str | None = "sp",
    block: Block | None = None,
    agree: Sequence[str] = (),
) -> tuple[Array, Array]:
    """Attend from some queries to other keys, as a cache is filled; without gradients.

    Args:
      q: [B, Lq, Hq, D] of this device.
      k, v: [B, Lk, Hkv, D], this device's shard.
      here, there: where queries and keys stand; keys of segment 0 are seen by nobody.
      axis, block, agree: see `make_ring`.

    Returns:
      out [B, Lq, Hq, D], of the type of `q`, and log-sum-exp fp32 [B, Hq, Lq], -1e30 where nothing was seen.
    """
    ring = Ring(axis, block or choose_block(math.gcd(q.shape[1], k.shape[1])), agree, False)
    carry = _forward(ring, (q, k, v), here, there, _look(ring, here, there))
    out, lse = _finish(carry)
    return _heads_first(out.astype(q.dtype)), lse


def _look(ring: Ring, here: Where, there: Where) -> Sight:
    queries, keys = bounds(here, ring.block.tile), bounds(there, ring.block.tile)
    if ring.size == 1:
        return Sight(queries, Bounds(*(x[None] for x in keys)), jnp.int32(0))
    everywhere = lax.all_gather(keys, ring.axis)
    useful = lax.map(lambda keys: sees(queries, keys).any(), everywhere)
    hops = (lax.axis_index(ring.axis) - jnp.arange(ring.size)) % ring.size
    return Sight(queries, everywhere, lax.pmax(jnp.max(jnp.where(useful, hops, 0)), (ring.axis, *ring.agree)))


def _owner(ring: Ring, hop: Array) -> Array:
    """Tell whose keys a hop works on here."""
    return (lax.axis_index(ring.axis) - hop) % ring.size if ring.axis else jnp.int32(0)


def _forward(ring: Ring, qkv: tuple[Array, Array, Array], here: Where, there: Where, sight: Sight) -> Carry:
    q, k, v = map(_heads_first, qkv)
    carry = Carry(jnp.zeros(q.shape, FP32), jnp.full(q.shape[:3], MASKED, FP32), jnp.zeros(q.shape[:3], FP32))

    def work(hop: Array, shard: tuple[Array, Array, Where], carry: Carry) -> Carry:
        k, v, there = shard
        ranges = by_query(sight.queries, _pick(sight.keys, _owner(ring, hop)))
        return ring.block.forward(q, k, v, here, there, ranges, carry)

    def turn(hop: Array, state: Any) -> Any:
        shard, carry = state
        coming = _pass_on(ring, shard, 1)
        return coming, work(hop, shard, carry)

    shard: Any = k, v, there
    if ring.size == 1:
        return work(jnp.int32(0), shard, carry)
    if ring.gather:
        shards = lax.all_gather(shard, ring.axis)
        return lax.fori_loop(0, sight.last + 1, lambda hop, x: work(hop, _pick(shards, _owner(ring, hop)), x), carry)
    shard, carry = lax.fori_loop(0, sight.last, turn, (shard, carry))
    return work(sight.last, shard, carry)


def _by_heads(
    ring: Ring, q: Array, k: Array, v: Array, d_out: Array, lse: Array, delta: Array, here: Where, sight: Sight
) -> Gradients:
    """Go round with as many key heads at a time as `ROUND` allows: what is under way is the most that is held."""
    heads = k.shape[2]
    most = heads if ring.size == 1 else min(heads, -(-ROUND // k.shape[1]))
    at_once = next(n for n in range(most, 0, -1) if heads % n == 0)

    def some(i: Array, done: Gradients) -> Gradients:
        def cut(x: Array, axis: int) -> Array:
            size = x.shape[axis] * at_once // heads
            return lax.dynamic_slice_in_dim(x, i * size, size, axis)

        def put(x: Array, y: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(x, _heads_first(y).astype(x.dtype), i * y.shape[1], 2)

        first = [_heads_first(cut(x, 2)) for x in (q, k, v, d_out)]
        dq, dk, dv = _backward(ring, first[0], first[1], first[2], first[3], cut(lse, 1), cut(delta, 1), here, sight)
        return put(done[0], dq), put(done[1], dk), put(done[2], dv)

    return lax.fori_loop(0, heads // at_once, some, (jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v)))


def _backward(
    ring: Ring, q: Array, k: Array, v: Array, d_out: Array, lse: Array, delta: Array, here: Where, sight: Sight
) -> Gradients:
    dq, nothing = jnp.zeros(q.shape, FP32), jnp.zeros(k.shape, FP32)

    def work(hop: Array, shard: tuple[Array, Array, Where], sums: Gradients) -> Gradients:
        k, v, there = shard
        keys = _pick(sight.keys, _owner(ring, hop))
        ranges = by_query(sight.queries, keys), by_key(sight.queries, keys)
        return ring.block.backward(q, k, v, d_out, lse, delta, here, there, *ranges, *sums)

    def turn(hop: Array, state: Any) -> Any:
        """Send on what all hops but the latest have added to dk and dv, while this hop adds its own."""
        shard, dq, fresh, sums = state
        coming, sums = _pass_on(ring, shard, 1), _pass_on(ring, _add(sums, fresh), 1)
        dq, *fresh = work(hop, shard, (dq, nothing, nothing))
        return coming, dq, tuple(fresh), sums

    shard, zeros = (k, v, here), (nothing, nothing)
    if ring.size == 1:
        return work(jnp.int32(0), shard, (dq, *zeros))
    if ring.gather:
        return _backward_gathered(ring, work, shard, dq, sight.last)
    shard, dq, fresh, sums = lax.fori_loop(0, sight.last, turn, (shard, dq, zeros, zeros))
    sums = lax.cond(sight.last > 0, lambda x: _pass_on(ring, x, 1), lambda x: x, _add(sums, fresh))
    dq, *sums = work(sight.last, shard, (dq, *sums))
    return dq, *_home(ring, tuple(sums), sight.last)


def _backward_gathered(ring: Ring, work: Callable[..., Gradients], shard: Any, dq: Array, last: Array) -> Gradients:
    shards = lax.all_gather(shard, ring.axis)

    def turn(hop: Array, state: Any) -> Any:
        dq, sums = state
        owner = _owner(ring, hop)
        dq, *new = work(hop, _pick(shards, owner), (dq, *_pick(sums, owner)))
        return dq, tuple(x.at[owner].set(y) for x, y in zip(sums, new, strict=True))

    nothing = jnp.zeros(shards[0].shape, FP32)
    dq, sums = lax.fori_loop(0, last + 1, turn, (dq, (nothing, nothing)))
    return dq, *(lax.psum_scatter(x, ring.axis) for x in sums)


def _home(ring: Ring, sums: Any, hops: Array) -> Any:
    """Send back what is `hops` places from its owner, by one permute for each bit of that number."""
    for bit in range((ring.size - 1).bit_length()):
        sums = lax.cond(hops >> bit & 1, partial(_pass_on, ring, places=-(1 << bit)), lambda x: x, sums)
    return sums


def _pass_on(ring: Ring, x: Any, places: int) -> Any:
    return lax.ppermute(x, ring.axis, [(i, (i + places) % ring.size) for i in range(ring.size)])


def _pick(x: Any, i: Array) -> Any:
    return jax.tree.map(lambda y: y[i], x)


def _add(x: Any, y: Any) -> Any:
    return jax.tree.map(jnp.add, x, y)


def _finish(carry: Carry) -> tuple[Array, Array]:
    """Divide, and return the log-sum-exp too; a row that saw nothing gives zeros and `MASKED`."""
    total = jnp.where(carry.total > 0, carry.total, 1.0)
    return carry.out / total[..., None], carry.top + jnp.log(total)


def _heads_first(x: Array) -> Array:
    """Exchange the axes of tokens and heads."""
    return x.swapaxes(1, 2)
