"""Where a run begins: what lies at a path is found, and text becomes a model of pictures without a change to it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.tokenizers.vocabulary import CODES, Vocabulary
from worldloom.training.checkpoint import open_run
from worldloom.training.config import Model
from worldloom.training.model import INIT_STD, apply, init, shapes
from worldloom.training.weights import huggingface, lwm
from worldloom.training.weights.start import load_weights, save_run

TEXT = Vocabulary(17, 1, 2, "text")
BOTH = Vocabulary(17, 1, 2, "text", CODES, "vision")
MODEL = Model(width=24, layers=2, heads=3, kv_heads=3, ffn=20)


def drawn(vocabulary=TEXT):
    return jax.tree.map(np.asarray, init(jax.random.key(4), MODEL, vocabulary))


def written(folder, form, params, vocabulary):
    if form == "run":
        save_run(folder, params, MODEL, vocabulary, "drawn")
    elif form == "huggingface":
        huggingface.write(params, MODEL, vocabulary, folder, "float32")
    else:
        lwm.write(params, MODEL, vocabulary, folder, "float32")
    return f"params::{folder}" if form == "lwm" else folder


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)))


@pytest.mark.parametrize("vocabulary", [TEXT, BOTH], ids=["text", "both"])
@pytest.mark.parametrize("form", ["run", "huggingface", "lwm"])
def test_every_form_is_known_by_what_lies_there(tmp_path, form, vocabulary):
    params = drawn(vocabulary)
    same(load_weights(written(tmp_path / "w", form, params, vocabulary), MODEL, vocabulary), params)


@pytest.mark.parametrize("form", ["run", "huggingface", "lwm"])
def test_text_becomes_pictures_and_keeps_its_logits_bit_for_bit(tmp_path, form):
    params = drawn()
    path = written(tmp_path / "w", form, params, TEXT)
    found = load_weights(path, MODEL, BOTH, seed=5)
    tables = found.pop("vision")
    same(found, params)
    assert jax.tree.map(np.shape, tables) == shapes(MODEL, BOTH)["vision"]
    for table in tables.values():
        assert table.dtype == np.float32
        assert abs(table.std() - INIT_STD) < 0.01 * INIT_STD
    assert not np.array_equal(tables["embedding"].ravel(), tables["head"].ravel())
    same(load_weights(path, MODEL, BOTH, seed=5)["vision"], tables)
    assert not np.array_equal(load_weights(path, MODEL, BOTH, seed=6)["vision"]["head"], tables["head"])
    tokens = np.arange(17, dtype=np.int32)[None]
    args = tokens, tokens, np.ones_like(tokens), MODEL
    with_tables = apply({**found, "vision": tables}, *args) @ jnp.asarray(found["text"]["head"])
    np.testing.assert_array_equal(with_tables, apply(params, *args) @ jnp.asarray(params["text"]["head"]))


def test_leaves_are_placed_one_by_one(tmp_path):
    params, seen = drawn(), []

    def place(key, leaf):
        seen.append((key, leaf.shape))
        return len(seen)

    made = load_weights(written(tmp_path / "w", "lwm", params, TEXT), MODEL, BOTH, place=place)
    assert sorted(jax.tree.leaves(made)) == list(range(1, len(seen) + 1))
    assert [key for key, _ in seen][-2:] == [("vision", "embedding"), ("vision", "head")]
    assert dict(seen)["layers", "q"] == (2, 24, 3, 8)


def test_a_saved_run_opens_as_one(tmp_path):
    params = drawn()
    save_run(tmp_path / "run", params, MODEL, TEXT, "drawn")
    found, model, vocabulary = open_run(tmp_path / "run")
    same(jax.tree.map(np.asarray, found), params)
    assert (model, vocabulary) == (MODEL, TEXT)
    with pytest.raises(UserError, match="holds a run already"):
        save_run(tmp_path / "run", params, MODEL, TEXT, "drawn")


def test_other_tokenizers_and_shapes_are_refused(tmp_path):
    save_run(tmp_path / "run", drawn(), MODEL, TEXT, "drawn")
    with pytest.raises(UserError, match="trained with another tokenizer"):
        load_weights(tmp_path / "run", MODEL, replace(TEXT, text_digest="other"))
    with pytest.raises(UserError, match=r"layers/down has the shape \[2, 20, 24\], but the model's is \[2, 21, 24\]"):
        load_weights(tmp_path / "run", Model(**{**MODEL.model_dump(), "ffn": 21}), TEXT)
    with pytest.raises(UserError, match="holds no weights"):
        load_weights(tmp_path, MODEL, TEXT)
    with pytest.raises(UserError, match="holds no weights"):
        load_weights(tmp_path / "nowhere", MODEL, TEXT)
