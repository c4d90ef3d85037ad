"""Attention over a ring of devices: queries stay, keys go round, and nothing goes further than somebody needs it.

Every device holds a shard of each row's tokens, in any arrangement. Hop h works on the keys of the device h places
before, while the next ones are on their way. All devices know every shard's bounds of tiles, so they agree on the
last hop that is of use to any of them, and stop there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from ...errors import UserError
from ..attention import MASKED, Attention
from .tiles import Asked, Block, Bounds, Carry, Gradients, Shard, Where, bounds, by_key, by_query, sees
from .xla import Xla

FP32 = jnp.float32
UNSEEN = -MASKED  # a log-sum-exp that makes every share of a row that sees nothing 0
GATHER_BELOW = 2048  # tokens on a device: at 2K a ring of 16 ran half as fast as gathering (MaxText, pull request 4687)
ROUND = 1 << 15  # tokens of all rows times key heads that go round together in the backward pass, where shards are long
LEAST, SHORT = 8, 64  # tiles below `LEAST` cost more than they save; up to `SHORT` tokens that is soon over
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


def choose_block(length: int, depth: int) -> Block:
    """Take the form that is made for this machine, in the largest of its tiles that divide so many tokens.

    Where none does, or heads of `depth` numbers do not suit it, it is the form in plain JAX, which takes any.

    Raises:
      UserError: if the length has no divisor to make tiles of.
    """
    forms = *_forms(depth), *(Xla(tile) for tile in range(Xla().tile, 0, -1))
    block = next(form for form in forms if length % form.tile == 0)
    if block.tile < LEAST and length > SHORT:
        raise UserError(
            f"attention works on tiles of equal size, and {length} tokens on a device divide into none of more than "
            f"{block.tile}: pack to a multiple of 128 tokens for each device of the ring, or of {LEAST} at least"
        )
    return block


def _forms(depth: int) -> list[Block]:
    """List the forms that are made for this machine and for such heads, the best first.

    Triton refuses heads that are no power of two, such as those of preset 3b; Mosaic fills them up by itself.
    """
    match jax.default_backend():
        case "gpu" if depth >= 16 and depth & (depth - 1) == 0:
            from .triton import Triton

            return [Triton(tile) for tile in (128, 64, 32, 16)]
        case "tpu":
            from .mosaic import Mosaic

            return [Mosaic(tile) for tile in (512, 256, 128)]
    return []


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

    def ring_for(q: Array) -> Ring:
        _, length, _, depth = q.shape
        return Ring(axis, block or choose_block(length, depth), agree, length < gather_below)

    @jax.custom_vjp
    def attend(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> Array:
        return forward(q, k, v, positions, segments)[0]

    def forward(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> tuple[Array, Any]:
        ring, here = ring_for(q), Where(positions, segments)
        out, lse = _finish(_forward(ring, q, here, Shard(k, v, here)))
        out, lse = checkpoint_name(_heads_first(out.astype(q.dtype)), KEPT), checkpoint_name(lse, KEPT)
        return out, (q, k, v, positions, segments, out, lse)

    def backward(saved: Any, d_out: Array) -> tuple[Any, ...]:
        q, k, v, positions, segments, out, lse = saved
        here = Where(positions, segments)
        # Not by `einsum`, which at default precision rounds fp32 to bf16 on a TPU.
        delta = (d_out.astype(FP32) * out.astype(FP32)).sum(-1)
        asked = Asked(q, d_out, lse, _heads_first(delta), here)
        return *_by_heads(ring_for(q), asked, Shard(k, v, here)), None, None

    attend.defvjp(forward, backward)
    return attend


def ring_forward(
    q: Array,
    k: Array,
    v: Array,
    here: Where,
    there: Where,
    axis: str | None,
    block: Block,
    agree: Sequence[str],
) -> Array:
    """Attend from some queries to other keys, as a cache is filled; without gradients.

    Args:
      q: [B, Lq, Hq, D] of this device.
      k, v: [B, Lk, Hkv, D], this device's shard.
      here, there: where queries and keys stand; keys of segment 0 are seen by nobody.
      axis, block, agree: see `make_ring`; the block's tile divides both lengths.

    Returns:
      [B, Lq, Hq, D], of the type of `q`.
    """
    out, _ = _finish(_forward(Ring(axis, block, agree, False), q, here, Shard(k, v, there)))
    return _heads_first(out.astype(q.dtype))


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


def _forward(ring: Ring, q: Array, here: Where, shard: Shard) -> Carry:
    """Go round with keys; q and the shard come with tokens before heads."""
    sight = _look(ring, here, shard.where)
    q, shard = _heads_first(q), shard._replace(k=_heads_first(shard.k), v=_heads_first(shard.v))
    carry = Carry(jnp.zeros(q.shape, FP32), jnp.full(q.shape[:3], MASKED, FP32), jnp.zeros(q.shape[:3], FP32))

    def work(hop: Array, shard: Shard, carry: Carry) -> Carry:
        ranges = by_query(sight.queries, _pick(sight.keys, _owner(ring, hop)))
        return ring.block.forward(q, here, shard, ranges, carry)

    def turn(hop: Array, state: Any) -> Any:
        shard, carry = state
        coming = _pass_on(ring, shard, 1)
        return coming, work(hop, shard, carry)

    if ring.size == 1:
        return work(jnp.int32(0), shard, carry)
    if ring.gather:
        shards = lax.all_gather(shard, ring.axis)
        return lax.fori_loop(0, sight.last + 1, lambda hop, x: work(hop, _pick(shards, _owner(ring, hop)), x), carry)
    shard, carry = lax.fori_loop(0, sight.last, turn, (shard, carry))
    return work(sight.last, shard, carry)


def _by_heads(ring: Ring, asked: Asked, shard: Shard) -> Gradients:
    """Go round with as many key heads at a time as `ROUND` allows: what is under way is the most that is held.

    All but lse and delta comes and goes with tokens before heads.
    """
    rows, length, heads, _ = shard.k.shape
    sight = _look(ring, asked.where, shard.where)
    most = heads if ring.size == 1 else min(heads, -(-ROUND // (rows * length)))
    at_once = next(n for n in range(most, 0, -1) if heads % n == 0)

    def some(i: Array, done: Gradients) -> Gradients:
        def cut(x: Array) -> Array:
            """Take these heads, and put them before the tokens."""
            if x.ndim == 2:
                return x
            axis = x.ndim - 2
            size = x.shape[axis] * at_once // heads
            x = lax.dynamic_slice_in_dim(x, i * size, size, axis)
            return _heads_first(x) if axis == 2 else x

        def put(x: Array, y: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(x, _heads_first(y).astype(x.dtype), i * y.shape[1], 2)

        mine, going = jax.tree.map(cut, (asked, shard))
        dq, dk, dv = _backward(ring, mine, going, sight)
        return put(done[0], dq), put(done[1], dk), put(done[2], dv)

    nothing = jnp.zeros_like(asked.q), jnp.zeros_like(shard.k), jnp.zeros_like(shard.v)
    return lax.fori_loop(0, heads // at_once, some, nothing)


def _backward(ring: Ring, asked: Asked, shard: Shard, sight: Sight) -> Gradients:
    dq, nothing = jnp.zeros(asked.q.shape, FP32), jnp.zeros(shard.k.shape, FP32)
    zeros = nothing, nothing

    def work(hop: Array, shard: Shard, sums: Gradients) -> Gradients:
        keys = _pick(sight.keys, _owner(ring, hop))
        ranges = by_query(sight.queries, keys), by_key(sight.queries, keys)
        return ring.block.backward(asked, shard, *ranges, sums)

    def turn(hop: Array, state: Any) -> Any:
        """Send on what all hops but the latest have added to dk and dv, while this hop adds its own."""
        shard, dq, fresh, sums = state
        coming, sums = _pass_on(ring, shard, 1), _pass_on(ring, _add(sums, fresh), 1)
        dq, *fresh = work(hop, shard, (dq, *zeros))
        return coming, dq, tuple(fresh), sums

    if ring.size == 1:
        return work(jnp.int32(0), shard, (dq, *zeros))
    if ring.gather:
        return _backward_gathered(ring, work, shard, dq, sight.last)
    shard, dq, fresh, sums = lax.fori_loop(0, sight.last, turn, (shard, dq, zeros, zeros))
    sums = lax.cond(sight.last > 0, lambda x: _pass_on(ring, x, 1), lambda x: x, _add(sums, fresh))
    dq, *sums = work(sight.last, shard, (dq, *sums))
    return dq, *_home(ring, tuple(sums), sight.last)


def _backward_gathered(ring: Ring, work: Callable[..., Gradients], shard: Shard, dq: Array, last: Array) -> Gradients:
    shards = lax.all_gather(shard, ring.axis)

    def turn(hop: Array, state: Any) -> Any:
        dq, sums = state
        owner = _owner(ring, hop)
        dq, *new = work(hop, _pick(shards, owner), (dq, *_pick(sums, owner)))
        return dq, tuple(x.at[owner].set(y) for x, y in zip(sums, new, strict=True))

    nothing = jnp.zeros(shards.k.shape, FP32)
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
    """Divide, and return the log-sum-exp too; a query that saw nothing gives zeros and `UNSEEN`.

    Its top is `MASKED`, and so are the scores that are hidden from it: kept as it is, exp(score - lse) would be 1.
    """
    seen = carry.total > 0
    total = jnp.where(seen, carry.total, 1.0)
    return carry.out / total[..., None], jnp.where(seen, carry.top + jnp.log(total), UNSEEN)


def _heads_first(x: Array) -> Array:
    """Exchange the axes of tokens and heads."""
    return x.swapaxes(1, 2)
