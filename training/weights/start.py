"""Where first parameters come from: a run of ours, Hugging Face's files, or LWM's; tables of pictures may be new."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...tokenizers.vocabulary import Vocabulary
from ..checkpoint import open_run
from ..config import Model
from ..model import INIT_STD, Params
from . import huggingface, lwm
from .leaves import Key, Leaf, Shape, check_shape, leaf_shapes, pick, put

RUN = "run.json"


def load_weights(
    path: str | Path,
    model: Model,
    vocabulary: Vocabulary,
    seed: int = 0,
    place: Callable[[Key, np.ndarray], Any] = lambda key, leaf: leaf,
) -> Params:
    """Read the parameters of a model from whatever lies at a path.

    A model of pictures may begin as one of text: its tables of pictures are then drawn, and all else is kept as it is.

    Args:
      path: the folder of a run or of Hugging Face's files, or a stream of LWM's, with or without its `params::`.
      seed: of the tables that are drawn.
      place: is given each leaf, fp32 on the host, before the next is read, and what it returns goes into the tree.

    Raises:
      UserError: nothing of these lies there, or it does not fit model or vocabulary.
    """
    wanted, params = leaf_shapes(model, vocabulary), Params()
    for key, leaf in _leaves(Path(str(path).rpartition("::")[2]), model, vocabulary):
        put(params, key, place(key, leaf))
    if "vision" not in params:
        for number, key in enumerate(key for key in wanted if key[0] == "vision"):
            put(params, key, place(key, _drawn(wanted[key], seed, number)))
    return params


def _leaves(path: Path, model: Model, vocabulary: Vocabulary) -> Iterator[Leaf]:
    if (path / RUN).exists():
        return _of_run(path, model, vocabulary)
    if (path / huggingface.CONFIG).exists():
        return huggingface.read(path, model, vocabulary)
    if path.is_file():
        return lwm.read(path, model, vocabulary)
    raise UserError(
        f"{path} holds no weights: name the folder of a run (with {RUN}), one of Hugging Face's (with "
        f"{huggingface.CONFIG}), or a stream of LWM's"
    )


def _of_run(path: Path, model: Model, vocabulary: Vocabulary) -> Iterator[Leaf]:
    """Yield the leaves of a run of ours whose ids mean the same."""
    params, _, known = open_run(path)
    both = bool(known.codes and vocabulary.codes)
    if known.text_digest != vocabulary.text_digest or (both and known.vision_digest != vocabulary.vision_digest):
        raise UserError(f"{path} was trained with another tokenizer: take data that was built with the same")
    for key, shape in leaf_shapes(model, vocabulary).items():
        if key[0] in params:
            leaf = pick(params, key)
            check_shape(path, "/".join(key), leaf.shape, shape)
            yield key, np.asarray(leaf, np.float32)


def _drawn(shape: Shape, seed: int, number: int) -> np.ndarray:
    """Draw a table as `model.init` draws all: normal, of deviation 0.02."""
    return INIT_STD * np.random.default_rng([seed, number]).standard_normal(shape, np.float32)
