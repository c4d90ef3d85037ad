"""LLaMA as Hugging Face keeps it: `config.json` and safetensors, in one file or in shards with an index.

Their matrices are [outputs, inputs], ours turned round. RoPE pairs the halves of a head there as here (`model.rotate`),
so q and k stay as they are. A model of pictures has one table there for all ids of the one id space, text first.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ...errors import UserError
from ...tokenizers.vocabulary import Vocabulary
from ..config import Model
from ..model import Params
from .leaves import Key, Leaf, Shape, check_shape, dtype_named, leaf_shapes, matrix, pick, stacked

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
JSON_BYTES = 2**26  # an index of a model of hundreds of layers has a few hundred kilobytes
POSITIONS = 2**20  # LWM's config.json; nothing in LLaMA ends there
TYPES = ("F32", "F16", "BF16")

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LAYERS = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
PASSED_OVER = "rotary_emb.inv_freq"  # frequencies, which older files hold; theta tells them


class Described(NamedTuple):
    """What a `config.json` says of a model.

    Attributes:
      model: its numbers, with RoPE's theta and the norms' eps.
      ids: number of its ids.
      tied: is the head the embedding?
    """

    model: Model
    ids: int
    tied: bool


def describe(folder: Path) -> Described:
    """Read what a folder's `config.json` says of its model.

    Raises:
      UserError: it is no LLaMA, or one with parts that the model here has not.
    """
    told = _read_json(folder / CONFIG)
    _check_kind(folder, told)
    try:
        heads, rope = told["num_attention_heads"], told.get("rope_parameters") or {}
        numbers = {
            "width": told["hidden_size"],
            "layers": told["num_hidden_layers"],
            "heads": heads,
            "kv_heads": told.get("num_key_value_heads") or heads,
            "ffn": told["intermediate_size"],
            "theta": float(rope.get("rope_theta") or told.get("rope_theta") or 1e4),  # their default
            "eps": told.get("rms_norm_eps", 1e-6),
        }
        model, ids = Model.model_validate(numbers), int(told["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} does not describe a LLaMA that can be read here: {error}") from error
    if (told.get("head_dim") or model.head_width) != model.head_width:
        raise UserError(f"{folder} has heads {told['head_dim']} wide, where the model here has {model.head_width}")
    return Described(model, ids, bool(told.get("tie_word_embeddings")))


def _check_kind(folder: Path, told: dict[str, Any]) -> None:
    if told.get("model_type") != "llama":
        raise UserError(f"{folder} holds a model of type {told.get('model_type')}; only llama can be read")
    rope = told.get("rope_parameters") or told.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    found = {"hidden_act": told.get("hidden_act", "silu"), "rope_type": kind}
    found |= {name: bool(told.get(name)) for name in ("attention_bias", "mlp_bias")}
    for name, known in (
        ("hidden_act", "silu"),
        ("rope_type", "default"),
        ("attention_bias", False),
        ("mlp_bias", False),
    ):
        if found[name] != known:
            raise UserError(
                f"{folder} has {name} {found[name]}, where the model here has {known}: choose another model"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(JSON_BYTES + 1)
        found = json.loads(data) if len(data) <= JSON_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object of at most {JSON_BYTES} bytes")
    return found


def read(folder: Path, model: Model, vocabulary: Vocabulary) -> Iterator[Leaf]:
    """Yield the leaves of a model, fp32, each of which is read when it is asked for.

    Those of `vision` come only where the file has as many ids as the vocabulary; one of text alone has none.

    Raises:
      UserError: files, shapes or vocabulary do not go together.
    """
    told = describe(folder)
    if told.ids not in (vocabulary.text_size, vocabulary.size):
        raise UserError(
            f"{folder} has {told.ids} ids, but the vocabulary has {vocabulary.text_size} of text and {vocabulary.size} "
            "in all: take the tokenizer that these weights were trained with"
        )
    with _Tensors(folder) as tensors:
        tensors.check_names(model, told.tied)
        for key, shape in leaf_shapes(model, vocabulary).items():
            if key[0] == "layers":
                names = (_name(key[1], layer) for layer in range(model.layers))
                yield key, stacked(shape, (tensors.matrix(name, key[1], shape[1:]) for name in names))
            elif key[0] == "norm":
                yield key, tensors.matrix("model.norm.weight", "norm", shape)
            elif key[0] == "text" or told.ids == vocabulary.size:
                yield key, _table(tensors, key, told, model.width, vocabulary)


def _table(tensors: "_Tensors", key: Key, told: Described, width: int, vocabulary: Vocabulary) -> np.ndarray:
    """Take the rows of text or of vision out of the table of all ids."""
    name = EMBEDDING if told.tied or key[1] == "embedding" else HEAD
    rows = tensors.matrix(name, "embedding", (told.ids, width))
    part = rows[: vocabulary.text_size] if key[0] == "text" else rows[vocabulary.text_size :]
    return np.ascontiguousarray(part if key[1] == "embedding" else part.T)


def _name(leaf: str, layer: int) -> str:
    return f"model.layers.{layer}.{LAYERS[leaf]}.weight"


class _Tensors:
    """The tensors of a folder, by their names; files are opened when they are needed."""

    def __init__(self, folder: Path):
        self._folder, self._stack = folder, ExitStack()
        self._open: dict[str, Any] = {}
        self._files = self._list()

    def __enter__(self) -> "_Tensors":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _list(self) -> dict[str, str]:
        if (self._folder / INDEX).exists():
            files = _read_json(self._folder / INDEX).get("weight_map")
            if not isinstance(files, dict) or any(Path(str(file)).name != file for file in files.values()):
                raise UserError(f"{self._folder / INDEX} names no files beside it, as weight_map must")
            return files
        if not (self._folder / WHOLE).exists():
            raise UserError(
                f"{self._folder} holds neither {WHOLE} nor {INDEX}; other forms are pickles, which are never read: "
                "save the model as safetensors"
            )
        return dict.fromkeys(self._file(WHOLE).keys(), WHOLE)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = self._stack.enter_context(safe_open(self._folder / name, "numpy"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{self._folder / name} is no file of safetensors: {error}") from error
        return self._open[name]

    def check_names(self, model: Model, tied: bool) -> None:
        """Refuse a folder that lacks parameters, or has some that the model here has not."""
        wanted = {_name(leaf, layer) for leaf in LAYERS for layer in range(model.layers)}
        wanted |= {EMBEDDING, "model.norm.weight"} | (set() if tied else {HEAD})
        if lack := sorted(wanted - set(self._files)):
            raise UserError(f"{self._folder} lacks {lack[0]}, and {len(lack) - 1} more of the model's parameters")
        more = [n for n in self._files if n not in wanted and n != HEAD and not n.endswith(PASSED_OVER)]
        if more:
            raise UserError(f"{self._folder} holds {more[0]}, which the model has not: give model as many layers")

    def matrix(self, name: str, leaf: str, shape: Shape) -> np.ndarray:
        """Read a tensor as fp32 [inputs, outputs], once its type and shape are found right."""
        wanted = matrix(leaf, shape)
        turned = len(wanted) == 2 and leaf != "embedding"
        try:
            file = self._file(self._files[name])
            told = file.get_slice(name)
            check_shape(self._folder, name, told.get_shape(), wanted[::-1] if turned else wanted)
            if told.get_dtype() not in TYPES:
                raise UserError(f"{self._folder}: {name} is of type {told.get_dtype()}; {', '.join(TYPES)} can be read")
            found = file.get_tensor(name).astype(np.float32)
        except SafetensorError as error:
            raise UserError(f"{self._folder}: {name} cannot be read: {error}") from error
        return found.T if turned else found


def write(
    params: Params,
    model: Model,
    vocabulary: Vocabulary,
    folder: Path,
    dtype: str = "bfloat16",
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a model as `LlamaForCausalLM` reads it, `config.json` last; at most one shard is in memory at once.

    Args:
      folder: a new one.
      dtype: `bfloat16`, `float16` or `float32`.
      shard_bytes: of tensors in one file; a larger tensor has a file of its own.

    Raises:
      UserError: the folder is there and not empty, or the type another.
    """
    size = dtype_named(dtype).itemsize
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose a new folder")
    tensors = _planned(model, vocabulary)
    shards = _shards({name: size * int(np.prod(shape)) for name, (*_, shape) in tensors.items()}, shard_bytes)
    count = len(shards)
    files = [WHOLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for file, names in zip(files, shards, strict=True):
        made = {name: _tensor(params, *tensors[name]).astype(dtype_named(dtype), order="C") for name in names}
        save_file(made, folder / file, {"format": "pt"})
    if count > 1:
        placed = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(size * int(np.prod(shape)) for *_, shape in tensors.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    _write_json(folder / CONFIG, config(model, vocabulary, dtype))


Planned = tuple[Key, int, Shape]  # a leaf, or a table of all ids; its layer, or -1; its shape in the file


def _planned(model: Model, vocabulary: Vocabulary) -> dict[str, Planned]:
    """List the tensors that a file holds, by name."""
    tables: Shape = (vocabulary.size, model.width)
    plan: dict[str, Planned] = {EMBEDDING: (("embedding",), -1, tables)}
    shapes = leaf_shapes(model, vocabulary)
    for layer in range(model.layers):
        for leaf in LAYERS:
            key = ("layers", leaf)
            plan[_name(leaf, layer)] = key, layer, matrix(leaf, shapes[key][1:])[::-1]
    return plan | {"model.norm.weight": (("norm",), -1, (model.width,)), HEAD: (("head",), -1, tables)}


def _shards(sizes: dict[str, int], most: int) -> list[list[str]]:
    """Deal tensors out to files in their order."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > most:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _tensor(params: Params, key: Key, layer: int, shape: Shape) -> np.ndarray:
    """Make a tensor of a leaf, or of the tables of text and vision together."""
    if key[0] in ("embedding", "head"):
        tables = [np.asarray(params[part][key[0]]) for part in ("text", "vision") if part in params]
        return np.concatenate([table if key[0] == "embedding" else table.T for table in tables])
    if layer < 0:
        return np.asarray(pick(params, key))
    return np.asarray(pick(params, key)[layer]).reshape(shape[::-1]).T


def config(model: Model, vocabulary: Vocabulary, dtype: str) -> dict[str, Any]:
    """Describe a model as `config.json` does, for transformers before and from version 5."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.width,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": model.eps,
        "rope_theta": model.theta,
        "rope_parameters": {"rope_theta": model.theta, "rope_type": "default"},
        "max_position_embeddings": POSITIONS,
        "vocab_size": vocabulary.size,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def _write_json(path: Path, told: dict[str, Any]) -> None:
    path.write_text(json.dumps(told, indent=2) + "\n")
