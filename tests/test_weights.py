"""`worldloom weights`: in and out again, through the folder of a run."""

import jax
import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.tokenizers.codebook import Codebook
from worldloom.tokenizers.text import load
from worldloom.tokenizers.train import train
from worldloom.training.checkpoint import open_run
from worldloom.training.config import Model
from worldloom.training.model import init
from worldloom.training.weights import huggingface
from worldloom.weights import run_export, run_import

MODEL = Model(width=24, layers=2, heads=3, kv_heads=3, ffn=20, theta=5e5, eps=1e-5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train(
        ["No one in the village had heard it leave; the rope hung over the water and moved a little."] * 9,
        str(path),
        300,
    )
    return str(path)


@pytest.fixture
def saved(tmp_path, tokenizer):
    vocabulary = load(tokenizer).vocabulary()
    params = jax.tree.map(np.asarray, init(jax.random.key(4), MODEL, vocabulary))
    huggingface.write(params, MODEL, vocabulary, tmp_path / "hf", "float32")
    return tmp_path / "hf", params


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_weights_go_in_and_out_unchanged(tmp_path, tokenizer, saved):
    told = run_import(str(saved[0]), str(tmp_path / "run"), tokenizer)
    assert str(told) == f"{told.parameters:,} parameters"
    params, model, vocabulary = open_run(tmp_path / "run")
    same(jax.tree.map(np.asarray, params), saved[1])
    assert model.model_dump(exclude={"preset"}) == MODEL.model_dump(exclude={"preset"})
    assert vocabulary == load(tokenizer).vocabulary()
    assert run_export(str(tmp_path / "run"), str(tmp_path / "lwm"), "lwm", "float32") == told.parameters
    sizes = [f"{name}={getattr(MODEL, name)}" for name in ("width", "layers", "heads", "kv_heads", "ffn", "theta")]
    run_import(f"params::{tmp_path / 'lwm'}", str(tmp_path / "again"), tokenizer, preset="7b", assignments=sizes)
    same(open_run(tmp_path / "again")[0], params)
    run_export(str(tmp_path / "again"), str(tmp_path / "back"), "huggingface", "float32")
    tensors = (tmp_path / "back" / huggingface.WHOLE).read_bytes()
    assert tensors == (saved[0] / huggingface.WHOLE).read_bytes()


def test_new_tables_of_pictures_are_told(tmp_path, tokenizer, saved):
    Codebook(np.zeros((9, 4, 4, 3), np.uint8), 16).save(str(tmp_path / "nine.npz"))
    told = run_import(str(saved[0]), str(tmp_path / "run"), tokenizer, str(tmp_path / "nine.npz"))
    assert "tables of pictures are new" in str(told)
    params, _, vocabulary = open_run(tmp_path / "run")
    assert params["vision"]["head"].shape == (24, 11) == (24, vocabulary.vision_size)


def test_a_wrong_call_is_told(tmp_path, tokenizer, saved):
    (tmp_path / "stream").write_bytes(b"x")
    with pytest.raises(UserError, match="give --model, say 7b"):
        run_import(str(tmp_path / "stream"), str(tmp_path / "run"), tokenizer)
    with pytest.raises(UserError, match="no stream of weights"):
        run_import(str(tmp_path / "stream"), str(tmp_path / "run"), tokenizer, preset="debug")
    with pytest.raises(UserError, match="kv_heads"):
        run_import(str(saved[0]), str(tmp_path / "run"), tokenizer, assignments=["kv_heads=2"])
    with pytest.raises(UserError, match=r"run\.json"):
        run_export(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    assert not (tmp_path / "run").exists()
