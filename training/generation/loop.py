"""The compiled parts: reading a chunk of a prompt into the cache, and writing token by token.

Each runs in one `shard_map` over the mesh (dp, fsdp, tp, sp), be it of one device alone: rows lie over dp and fsdp,
heads over tp, and the cache's slots over sp.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ...tokenizers.vocabulary import Vocabulary
from ..config import Model
from ..mesh import COLUMNS, ROWS, make_spread, specs
from ..model import Params, embed, heads, layer, rms_norm, rotation
from ..ring.ring import ring_forward
from ..ring.tiles import Block, Where
from . import cache as caches
from .cache import HELD, Cache
from .sample import Sampling, choose, guide, keys_of

SAMPLED, NOTHING = -1, -1  # in what is forced: a token that is not; in what is written: behind the end


class State(NamedTuple):
    """What was read, and the hidden state [B, E] that tells what comes next."""

    cache: Cache
    hidden: Array


class Plan(NamedTuple):
    """How tokens are written; all of it is compiled in.

    Attributes:
      twice: does the unconditional row stand after each one?
      pictures: are codes drawn, or text ids?
      stop: the token that ends a row, or -1.
    """

    model: Model
    vocabulary: Vocabulary
    mesh: Mesh
    sampling: Sampling
    twice: bool
    pictures: bool
    stop: int


_ROWS: Any = P(ROWS)
_STATE = State(caches.SPECS, _ROWS)


def _spread(mesh: Mesh, work: Callable[..., Any], given: Any, made: Any) -> Callable[..., Any]:
    return jax.shard_map(work, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty(model: Model, mesh: Mesh, rows: int, slots: int) -> State:
    """Make a state that has read nothing, with so many slots on each device."""
    own = rows // (mesh.shape["dp"] * mesh.shape["fsdp"])

    def make() -> State:
        cache = caches.empty(model, own, slots, model.kv_heads // mesh.shape["tp"])
        return State(cache, jnp.zeros((own, model.width), model.dtype))

    return _spread(mesh, make, (), _STATE)()


@partial(jax.jit, static_argnums=(0, 1))
def grow(mesh: Mesh, slots: int, state: State) -> State:
    """Make room for so many slots on each device."""

    def work(state: State) -> State:
        return state._replace(cache=caches.grow(state.cache, slots))

    return _spread(mesh, work, (_STATE,), _STATE)(state)


@jax.jit
def every_other(state: State) -> State:
    """Keep the first row of every two."""
    cache = state.cache
    where = Where(*(x[::2] for x in cache.where))
    return State(Cache(cache.k[:, ::2], cache.v[:, ::2], where, cache.lengths[::2], cache.filled), state.hidden[::2])


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def read(model: Model, mesh: Mesh, block: Block, params: Params, state: State, tokens: Array, real: Array) -> State:
    """Read a chunk [B, L] of which `real` tells the tokens from padding, each device its share."""
    spread = make_spread(model.dtype)

    def work(params: Params, state: State, tokens: Array, real: Array) -> State:
        cache, length = state.cache, tokens.shape[1]
        before = lax.all_gather(real.sum(1), COLUMNS)  # of each share
        own = lax.axis_index(COLUMNS)
        first = cache.lengths + jnp.where(jnp.arange(len(before)) < own, before.T, 0).sum(1)
        positions = jnp.maximum(first[:, None] + jnp.cumsum(real, 1) - 1, 0)
        here = Where(positions, jnp.where(real, HELD, 0))
        there = caches.mark(cache.where, here, cache.filled)
        turn = rotation(positions, model.head_width, model.theta)

        def one(x: Array, of: tuple[Params, Array, Array]) -> tuple[Array, Any]:
            weights, *held = of

            def attend(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
                new = k.swapaxes(1, 2), v.swapaxes(1, 2)
                keys, values = (caches.put(x, y, cache.filled, 2) for x, y in zip(held, new, strict=True))
                keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
                return ring_forward(q, keys, values, here, there, COLUMNS, block, ROWS), new

            return layer(x, weights, turn, model, attend, spread=spread)

        x = embed(params, tokens, spread).astype(model.dtype)
        x, (k, v) = lax.scan(one, x, (params["layers"], cache.k, cache.v))
        last = jnp.where(own == len(before) - 1, x[:, -1], 0)
        hidden = rms_norm(lax.psum(last, COLUMNS), params["norm"], model.eps)
        cache = caches.write(cache, k, v, here, cache.filled)
        return State(cache._replace(lengths=cache.lengths + before.sum(0), filled=cache.filled + length), hidden)

    given = specs(params), _STATE, P(ROWS, COLUMNS), P(ROWS, COLUMNS)
    return _spread(mesh, work, given, _STATE)(params, state, tokens, real)


def _step(params: Params, model: Model, cache: Cache, tokens: Array, alive: Array, n: Array) -> State:
    """Read the n-th token [B] since the cache was last filled: all devices along sp work on it, and one keeps it."""
    spread, ring = make_spread(model.dtype), lax.axis_size(COLUMNS)
    turn = rotation(cache.lengths[:, None], model.head_width, model.theta)
    seen = cache.where.segments != 0

    def one(x: Array, of: tuple[Params, Array, Array]) -> tuple[Array, Any]:
        weights, keys, values = of

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
            itself = caches.look(q, k, v, jnp.ones((len(q), 1), bool))
            part = caches.merge(caches.across(caches.look(q, keys, values, seen), COLUMNS), itself)
            mixed = part.out / part.total[..., None]
            return mixed.astype(q.dtype).swapaxes(1, 2), (k, v)

        return layer(x, weights, turn, model, attend, spread=spread)

    x = embed(params, tokens[:, None], spread).astype(model.dtype)
    x, (k, v) = lax.scan(one, x, (params["layers"], cache.k, cache.v))
    own = lax.axis_index(COLUMNS)
    here = Where(cache.lengths[:, None], jnp.where(alive & (own == n % ring), HELD, 0)[:, None])
    # The others write too, into the slot of their own next turn, where it counts for nothing.
    cache = caches.write(cache, k, v, here, cache.filled + (n + ring - 1 - own) // ring)
    return State(cache._replace(lengths=cache.lengths + alive), rms_norm(x[:, 0], params["norm"], model.eps))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def write(
    plan: Plan, params: Params, state: State, seed: Array, prompts: Array, alive: Array, forced: Array
) -> tuple[State, Array]:
    """Write until `forced` ends or all rows have: int32 [B, T], with every token read again."""
    model, vocabulary, sampling, steps = plan.model, plan.vocabulary, plan.sampling, len(forced)
    copies = 2 if plan.twice else 1
    first, size = (vocabulary.text_size, vocabulary.codes) if plan.pictures else (0, vocabulary.text_size)

    def next_token(params: Params, state: State, seed: Array, prompts: Array) -> Array:
        head = heads(params, make_spread(model.dtype))[plan.pictures].astype(model.dtype)
        logits = jnp.einsum("be,ev->bv", state.hidden, head, preferred_element_type=jnp.float32)[:, :size]
        if plan.twice:
            logits = guide(logits, sampling.guidance)
        return first + choose(logits, keys_of(seed, prompts, state.cache.lengths[::copies]), sampling)

    def work(
        params: Params, state: State, seed: Array, prompts: Array, alive: Array, forced: Array
    ) -> tuple[State, Array]:
        def goes_on(carry: Any) -> Array:
            n, _, _, any_alive, _ = carry
            return (n < steps) & any_alive

        def turn(carry: Any) -> Any:
            n, state, alive, _, written = carry
            drawn = next_token(params, state, seed, prompts)
            token = jnp.where(forced[n] == SAMPLED, drawn, forced[n])
            written = written.at[:, n].set(jnp.where(alive, token, NOTHING))
            twice = jnp.repeat(token, copies), jnp.repeat(alive, copies)
            state = _step(params, model, state.cache, *twice, n)
            alive = alive & (token != plan.stop)
            return n + 1, state, alive, lax.pmax(alive.any(), ROWS), written

        nothing = jnp.full((len(alive), steps), NOTHING, jnp.int32)
        start = jnp.int32(0), state, alive, lax.pmax(alive.any(), ROWS), nothing
        n, state, _, _, written = lax.while_loop(goes_on, turn, start)
        slots = -(-n // lax.axis_size(COLUMNS))
        return state._replace(cache=state.cache._replace(filled=state.cache.filled + slots)), written

    given = specs(params), _STATE, P(), P(ROWS), P(ROWS), P()
    return _spread(plan.mesh, work, given, (_STATE, P(ROWS)))(params, state, seed, prompts, alive, forced)
