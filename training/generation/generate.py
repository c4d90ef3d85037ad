"""Reading prompts into a cache, and writing on from there: texts until they end, frames of a given number of codes.

Everything runs in one `shard_map` over the mesh (dp, fsdp, tp, sp), be it of one device alone: rows lie over dp and
fsdp, heads over tp, and the cache's slots over sp. Rows of unequal length are padded on the left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ...errors import UserError
from ...tokenizers.vocabulary import Vocabulary
from .. import config
from ..config import Model
from ..mesh import COLUMNS, ROWS, make_mesh, make_spread, specs
from ..model import MAX_POSITIONS, Params, embed, heads, layer, rms_norm, rotation
from ..ring.ring import choose_block, ring_forward
from ..ring.tiles import Block, Carry, Where
from ..ring.xla import Xla
from . import cache as caches
from .cache import HELD, Cache
from .sample import GREEDY, IMAGE, LATER, Sampling, choose, guide, keys_of

Ids = Sequence[int]

CHUNK = 512  # tokens of a prompt that a device reads at once
SLOTS = 128  # the cache grows by so many slots a device: a multiple of every tile
LEAST = 16  # tokens of the shortest chunk: prompts of few lengths compile few programs
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


_STATE = State(caches.SPECS, P(ROWS))


def _spread(mesh: Mesh, work: Callable[..., Any], given: Any, made: Any) -> Callable[..., Any]:
    return jax.shard_map(work, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)


def alone() -> Mesh:
    """Return the mesh of one device."""
    return make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])


def place(params: Params, model: Model, mesh: Mesh) -> Params:
    """Lay parameters over a mesh for reading alone: everything but norms in the type of the activations."""

    def put(path: tuple[Any, ...], array: Array, spec: P) -> Array:
        kept = array if path[-1].key.endswith("norm") else array.astype(model.dtype)
        return jax.device_put(kept, NamedSharding(mesh, spec))

    return jax.tree.map_with_path(put, params, specs(params))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _empty(model: Model, mesh: Mesh, rows: int, slots: int) -> State:
    own = rows // (mesh.shape["dp"] * mesh.shape["fsdp"])

    def make() -> State:
        cache = caches.empty(model, own, slots, model.kv_heads // mesh.shape["tp"])
        return State(cache, jnp.zeros((own, model.width), model.dtype))

    return _spread(mesh, make, (), _STATE)()


@partial(jax.jit, static_argnums=(0, 1))
def _grow(mesh: Mesh, slots: int, state: State) -> State:
    grow = lambda state: state._replace(cache=caches.grow(state.cache, slots))  # noqa: E731
    return _spread(mesh, grow, (_STATE,), _STATE)(state)


@jax.jit
def _every_other(state: State) -> State:
    cache = state.cache
    where = Where(*(x[::2] for x in cache.where))
    return State(Cache(cache.k[:, ::2], cache.v[:, ::2], where, cache.count[::2], cache.filled), state.hidden[::2])


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _read(model: Model, mesh: Mesh, block: Block, params: Params, state: State, tokens: Array, real: Array) -> State:
    """Read a chunk [B, L] of which `real` tells the tokens from padding, each device its share."""
    spread = make_spread(model.dtype)

    def read(params: Params, state: State, tokens: Array, real: Array) -> State:
        cache, length = state.cache, tokens.shape[1]
        before = lax.all_gather(real.sum(1), COLUMNS)  # of each share
        own = lax.axis_index(COLUMNS)
        first = cache.count + jnp.where(jnp.arange(len(before)) < own, before.T, 0).sum(1)
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
                return ring_forward(q, keys, values, here, there, COLUMNS, block, ROWS)[0], new

            return layer(x, weights, turn, model, attend, spread=spread)

        x = embed(params, tokens, spread).astype(model.dtype)
        x, (k, v) = lax.scan(one, x, (params["layers"], cache.k, cache.v))
        last = jnp.where(own == len(before) - 1, x[:, -1], 0)
        hidden = rms_norm(lax.psum(last, COLUMNS), params["norm"], model.eps)
        cache = caches.write(cache, k, v, here, cache.filled)
        return State(cache._replace(count=cache.count + before.sum(0), filled=cache.filled + length), hidden)

    given = specs(params), _STATE, P(ROWS, COLUMNS), P(ROWS, COLUMNS)
    return _spread(mesh, read, given, _STATE)(params, state, tokens, real)


def _step(params: Params, model: Model, cache: Cache, tokens: Array, alive: Array, n: Array) -> State:
    """Read the n-th token [B] since the cache was last filled: all devices along sp work on it, and one keeps it."""
    spread, ring = make_spread(model.dtype), lax.axis_size(COLUMNS)
    turn = rotation(cache.count[:, None], model.head_width, model.theta)
    seen = cache.where.segments != 0

    def one(x: Array, of: tuple[Params, Array, Array]) -> tuple[Array, Any]:
        weights, keys, values = of

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
            itself = caches.look(q, k, v, jnp.ones((len(q), 1), bool))
            part = caches.merge(caches.across(caches.look(q, keys, values, seen), COLUMNS), itself)
            return _mixed(part).astype(q.dtype), (k, v)

        return layer(x, weights, turn, model, attend, spread=spread)

    x = embed(params, tokens[:, None], spread).astype(model.dtype)
    x, (k, v) = lax.scan(one, x, (params["layers"], cache.k, cache.v))
    own = lax.axis_index(COLUMNS)
    here = Where(cache.count[:, None], jnp.where(alive & (own == n % ring), HELD, 0)[:, None])
    # The others write too, into the slot of their own next turn, where it counts for nothing.
    cache = caches.write(cache, k, v, here, cache.filled + (n + ring - 1 - own) // ring)
    return State(cache._replace(count=cache.count + alive), rms_norm(x[:, 0], params["norm"], model.eps))


def _mixed(part: Carry) -> Array:
    return (part.out / part.total[..., None]).swapaxes(1, 2)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _write(
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
        return first + choose(logits, keys_of(seed, prompts, state.cache.count[::copies]), sampling)

    def write(
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
    work = _spread(plan.mesh, write, given, (_STATE, P(ROWS)))
    return work(params, state, seed, prompts, alive, forced)


@dataclass(frozen=True, eq=False)
class Generator:
    """Read and write with one model.

    Attributes:
      params: on the devices of the mesh, see `place`.
      rows: prompts that are worked on at once, at most.
    """

    params: Params
    model: Model
    vocabulary: Vocabulary
    mesh: Mesh
    rows: int = 16

    def begin(self, rows: int, tokens: int) -> State:
        """Make room for rows of so many tokens; more is made where it is needed."""
        return _empty(self.model, self.mesh, rows, _up(-(-tokens // self._ring), SLOTS))

    def hear(self, state: State, prompts: Sequence[Ids]) -> State:
        """Read on in every row, long prompts in chunks; a row may have nothing to read.

        Raises:
          UserError: a row grows longer than the model counts.
        """
        count, chunk = _chunks(max(map(len, prompts)), self._ring)
        tokens = np.zeros((len(prompts), count * chunk * self._ring), np.int32)
        real = np.zeros(tokens.shape, bool)
        for row, prompt in enumerate(prompts):
            if len(prompt):
                tokens[row, -len(prompt) :], real[row, -len(prompt) :] = prompt, True
        state = self._with_room(state, count * chunk)
        block = choose_block()
        block = Xla(min(chunk, SLOTS)) if chunk % block.tile else block
        for part in zip(np.split(tokens, count, 1), np.split(real, count, 1), strict=True):
            state = _read(self.model, self.mesh, block, self.params, state, *part)
        return state

    def speak(
        self, state: State, new_tokens: int, sampling: Sampling = GREEDY, seed: int = 0, prompts: Ids | None = None
    ) -> tuple[State, list[list[int]]]:
        """Write text in every row until EOS or so many tokens; what comes back has no EOS.

        Args:
          prompts: the number of each row's prompt, which its chance comes from; -1 for a row that stays silent.
        """
        free = np.full(new_tokens, SAMPLED, np.int32)
        state, written = self._write(state, free, False, sampling, seed, prompts)
        ends = (NOTHING, self.vocabulary.eos)
        return state, [[int(token) for token in row if token not in ends] for row in written]

    def paint(
        self,
        state: State,
        frames: int,
        codes: int,
        last: bool = True,
        sampling: Sampling = IMAGE,
        seed: int = 0,
        prompts: Ids | None = None,
    ) -> tuple[State, np.ndarray]:
        """Write frames of so many codes: int32 [B, frames, codes]; each is ended by force, the last one by EOV.

        Where the state has twice as many rows as there are prompts, every second is the unconditional one of the row
        before it, and has no result.

        Args:
          last: does the picture or video end here?
        """
        forced = np.full((frames, codes + 1), SAMPLED, np.int32)
        forced[:, -1] = self.vocabulary.eof
        forced[-1, -1] = self.vocabulary.eov if last else self.vocabulary.eof
        state, written = self._write(state, forced.ravel(), True, sampling, seed, prompts)
        return state, written.reshape(-1, frames, codes + 1)[:, :, :-1] - self.vocabulary.text_size

    def reply(
        self, prompts: Sequence[Ids], new_tokens: int, sampling: Sampling = GREEDY, seed: int = 0
    ) -> list[list[int]]:
        """Continue prompts with text, each until EOS, which is left out, or so many tokens."""

        def work(prompts: Sequence[Ids], numbers: Ids) -> Sequence[list[int]]:
            state = self.begin(len(prompts), max(map(len, prompts)) + new_tokens)
            return self.speak(self.hear(state, prompts), new_tokens, sampling, seed, numbers)[1]

        return self._by_batches(work, prompts)

    def draw(
        self,
        prompts: Sequence[Ids],
        blank: Ids,
        frames: int,
        codes: int,
        first: Sampling = IMAGE,
        later: Sampling = LATER,
        seed: int = 0,
    ) -> list[np.ndarray]:
        """Draw a picture or a video for each prompt, which ends with what opens one: int32 [frames, codes] each.

        Args:
          blank: the unconditional prompt.
          first, later: how the first frame is drawn, and those after it.
        """

        def work(prompts: Sequence[Ids], numbers: Ids) -> Sequence[np.ndarray]:
            twice = first.guided or (frames > 1 and later.guided)
            lines = [line for prompt in prompts for line in ([prompt, blank] if twice else [prompt])]
            state = self.begin(len(lines), max(map(len, lines)) + frames * (codes + 1))
            state = self.hear(state, lines)
            state, drawn = self.paint(state, 1, codes, frames == 1, first, seed, numbers)
            if frames == 1:
                return list(drawn)
            state = state if later.guided or not twice else _every_other(state)
            rest = self.paint(state, frames - 1, codes, True, later, seed, numbers)[1]
            return list(np.concatenate([drawn, rest], 1))

        return self._by_batches(work, prompts)

    @property
    def _ring(self) -> int:
        return int(self.mesh.shape[COLUMNS])

    def _by_batches(self, work: Callable[[Sequence[Ids], Ids], Sequence[Any]], prompts: Sequence[Ids]) -> list[Any]:
        """Work on prompts of about one length at a time; the last rows may stand for none."""
        if not prompts:
            return []
        order, made = sorted(range(len(prompts)), key=lambda n: len(prompts[n])), [None] * len(prompts)
        rows = _up(min(self.rows, len(prompts)), self.mesh.shape["dp"] * self.mesh.shape["fsdp"])
        for low in range(0, len(order), rows):
            numbers = order[low : low + rows]
            spare = rows - len(numbers)
            results = work([prompts[n] for n in numbers] + [[]] * spare, numbers + [-1] * spare)
            for number, result in zip(numbers, results, strict=False):
                made[number] = result
        return made

    def _with_room(self, state: State, slots: int) -> State:
        held, used = state.cache.k.shape[3] // self._ring, int(state.cache.filled)
        longest = int(state.cache.count.max()) + slots * self._ring
        if longest > MAX_POSITIONS:
            raise UserError(f"a prompt and its answer take {longest:,} tokens, and the model counts {MAX_POSITIONS:,}: shorten them")
        if used + slots <= held:
            return state
        return _grow(self.mesh, _up(max(used + slots, 2 * held), SLOTS), state)

    def _write(
        self, state: State, forced: np.ndarray, pictures: bool, sampling: Sampling, seed: int, prompts: Ids | None
    ) -> tuple[State, np.ndarray]:
        state = self._with_room(state, -(-len(forced) // self._ring) + 1)
        rows = len(state.hidden)
        numbers = np.asarray(range(rows) if prompts is None else prompts, np.int32)
        stop = -1 if pictures else self.vocabulary.eos
        plan = Plan(self.model, self.vocabulary, self.mesh, sampling, rows > len(numbers), pictures, stop)
        given = np.uint32(seed), numbers, numbers >= 0, forced
        state, written = _write(plan, self.params, state, *given)
        return state, np.asarray(written)


def _chunks(longest: int, ring: int) -> tuple[int, int]:
    """Return in how many chunks a prompt is read, and how many tokens of each a device reads."""
    own = max(1, -(-longest // ring))
    count = -(-own // CHUNK)
    chunk = -(-own // count)
    return count, _up(chunk, SLOTS) if chunk > SLOTS else max(LEAST, 1 << (chunk - 1).bit_length())


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
