"""The parameters one by one: how each is called, its shape, and the matrix that files of others keep it as."""

from collections.abc import Iterable
from typing import Any

import jax
import ml_dtypes
import numpy as np

from ...errors import UserError
from ...tokenizers.vocabulary import Vocabulary
from ..config import Model
from ..model import Params, is_shape, shapes

Key = tuple[str, ...]  # of a leaf in the tree of `model.py`
Shape = tuple[int, ...]
Leaf = tuple[Key, np.ndarray]

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
MERGED_INPUTS = ("o", "down")  # whose last axis is the output; of the others the first is the input


def leaf_shapes(model: Model, vocabulary: Vocabulary) -> dict[Key, Shape]:
    """List every leaf with its shape."""
    leaves, _ = jax.tree.flatten_with_path(shapes(model, vocabulary), is_leaf=is_shape)
    return {tuple(step.key for step in path): shape for path, shape in leaves}


def matrix(name: str, shape: Shape) -> Shape:
    """Return one layer's shape, or a head's, as a matrix [inputs, outputs]; norms and embeddings keep theirs."""
    if len(shape) == 1 or name == "embedding":
        return shape
    inputs = int(np.prod(shape[:-1])) if name in MERGED_INPUTS else shape[0]
    return inputs, int(np.prod(shape)) // inputs


def stacked(shape: Shape, layers: Iterable[np.ndarray]) -> np.ndarray:
    """Stack the arrays of all layers as fp32, one after the other."""
    out = np.empty(shape, np.float32)
    for row, array in zip(out, layers, strict=True):
        row[...] = array.reshape(row.shape)
    return out


def put(params: Params, key: Key, leaf: Any) -> None:
    """Put a leaf into a tree."""
    for name in key[:-1]:
        params = params.setdefault(name, {})
    params[key[-1]] = leaf


def pick(params: Params, key: Key) -> Any:
    """Take a leaf out of a tree."""
    leaf: Any = params
    for name in key:
        leaf = leaf[name]
    return leaf


def check_shape(where: object, name: str, found: Iterable[int], wanted: Shape) -> None:
    """Refuse an array of another shape than the model's.

    Raises:
      UserError: names the array, both shapes and the remedy.
    """
    if tuple(found) != wanted:
        raise UserError(
            f"{where}: {name} has the shape {list(found)}, but the model's is {list(wanted)}: give model the width, "
            "layers, heads, kv_heads and ffn of these weights, and take the vocabulary that they were trained with"
        )


def dtype_named(name: str) -> np.dtype:
    """Return one of the types in which weights are written.

    Raises:
      UserError: it is another.
    """
    if name not in DTYPES:
        raise UserError(f"weights are written as one of {', '.join(DTYPES)}, not as {name!r}")
    return DTYPES[name]
