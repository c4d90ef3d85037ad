"""On a GPU: attention against cuDNN's and XLA's, and what share of the machine's matrix products a training step uses.

A step's operations are those that the model asks for, and no recomputation: for every token 6 for each parameter
that multiplies it (2 forward, 4 backward; the embedding multiplies nothing), and for every pair of tokens that may see
each other 12·D in each head of each layer (scores and mixing, 2·D each, once forward and twice backward). A document of
L tokens has L·(L+1)/2 such pairs. The ceiling is what a large product of bf16 matrices reaches in the same process.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from worldloom.packing.weights import Rule
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training.attention import Attention
from worldloom.training.config import Model, parse
from worldloom.training.model import size
from worldloom.training.ring.ring import make_ring
from worldloom.training.step import begin, make_step

from .measure import RUNS, Measure, seconds, speedup

DOCUMENTS = 16  # in a packed row
ROUNDING = 2e-2  # largest difference of two bf16 computations over the largest number


class Sizes(NamedTuple):
    """What is measured; `heads` are query heads, key heads and their size, and lengths come with their floors."""

    heads: tuple[int, int, int] = (32, 8, 128)
    peers: tuple[tuple[str, int, float], ...] = (("cudnn", 8192, 0.5), ("cudnn", 32_768, 0.5), ("xla", 4096, 1.0))
    packed: tuple[int, float] = (32_768, 5.0)
    model: str = "1b"
    steps: tuple[tuple[int, float], ...] = ((8192, 0.40), (32_768, 0.40), (131_072, 0.35))
    tokens: int = 32_768  # of a step, where a row has fewer
    square: int = 16_384


def measures() -> Iterator[Measure]:
    """Yield speedups over peers, forward and backward, and the step's share of the ceiling; nothing without a GPU."""
    if jax.default_backend() != "gpu":
        print("not measured: this machine has no GPU that JAX can use", file=sys.stderr)
        return
    yield from all_of(Sizes(), make_ring(axis=None))


def all_of(sizes: Sizes, ours: Attention) -> Iterator[Measure]:
    """Yield every measure, whatever the machine."""
    for name, length, floor in sizes.peers:
        ratio = against(partial(peer, name), ours, sizes.heads, length, 1)
        yield Measure(f"gpu-attention-{length}-over-{name}", ratio, floor)
    length, floor = sizes.packed
    # cuDNN's public form knows no documents: it computes every pair before a token, as a trainer without skipping does.
    ratio = against(partial(peer, sizes.peers[0][0]), ours, sizes.heads, length, DOCUMENTS)
    yield Measure(f"gpu-attention-{length}-packed-over-{sizes.peers[0][0]}-causal", ratio, floor)
    most = ceiling(sizes.square)
    print(f"ceiling of bf16 products: {most / 1e12:.0f} TFLOP/s", file=sys.stderr)
    for length, floor in sizes.steps:
        yield Measure(f"gpu-mfu-{sizes.model}-{length}", step_rate(sizes, ours, length) / most, floor)


def peer(name: str, q: Array, k: Array, v: Array, positions: Array, segments: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=name)


def against(theirs: Attention, ours: Attention, heads: tuple[int, int, int], length: int, documents: int) -> float:
    """Return how many times faster ours goes forward and backward over one row of equal documents.

    Raises:
      AssertionError: with one document, where both compute the same, the results differ by more than bf16 rounds.
    """
    many, few, depth = heads
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, length, n, depth)), jnp.bfloat16) for n in (many, few, few))
    where = [jnp.asarray(x) for x in packed(1, length, documents)]
    calls = [forward_and_backward(attend, q, k, v, where) for attend in (ours, theirs)]
    found = list(zip(*(call() for call in calls), strict=True))
    if documents == 1 and max(error(*pair) for pair in found) > ROUNDING:
        raise AssertionError(f"attention differs from the peer's: {[error(*pair) for pair in found]}")
    took = [statistics.median(seconds(call) for _ in range(RUNS)) for call in calls]
    rate = 12 * depth * many * pairs(length, documents) / took[0] / 1e12
    print(f"{length} tokens in {documents}: {took[0]:.4f} s, {rate:.0f} TFLOP/s, peer {took[1]:.4f} s", file=sys.stderr)
    return speedup(*calls)


def error(ours: Array, theirs: Array) -> float:
    """Measure the largest difference against the largest number."""
    ours, theirs = (x.astype(jnp.float32) for x in (ours, theirs))
    return float(jnp.abs(ours - theirs).max() / jnp.abs(theirs).max())


def forward_and_backward(attend: Attention, q: Array, k: Array, v: Array, where: list[Array]) -> Callable[[], Any]:
    @jax.jit
    def both(q: Array, k: Array, v: Array) -> tuple[Array, ...]:
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, *where), q, k, v)
        return out, *back(q)  # any cotangent of the right shape will do

    return lambda: jax.block_until_ready(both(q, k, v))


def packed(rows: int, length: int, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and segments, int32 [rows, length], of rows of equal documents."""
    at = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return at % (length // documents), at // (length // documents) + 1


def pairs(length: int, documents: int = 1) -> int:
    """Count the pairs of tokens of a row that may see each other."""
    return documents * (length // documents) * (length // documents + 1) // 2


def ceiling(side: int) -> float:
    """Measure FLOP/s of a product of square bf16 matrices."""
    x, y = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(jnp.dot)
    took = [seconds(lambda: jax.block_until_ready(product(x, y))) for _ in range(2 * RUNS)]
    return 2 * side**3 / statistics.median(took[1:])


def step_rate(sizes: Sizes, attend: Attention, length: int) -> float:
    """Measure the model's FLOP/s in whole optimizer steps on rows of one document."""
    rows = max(1, sizes.tokens // length)
    vocabulary = Vocabulary(text_size=32_000, bos=1, eos=2, text_digest="benchmark")
    config = parse({
        "data": {"path": "."}, "out": ".", "steps": 1000, "rows": rows,
        "model": {"preset": sizes.model, "dtype": "bfloat16"}, "memory": {"remat": "attention", "ffn_chunk": 8192},
    })  # fmt: skip
    state, step, parts = begin(config, vocabulary), make_step(config, Rule.TOKEN, attend), random_parts(rows, length)
    took = []
    for _ in range(2 + RUNS):  # the first compiles, the second warms up
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, parts, rows))
        took.append(time.perf_counter() - start)
    if not np.isfinite(metrics.loss):
        raise AssertionError(f"the loss of rows of {length} tokens is {metrics.loss}")
    return step_operations(config.model, vocabulary, rows, length) / statistics.median(took[2:])


def random_parts(rows: int, length: int) -> dict[str, Array]:
    """Draw what a step takes: rows of one document each, of random ids, every one of them trained."""
    tokens = np.random.default_rng(0).integers(0, 32_000, (2, 1, rows, length), np.int32)
    positions, segments = (x[None] for x in packed(rows, length, 1))
    parts = {"tokens": tokens[0], "targets": tokens[1], "positions": positions, "segments": segments}
    return jax.tree.map(jnp.asarray, parts | {"weights": np.ones((1, rows, length), np.float32)})


def step_operations(model: Model, vocabulary: Vocabulary, rows: int, length: int) -> int:
    """Count a step's operations as the module says."""
    multiplying = size(model, vocabulary) - vocabulary.text_size * model.width
    attention = 12 * model.head_width * model.heads * model.layers * pairs(length)
    return rows * (6 * multiplying * length + attention)
