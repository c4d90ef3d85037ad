"""The model: LLaMA's shape as plain arrays and two functions, with a second embedding and head for vision.

Parameters are one dictionary; every layer's arrays are stacked on their first axis:

    text, vision      {embedding [V, E], head [E, V]}; vision only where the vocabulary has picture codes
    layers            {attention_norm [N, E], q [N, E, Hq, D], k, v [N, E, Hkv, D], o [N, Hq, D, E],
                       ffn_norm [N, E], gate, up [N, E, F], down [N, F, E]}
    norm              [E]

They are fp32 masters; each is cast to the type of the activations where it is used. `AXES` names what every axis
means, for `mesh.py` to lay over devices.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..tokenizers.vocabulary import Vocabulary
from .attention import Attention, attention
from .config import Memory, Model

Params = dict[str, Any]
Axes = tuple[str, ...]
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]

INIT_STD = 0.02  # LWM (llama.py: initializer_range)
DIGIT = 2048  # positions are written with two digits of this base, see `rotation`
MAX_POSITIONS = DIGIT * DIGIT

_TABLES = {"embedding": ("ids", "table_width"), "head": ("table_width", "ids")}
AXES: Params = {
    "text": _TABLES,
    "vision": _TABLES,
    "layers": {
        "attention_norm": ("layers", "norm"),
        "q": ("layers", "width", "heads", "head"),
        "k": ("layers", "width", "kv_heads", "head"),
        "v": ("layers", "width", "kv_heads", "head"),
        "o": ("layers", "heads", "head", "width"),
        "ffn_norm": ("layers", "norm"),
        "gate": ("layers", "width", "ffn"),
        "up": ("layers", "width", "ffn"),
        "down": ("layers", "ffn", "width"),
    },
    "norm": ("norm",),
}


class Spread(NamedTuple):
    """Say how a model whose parameters are spread over devices works together; alone, nothing is to be done.

    Attributes:
      gather: makes an array whole, but for the axes of which each device computes its own part (`heads`, `ffn`).
      add: sums what those parts gave.
    """

    gather: Callable[[Array, Axes], Array] = lambda weights, axes: weights
    add: Callable[[Array], Array] = lambda x: x


ALONE = Spread()
WHOLE = Memory()


def shapes(model: Model, vocabulary: Vocabulary) -> Params:
    """Lay out the parameters: the tree of the module's docstring with a shape at every leaf."""
    n, e, f, d = model.layers, model.width, model.ffn, model.head_width
    tree: Params = {
        "text": {"embedding": (vocabulary.text_size, e), "head": (e, vocabulary.text_size)},
        "layers": {
            "attention_norm": (n, e),
            "q": (n, e, model.heads, d),
            "k": (n, e, model.kv_heads, d),
            "v": (n, e, model.kv_heads, d),
            "o": (n, model.heads, d, e),
            "ffn_norm": (n, e),
            "gate": (n, e, f),
            "up": (n, e, f),
            "down": (n, f, e),
        },
        "norm": (e,),
    }
    if vocabulary.vision_size:
        tree["vision"] = {"embedding": (vocabulary.vision_size, e), "head": (e, vocabulary.vision_size)}
    return tree


def size(model: Model, vocabulary: Vocabulary) -> int:
    """Count the parameters."""
    leaves = jax.tree.leaves(shapes(model, vocabulary), is_leaf=is_shape)
    return sum(math.prod(shape) for shape in leaves)


def init(key: Array, model: Model, vocabulary: Vocabulary) -> Params:
    """Draw fp32 parameters: ones for norms, a normal of deviation 0.02 for all else."""
    paths, tree = jax.tree.flatten_with_path(shapes(model, vocabulary), is_leaf=is_shape)
    keys = jax.random.split(key, len(paths))

    def draw(path: tuple[Any, ...], shape: tuple[int, ...], key: Array) -> Array:
        if path[-1].key.endswith("norm"):
            return jnp.ones(shape, jnp.float32)
        return INIT_STD * jax.random.normal(key, shape, jnp.float32)

    return jax.tree.unflatten(tree, [draw(path, shape, key) for (path, shape), key in zip(paths, keys, strict=True)])


def is_shape(node: object) -> bool:
    """Tell a leaf of `shapes` from the tree around it."""
    return isinstance(node, tuple)


def apply(
    params: Params,
    tokens: Array,
    positions: Array,
    segments: Array,
    model: Model,
    attend: Attention = attention,
    memory: Memory = WHOLE,
    spread: Spread = ALONE,
) -> Array:
    """Turn tokens into the normalised hidden states that the heads read.

    Args:
      params: see the module's docstring.
      tokens: int32 [B, L], ids of the one id space.
      positions: int32 [B, L], from 0 in each segment, below `MAX_POSITIONS`.
      segments: int32 [B, L]; 0 is padding, whose hidden states mean nothing and get no gradient.
      attend: any form of attention, see `attention.py`.
      memory: what is kept for the backward pass; the result is the same.
      spread: how devices work together, inside a `jax.shard_map` over them.

    Returns:
      [B, L, E] of type `model.dtype`.
    """
    turn = rotation(positions, model.head_width, model.theta)

    def one(x: Array, weights: Params) -> tuple[Array, None]:
        def seeing(q: Array, k: Array, v: Array) -> tuple[Array, None]:
            return attend(q, k, v, positions, segments), None

        return layer(x, weights, turn, model, seeing, memory.ffn_chunk, spread)

    x = embed(params, tokens, spread).astype(model.dtype)
    x, _ = lax.scan(_remat(one, memory.remat), x, params["layers"])
    return rms_norm(x, params["norm"], model.eps)


def layer(
    x: Array,
    weights: Params,
    turn: tuple[Array, Array],
    model: Model,
    attend: Attend,
    ffn_chunk: int | None = None,
    spread: Spread = ALONE,
) -> tuple[Array, Any]:
    """Run one layer: attention, then the feed-forward, each added to what came in.

    Args:
      x: [B, L, E].
      weights: one layer's.
      turn: see `rotation`.
      attend: from q, k and v, [B, L, H, D] and already rotated, to the mixed values and whatever else it has to say,
        which comes back beside the layer's result.
      ffn_chunk: tokens that the feed-forward works on at once; left out, all.
    """
    weights = {name: spread.gather(array, AXES["layers"][name][1:]) for name, array in weights.items()}
    y = rms_norm(x, weights["attention_norm"], model.eps)
    q, k, v = (project("ble,ehd->blhd", y, weights[name]) for name in "qkv")
    mixed, extra = attend(rotate(q, turn), rotate(k, turn), v)
    x = x + spread.add(project("blhd,hde->ble", mixed, weights["o"]))

    def feed(x: Array) -> Array:
        y = rms_norm(x, weights["ffn_norm"], model.eps)
        inner = jax.nn.silu(project("ble,ef->blf", y, weights["gate"])) * project("ble,ef->blf", y, weights["up"])
        return spread.add(project("blf,fe->ble", inner, weights["down"]))

    return x + _by_chunks(feed, x, ffn_chunk), extra


def _by_chunks(feed: Callable[[Array], Array], x: Array, chunk: int | None) -> Array:
    """Apply a function of single tokens to [B, L, E], at most so many of L at once; chunks are recomputed."""
    rows, length, width = x.shape
    if chunk is None or length <= chunk:
        return feed(x)
    size = next(size for size in range(chunk, 0, -1) if length % size == 0)
    pieces = x.reshape(rows, length // size, size, width).swapaxes(0, 1)
    return lax.map(jax.checkpoint(feed), pieces).swapaxes(0, 1).reshape(x.shape)


def _remat(one: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Keep for the backward pass what `Memory.remat` says."""
    if what == "none":
        return one
    policies = jax.checkpoint_policies
    kept = policies.save_only_these_names("attention") if what == "attention" else policies.nothing_saveable
    return jax.checkpoint(one, policy=kept, prevent_cse=False)


def heads(params: Params, spread: Spread = ALONE) -> tuple[Array, ...]:
    """List the heads, [E, V] each, in the order in which their ids follow each other in the one id space."""
    return tuple(spread.gather(params[name]["head"], _TABLES["head"]) for name in ("text", "vision") if name in params)


def embed(params: Params, tokens: Array, spread: Spread = ALONE) -> Array:
    """Look each id up in the table of its own modality: [B, L] to fp32 [B, L, E]."""
    text = spread.gather(params["text"]["embedding"], _TABLES["embedding"])
    if "vision" not in params:
        return text[tokens]
    vision, codes = spread.gather(params["vision"]["embedding"], _TABLES["embedding"]), tokens - len(text)
    seen = vision[jnp.maximum(codes, 0)]
    return jnp.where((codes >= 0)[..., None], seen, text[jnp.minimum(tokens, len(text) - 1)])


def project(equation: str, x: Array, weights: Array) -> Array:
    """Multiply by weights in the type of `x`; matrix units sum in fp32 whatever the type.

    Nothing is asked to come back in fp32, since the backward products would then have operands of two types, which run
    at less than half the speed.
    """
    return jnp.einsum(equation, x, weights.astype(x.dtype))


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Divide the last axis by its root mean square and scale it, in fp32; the type of `x` comes back."""
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


def rotation(positions: Array, width: int, theta: float) -> tuple[Array, Array]:
    """Return the cosine and sine of RoPE's angles, exact to a few units of fp32 at every position.

    An fp32 product position · frequency is off by up to 0.05 radians at a million. So each position is written
    as `DIGIT · high + low`, the angles of both digits are tabulated on the host in float64, and the two rotations are
    composed: cos(a + b) = cos a cos b − sin a sin b.

    Args:
      positions: int32 [B, L] in [0, MAX_POSITIONS).
      width: of a head, even.
      theta: base of the frequencies theta^(-2i/width).

    Returns:
      Two of fp32 [B, L, width / 2].
    """
    angles = np.arange(DIGIT)[:, None] * theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    high, low = positions // DIGIT, positions % DIGIT

    def look_up(angles: np.ndarray, digit: Array) -> tuple[Array, Array]:
        return (jnp.asarray(np.cos(angles), jnp.float32)[digit], jnp.asarray(np.sin(angles), jnp.float32)[digit])

    (cos_a, sin_a), (cos_b, sin_b) = look_up(angles * DIGIT, high), look_up(angles, low)
    return cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b


def rotate(x: Array, turn: tuple[Array, Array]) -> Array:
    """Turn component i of each head together with component i + D/2, in fp32.

    Hugging Face's LLaMA pairs the halves in this way; LWM and Meta pair neighbours, so their q and k are permuted.

    Args:
      x: [B, L, H, D].
      turn: cosine and sine, [B, L, D / 2].
    """
    cos, sin = (part[:, :, None] for part in turn)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
