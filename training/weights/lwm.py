"""LWM's own parameters: what each is called in its stream, and how it is turned into ours and back.

Matrices are [inputs, outputs] as ours; RoPE pairs neighbours there (lwm/llama.py: apply_rotary_emb) and halves here
(`model.rotate`), so the columns of q and k change places. Pictures have tables of their own with 8,448 rows
(lwm/vision_llama.py), numbered from 0: 8,192 codes, eof, eov, and 254 rows that nothing reads. These are dropped on
reading and zeros on writing; whoever samples from written weights with LWM's code masks the ids from 8,194 on.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...tokenizers.vocabulary import CODES, Vocabulary
from ..config import Model
from ..model import Params
from .leaves import Key, Leaf, Shape, check_shape, dtype_named, leaf_shapes, matrix, pick, stacked
from .stream import Stream, write_stream

ROWS = CODES + 256  # of LWM's tables of pictures (vision_llama.py: vision_vocab_size)
TOP: dict[Key, Key] = {
    ("text", "embedding"): ("transformer", "wte", "embedding"),
    ("text", "head"): ("lm_head", "kernel"),
    ("vision", "embedding"): ("transformer", "vte", "embedding"),
    ("vision", "head"): ("vision_head", "kernel"),
    ("norm",): ("transformer", "ln_f", "kernel"),
}
LAYERS = {
    "attention_norm": ("attention_norm", "kernel"),
    "q": ("attention", "wq", "kernel"),
    "k": ("attention", "wk", "kernel"),
    "v": ("attention", "wv", "kernel"),
    "o": ("attention", "wo", "kernel"),
    "ffn_norm": ("ffn_norm", "kernel"),
    "gate": ("feed_forward", "w1", "kernel"),
    "up": ("feed_forward", "w3", "kernel"),
    "down": ("feed_forward", "w2", "kernel"),
}
STACKED = ("transformer", "h", "scan_decoder")  # all layers in one array; else ("transformer", "h", "0") and so on
STATES = (("params", "params"), ("params",), ())  # where the parameters are in a stream: of a whole state, or alone


def read(path: Path, model: Model, vocabulary: Vocabulary) -> Iterator[Leaf]:
    """Yield the leaves of a model, fp32, each of which is read when it is asked for; of text alone, none of `vision`.

    Raises:
      UserError: file, shapes or vocabulary do not go together.
    """
    stream = Stream(path)
    root = next(root for root in STATES if not root or any(key[: len(root)] == root for key in stream))
    has_vision = (*root, *TOP["vision", "embedding"]) in set(stream)
    if has_vision and vocabulary.codes not in (0, CODES):
        raise UserError(
            f"{path} knows {CODES} picture codes, but the vocabulary has {vocabulary.codes}: take LWM's VQGAN"
        )
    for key, shape in leaf_shapes(model, vocabulary).items():
        if key[0] == "layers":
            yield key, stacked(shape, _layers(stream, path, root, key[1], shape))
        elif key[0] != "vision" or has_vision:
            yield key, _whole(stream, path, (*root, *TOP[key]), key, shape)


def _whole(stream: Stream, path: Path, name: Key, key: Key, shape: Shape) -> np.ndarray:
    """Read a table, a head or the last norm; of the tables of pictures, the rows that are used."""
    axis = 0 if key[-1] == "embedding" else -1
    found, wanted = stream.tensor(name), list(shape)
    if key[0] == "vision":
        wanted[axis] = ROWS
    check_shape(path, "/".join(name), found.shape, tuple(wanted))
    used = found[: shape[0]] if axis == 0 else found[..., : shape[-1]]
    return used.astype(np.float32)


def _layers(stream: Stream, path: Path, root: Key, leaf: str, shape: Shape) -> Iterator[np.ndarray]:
    """Read what the layers have of a leaf, each shaped as ours."""
    wanted = matrix(leaf, shape[1:])
    name = (*root, *STACKED, *LAYERS[leaf])
    if name in set(stream):
        whole = stream.tensor(name)
        check_shape(path, "/".join(name), whole.shape, (shape[0], *wanted))
        yield from (_ours(leaf, array.reshape(shape[1:])) for array in whole)
        return
    for layer in range(shape[0]):
        name = (*root, "transformer", "h", str(layer), *LAYERS[leaf])
        array = stream.tensor(name)
        check_shape(path, "/".join(name), array.shape, wanted)
        yield _ours(leaf, array.reshape(shape[1:]))


def _ours(leaf: str, array: np.ndarray) -> np.ndarray:
    """Bring q's and k's pairs of neighbours, [E, H, D], into halves."""
    if leaf not in ("q", "k"):
        return array
    return array.reshape(*array.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(array.shape)


def _theirs(leaf: str, array: np.ndarray) -> np.ndarray:
    """Bring q's and k's halves, [..., D], into pairs of neighbours."""
    if leaf not in ("q", "k"):
        return array
    return array.reshape(*array.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(array.shape)


def write(params: Params, model: Model, vocabulary: Vocabulary, path: Path, dtype: str = "bfloat16") -> None:
    """Write a model as LWM reads it with `params::PATH` and its default, stacked layers.

    Args:
      dtype: `bfloat16`, `float16` or `float32`.

    Raises:
      UserError: LWM's model has no such heads or codes, the file is there, or an array too large for the form.
    """
    kind = dtype_named(dtype)
    if model.kv_heads != model.heads:
        raise UserError(f"LWM's model has a key head for each of its {model.heads} heads, not {model.kv_heads} in all")
    if vocabulary.codes not in (0, CODES):
        raise UserError(f"LWM's model knows {CODES} picture codes, and this one {vocabulary.codes}: write it otherwise")
    if path.exists():
        raise UserError(f"{path} is there already: choose a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = leaf_shapes(model, vocabulary)
    write_stream(path, ((_name(key), _tensor(params, key, shape, kind)) for key, shape in shapes.items()))


def _name(key: Key) -> Key:
    return (*STACKED, *LAYERS[key[1]]) if key[0] == "layers" else TOP[key]


def _tensor(params: Params, key: Key, shape: Shape, kind: np.dtype) -> np.ndarray:
    leaf = pick(params, key)
    if key[0] == "layers":
        out = np.empty((shape[0], *matrix(key[1], shape[1:])), kind)
        for layer, row in enumerate(out):
            row[...] = _theirs(key[1], np.asarray(leaf[layer])).reshape(row.shape)
        return out
    array = np.asarray(leaf).astype(kind)
    if key[0] != "vision":
        return array
    spare = ROWS - (CODES + 2)
    return np.pad(array, ((0, spare), (0, 0)) if key[1] == "embedding" else ((0, 0), (0, spare)))
