"""Hugging Face's files both ways against transformers' own LLaMA, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from worldloom.errors import UserError
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training.config import Model
from worldloom.training.model import apply, heads, init
from worldloom.training.weights import huggingface
from worldloom.training.weights.leaves import put

TEXT = Vocabulary(61, 1, 2, "text")
BOTH = Vocabulary(61, 1, 2, "text", 9, "vision")
TOKENS = np.random.default_rng(1).integers(0, 61, (2, 23)).astype(np.int32)


def model_of(kv_heads=2, **numbers):
    return Model(width=48, layers=3, heads=6, kv_heads=kv_heads, ffn=40, theta=5e5, eps=1e-5, **numbers)


def drawn(model, vocabulary):
    """Parameters that differ everywhere, norms included, and are large enough for logits of about 1."""
    params = init(jax.random.key(0), model, vocabulary)
    noise = jax.random.normal(jax.random.key(1), (model.width,))
    params = jax.tree.map(lambda x: x * 5 if x.std() else x + 0.1 * noise, params)
    return jax.tree.map(np.asarray, params)


def read(folder, model, vocabulary):
    params = {}
    for key, leaf in huggingface.read(folder, model, vocabulary):
        assert leaf.dtype == np.float32
        put(params, key, leaf)
    return params


def logits(params, model, tokens=TOKENS):
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    hidden = apply(params, tokens, places, np.ones_like(tokens), model)
    return np.concatenate([np.asarray(hidden @ jnp.asarray(head)) for head in heads(params)], axis=-1)


def theirs(folder, tokens=TOKENS):
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


def same(a, b):
    flat = [jax.tree.flatten_with_path(tree)[0] for tree in (a, b)]
    assert [path for path, _ in flat[0]] == [path for path, _ in flat[1]]
    for (_, x), (_, y) in zip(*flat, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(("kv_heads", "vocabulary"), [(6, TEXT), (2, TEXT), (2, BOTH)])
def test_what_is_written_has_the_same_logits_there(tmp_path, kv_heads, vocabulary):
    model = model_of(kv_heads)
    params = drawn(model, vocabulary)
    huggingface.write(params, model, vocabulary, tmp_path / "out", "float32", shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    tokens = np.random.default_rng(2).integers(0, vocabulary.size, (2, 23)).astype(np.int32)
    want = theirs(tmp_path / "out", tokens)
    np.testing.assert_allclose(logits(params, model, tokens), want, atol=1e-5 * np.abs(want).max())
    same(params, read(tmp_path / "out", model, vocabulary))


@pytest.mark.parametrize(("kv_heads", "shard"), [(6, "1GB"), (2, "30KB")])
def test_what_they_save_has_the_same_logits_here(tmp_path, kv_heads, shard):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = model_of(kv_heads)
    numbers = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 6}
    numbers |= {"vocab_size": 61, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5, "rope_theta": 5e5}
    told = LlamaConfig(**numbers, initializer_range=0.2)
    LlamaForCausalLM(told).save_pretrained(tmp_path, max_shard_size=shard)
    found = huggingface.describe(tmp_path)
    assert found.model.model_dump(exclude={"preset"}) == model.model_dump(exclude={"preset"})
    assert (found.ids, found.tied) == (61, False)
    want = theirs(tmp_path)
    np.testing.assert_allclose(logits(read(tmp_path, model, TEXT), model), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_types_are_rounded_once_and_read_back_exactly(tmp_path, dtype):
    model = model_of()
    params = drawn(model, TEXT)
    huggingface.write(params, model, TEXT, tmp_path / "out", dtype)
    kind = jnp.dtype(dtype)
    same(jax.tree.map(lambda x: x.astype(kind).astype(np.float32), params), read(tmp_path / "out", model, TEXT))


def test_a_tied_head_becomes_a_head_of_its_own(tmp_path):
    model = model_of()
    params = drawn(model, TEXT)
    params["text"]["head"] = params["text"]["embedding"].T.copy()
    huggingface.write(params, model, TEXT, tmp_path, "float32")
    tensors = load_file(tmp_path / huggingface.WHOLE)
    del tensors[huggingface.HEAD]
    save_file(tensors, tmp_path / huggingface.WHOLE, {"format": "pt"})
    change(tmp_path, tie_word_embeddings=True)
    assert huggingface.describe(tmp_path).tied
    same(params, read(tmp_path, model, TEXT))


def change(folder, **numbers):
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **numbers}))


@pytest.fixture
def written(tmp_path):
    huggingface.write(drawn(model_of(), TEXT), model_of(), TEXT, tmp_path / "out", "float32")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("rope", "theta"),
    [
        ({"rope_theta": 7e4}, 7e4),
        ({"rope_parameters": {"rope_theta": 8e4, "rope_type": "default"}}, 8e4),
        ({"rope_scaling": None}, 1e4),
    ],
)
def test_theta_is_read_as_either_spells_it(written, rope, theta):
    told = json.loads((written / "config.json").read_text())
    for name in ("rope_theta", "rope_parameters"):
        del told[name]
    (written / "config.json").write_text(json.dumps(told | rope))
    assert huggingface.describe(written).model.theta == theta


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ({"model_type": "mistral"}, "of type mistral"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_type llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": None}, "rope_type linear"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"head_dim": 16}, "heads 16 wide"),
        ({"hidden_size": "x"}, "does not describe"),
        ({"vocab_size": 60}, "60 ids"),
    ],
)
def test_another_model_is_refused(written, numbers, word):
    change(written, **numbers)
    with pytest.raises(UserError, match=word):
        read(written, model_of(), TEXT)


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ({"kv_heads": 6}, r"k_proj.*\[16, 48\].*\[48, 48\]"),
        ({"layers": 4}, "lacks model.layers.3"),
        ({"layers": 2}, "holds model.layers.2.*as many layers"),
        ({"ffn": 41}, "mlp.down_proj"),
    ],
)
def test_a_model_of_other_numbers_is_refused(written, numbers, word):
    model = Model(**{**model_of().model_dump(), **numbers})
    with pytest.raises(UserError, match=word):
        read(written, model, TEXT)


def test_damaged_and_hostile_folders_are_refused(written):
    model, whole = model_of(), written / huggingface.WHOLE
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="no file of safetensors"):
        read(written, model, TEXT)
    whole.rename(written / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickles, which are never read"):
        read(written, model, TEXT)
    (written / huggingface.INDEX).write_text(json.dumps({"weight_map": {huggingface.HEAD: "../x.safetensors"}}))
    with pytest.raises(UserError, match="names no files beside it"):
        read(written, model, TEXT)
    (written / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read(written, model, TEXT)


def test_numbers_of_another_type_are_refused(written):
    tensors = load_file(written / huggingface.WHOLE)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)
    save_file(tensors, written / huggingface.WHOLE)
    with pytest.raises(UserError, match="is of type I32"):
        read(written, model_of(), TEXT)


def test_nothing_is_written_over(written):
    with pytest.raises(UserError, match="not empty"):
        huggingface.write(drawn(model_of(), TEXT), model_of(), TEXT, written)
    with pytest.raises(UserError, match="not as 'int8'"):
        huggingface.write(drawn(model_of(), TEXT), model_of(), TEXT, written / "new", "int8")
