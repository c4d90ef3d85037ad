"""Where first parameters come from: a run of ours, Hugging Face's files, or LWM's; tables of pictures may be new."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...errors import UserError
from ...tokenizers.vocabulary import Vocabulary
from ..checkpoint import CHECKPOINTS, RUN, Checkpoints, describe_run, open_run
from ..config import Model
from ..model import INIT_STD, Params
from ..step import State
from . import huggingface, lwm
from .leaves import Key, Leaf, check_shape, leaf_shapes, pick, put


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
    params: Params = {}
    for key, leaf in leaves(path, model, vocabulary):
        put(params, key, place(key, leaf))
    for key, leaf in missing_tables(params, model, vocabulary, seed):
        put(params, key, place(key, leaf))
    return params


def existing(path: str | Path) -> Path:
    """Return the place of weights, without LWM's `params::` before it.

    Raises:
      UserError: nothing lies there.
    """
    place = Path(str(path).rpartition("::")[2])
    if not place.exists():
        raise UserError(
            f"{place} does not exist: name the folder of a run, one of Hugging Face's weights, or a stream of LWM's"
        )
    return place


def leaves(path: str | Path, model: Model, vocabulary: Vocabulary) -> Iterator[Leaf]:
    """Yield the leaves that lie at a path, fp32: see `load_weights`."""
    place = Path(str(path).rpartition("::")[2])
    if (place / RUN).exists():
        return _of_run(place, model, vocabulary)
    if (place / huggingface.CONFIG).exists():
        return huggingface.read(place, model, vocabulary)
    if place.is_file():
        return lwm.read(place, model, vocabulary)
    raise UserError(
        f"{place} holds no weights: name the folder of a run (with {RUN}), one of Hugging Face's (with "
        f"{huggingface.CONFIG}), or a stream of LWM's"
    )


def missing_tables(params: Params, model: Model, vocabulary: Vocabulary, seed: int) -> Iterator[Leaf]:
    """Draw the tables of pictures that a model has and its weights have not, as `model.init` does."""
    if "vision" in params:
        return
    tables = [(key, shape) for key, shape in leaf_shapes(model, vocabulary).items() if key[0] == "vision"]
    for number, (key, shape) in enumerate(tables):
        yield key, INIT_STD * np.random.default_rng([seed, number]).standard_normal(shape, np.float32)


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


def save_run(out: Path, params: Params, model: Model, vocabulary: Vocabulary, origin: str) -> None:
    """Make parameters the folder of a run that nothing was trained in yet: to generate from it, or begin from it.

    Raises:
      UserError: the folder holds a run already.
    """
    if (out / RUN).exists() or (out / CHECKPOINTS).exists():
        raise UserError(f"{out} holds a run already: choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    with closing(Checkpoints(out / CHECKPOINTS, 1, {"weights": origin})) as saved:
        saved.save(State(params, {}, jnp.int32(0)))
    describe_run(out, model, vocabulary)
