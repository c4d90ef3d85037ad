"""Reading prompts and writing on from there: texts until they end, frames of a given number of codes.

Rows of unequal length are padded on the left. What a row gives depends on nothing that stands beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ...errors import UserError
from ...tokenizers.vocabulary import Vocabulary
from .. import config
from ..config import Model
from ..mesh import COLUMNS, make_mesh, specs
from ..model import MAX_POSITIONS, Params
from ..ring.ring import choose_block
from . import loop
from .loop import State
from .sample import GREEDY, IMAGE, LATER, Sampling

Ids = Sequence[int]

CHUNK = 512  # tokens of a prompt that a device reads at once
SLOTS = 128  # the cache grows by so many slots a device: a multiple of every tile
LEAST = 16  # tokens of the shortest chunk: prompts of few lengths compile few programs


def alone() -> Mesh:
    """Return the mesh of one device."""
    return make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])


def place_leaf(key: Sequence[str], leaf: Any, model: Model, mesh: Mesh) -> Array:
    """Lay one parameter over a mesh, for reading alone: all but norms in the type of the activations.

    Raises:
      UserError: the mesh does not divide it.
    """
    tree: Any = leaf
    for name in reversed(key):
        tree = {name: tree}
    (spec,) = jax.tree.leaves(specs(tree), is_leaf=lambda node: isinstance(node, P))
    where = NamedSharding(mesh, spec)
    try:
        where.shard_shape(leaf.shape)
    except ValueError:
        sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
        raise UserError(
            f"mesh {sizes} does not divide {'/'.join(key)} {list(leaf.shape)}: choose sizes that do"
        ) from None
    return jax.device_put(leaf if key[-1].endswith("norm") else leaf.astype(model.dtype), where)


def place(params: Params, model: Model, mesh: Mesh) -> Params:
    """Lay all parameters over a mesh, see `place_leaf`."""
    return jax.tree.map_with_path(lambda path, leaf: place_leaf([key.key for key in path], leaf, model, mesh), params)


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
        return loop.empty(self.model, self.mesh, rows, _up(-(-tokens // self._ring), SLOTS))

    def fitting(self, rows: int) -> int:
        """Round a number of rows up to what the mesh divides."""
        return _up(rows, self.mesh.shape["dp"] * self.mesh.shape["fsdp"])

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
        block = choose_block(math.gcd(chunk, SLOTS), self.model.head_width)
        for part in zip(np.split(tokens, count, 1), np.split(real, count, 1), strict=True):
            state = loop.read(self.model, self.mesh, block, self.params, state, *part)
        return state

    def speak(
        self, state: State, new_tokens: int, sampling: Sampling = GREEDY, seed: int = 0, prompts: Ids | None = None
    ) -> tuple[State, list[list[int]]]:
        """Write text in every row until EOS or so many tokens; what comes back has no EOS.

        Args:
          prompts: the number of each row's prompt, which its chance comes from; -1 for a row that stays silent.
        """
        free = np.full(new_tokens, loop.SAMPLED, np.int32)
        state, written = self._write(state, free, False, sampling, seed, prompts)
        ends = (loop.NOTHING, self.vocabulary.eos)
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
        forced = np.full((frames, codes + 1), loop.SAMPLED, np.int32)
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
            state = state if later.guided or not twice else loop.every_other(state)
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
        rows = self.fitting(min(self.rows, len(prompts)))
        for low in range(0, len(order), rows):
            numbers = order[low : low + rows]
            spare = rows - len(numbers)
            results = work([prompts[n] for n in numbers] + [[]] * spare, numbers + [-1] * spare)
            for number, result in zip(numbers, results, strict=False):
                made[number] = result
        return made

    def _with_room(self, state: State, slots: int) -> State:
        held, used = state.cache.k.shape[3] // self._ring, int(state.cache.filled)
        longest = int(np.asarray(state.cache.lengths).max()) + slots * self._ring
        if longest > MAX_POSITIONS:
            raise UserError(
                f"a prompt and its answer take {longest:,} tokens, and the model counts {MAX_POSITIONS:,}: shorten them"
            )
        if used + slots <= held:
            return state
        return loop.grow(self.mesh, _up(max(used + slots, 2 * held), SLOTS), state)

    def _write(
        self, state: State, forced: np.ndarray, pictures: bool, sampling: Sampling, seed: int, prompts: Ids | None
    ) -> tuple[State, np.ndarray]:
        state = self._with_room(state, -(-len(forced) // self._ring) + 1)
        rows = len(state.hidden)
        numbers = np.asarray(range(rows) if prompts is None else prompts, np.int32)
        stop = -1 if pictures else self.vocabulary.eos
        plan = loop.Plan(self.model, self.vocabulary, self.mesh, sampling, rows > len(numbers), pictures, stop)
        given = np.uint32(seed), numbers, numbers >= 0, forced
        state, written = loop.write(plan, self.params, state, *given)
        return state, np.asarray(written)


def _chunks(longest: int, ring: int) -> tuple[int, int]:
    """Return in how many chunks a prompt is read, and how many tokens of each a device reads."""
    own = max(1, -(-longest // ring))
    count = -(-own // CHUNK)
    chunk = -(-own // count)
    return count, _up(chunk, SLOTS) if chunk > SLOTS else max(LEAST, 1 << (chunk - 1).bit_length())


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
