"""The model against a forward pass written out in NumPy float64, one token at a time."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worldloom.tokenizers.vocabulary import Vocabulary
from worldloom.training.config import Memory, Model
from worldloom.training.model import DIGIT, MAX_POSITIONS, apply, embed, heads, init, rotate, rotation, size

TEXT = Vocabulary(13, 1, 2, "text")
BOTH = Vocabulary(13, 1, 2, "text", 5, "vision")
MODEL = Model(preset="debug", width=24, layers=3, heads=4, kv_heads=2, ffn=20, theta=1e4)


def naive(params, tokens, model):
    """Run one sequence from position 0: float64, no batch, no scan, rotations as complex numbers."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    tables = [params[name]["embedding"] for name in ("text", "vision") if name in params]
    x = np.concatenate(tables)[np.asarray(tokens)]
    d, share = model.head_width, model.heads // model.kv_heads

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + model.eps) * scale

    def turned(x, position):
        as_complex = x[: d // 2] + 1j * x[d // 2 :]
        as_complex = as_complex * np.exp(1j * position * model.theta ** (-np.arange(d // 2) * 2 / d))
        return np.concatenate([as_complex.real, as_complex.imag])

    for n in range(model.layers):
        w = SimpleNamespace(**{name: stack[n] for name, stack in params["layers"].items()})
        y, mixed = norm(x, w.attention_norm), np.zeros((len(x), model.heads, d))
        for i, h in np.ndindex(len(x), model.heads):
            q = turned(y[i] @ w.q[:, h], i)
            scores = np.array([q @ turned(y[j] @ w.k[:, h // share], j) for j in range(i + 1)]) / np.sqrt(d)
            shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            mixed[i, h] = sum(s * (y[j] @ w.v[:, h // share]) for j, s in enumerate(shares))
        x = x + np.einsum("lhd,hde->le", mixed, w.o)
        y = norm(x, w.ffn_norm)
        gate = y @ w.gate
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w.up)) @ w.down
    return norm(x, params["norm"])


def draw(vocabulary, model=MODEL):
    """Parameters with large, unequal entries, norms included, so that no term hides."""
    params = init(jax.random.key(3), model, vocabulary)
    return jax.tree.map(lambda x: 10 * x if x.std() else x + 0.01 * jnp.arange(x.size).reshape(x.shape), params)


@pytest.mark.parametrize("vocabulary", [TEXT, BOTH])
def test_equals_a_naive_forward_pass(vocabulary):
    tokens = np.random.default_rng(0).integers(0, vocabulary.size, 10).astype(np.int32)
    params = draw(vocabulary)
    got = apply(params, tokens[None], np.arange(10)[None], np.ones((1, 10), np.int32), MODEL)
    want = naive(params, tokens, MODEL)
    np.testing.assert_allclose(got[0], want, atol=1e-5 * np.abs(want).max())


def test_packed_segments_equal_each_alone_in_any_order():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, BOTH.size, 6), rng.integers(0, BOTH.size, 9)
    tokens = np.concatenate([first, second, [0] * 3])[None]
    positions = np.concatenate([np.arange(6), np.arange(9), np.arange(3)])[None]
    segments = np.repeat([1, 2, 0], [6, 9, 3])[None]
    order = rng.permutation(18)
    params = draw(BOTH)
    got = apply(params, tokens[:, order], positions[:, order], segments[:, order], MODEL)[0][np.argsort(order)]
    np.testing.assert_allclose(got[:6], naive(params, first, MODEL), atol=2e-5)
    np.testing.assert_allclose(got[6:15], naive(params, second, MODEL), atol=2e-5)


def test_padding_takes_no_gradient():
    params = draw(TEXT)
    segments = np.repeat([1, 0], [5, 4])[None]
    tokens = np.array([[3, 4, 5, 6, 7, 0, 0, 0, 0]])

    def loss(params):
        hidden = apply(params, tokens, np.arange(9)[None], segments, MODEL)
        return jnp.sum(hidden[:, :5] ** 3)

    gradient = jax.grad(loss)(params)["text"]["embedding"]
    assert not np.asarray(gradient)[0].any() and np.asarray(gradient)[3:8].all()


def test_the_form_of_attention_is_an_argument():
    params, tokens = draw(TEXT), np.array([[3, 4, 5]])
    seen = []

    def blind(q, k, v, positions, segments):
        seen.append((q.shape, k.shape, v.shape, positions.shape, segments.shape))
        return jnp.zeros_like(q)

    apply(params, tokens, np.arange(3)[None], np.ones((1, 3), int), MODEL, blind)
    assert seen == [((1, 3, 4, 6), (1, 3, 2, 6), (1, 3, 2, 6), (1, 3), (1, 3))]


@pytest.mark.parametrize("theta", [1e4, 5e7])
def test_rotation_is_right_at_a_million_positions(theta):
    rng = np.random.default_rng(2)
    some = [0, 1, DIGIT - 1, DIGIT, 2**20 - 1, 2**20, MAX_POSITIONS - 1]
    positions = np.concatenate([some, rng.integers(0, MAX_POSITIONS, 500)]).astype(np.int32)[None]
    cos, sin = jax.jit(lambda p: rotation(p, 128, theta))(positions)
    angles = positions[..., None].astype(np.float64) * theta ** (-np.arange(64) / 64)
    np.testing.assert_allclose(cos, np.cos(angles), atol=3e-7)
    np.testing.assert_allclose(sin, np.sin(angles), atol=3e-7)


def test_rotated_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(3)
    q, k = jnp.asarray(rng.normal(size=(2, 1, 1, 1, 64)), jnp.float32)

    def product(i, j):
        at = [rotation(jnp.array([[n]]), 64, 5e7) for n in (i, j)]
        return float(jnp.sum(rotate(q, at[0]) * rotate(k, at[1])))

    assert product(2**20 + 700, 2**20) == pytest.approx(product(700, 0), abs=2e-5)
    assert product(700, 0) != pytest.approx(product(0, 700), abs=1e-2)


def test_embedding_and_heads_follow_the_one_id_space():
    params = init(jax.random.key(0), MODEL, BOTH)
    table = np.concatenate([params["text"]["embedding"], params["vision"]["embedding"]])
    tokens = np.arange(BOTH.size)[None]
    np.testing.assert_array_equal(embed(params, tokens)[0], table)
    gradient = jax.grad(lambda p: jnp.sum(embed(p, tokens[:, :3])))(params)
    assert not np.asarray(gradient["vision"]["embedding"]).any()
    assert not np.asarray(gradient["text"]["embedding"])[3:].any()
    assert [head.shape for head in heads(params)] == [(24, 13), (24, 7)]


def test_initial_parameters():
    model = Model.model_validate("debug")
    params = init(jax.random.key(0), model, BOTH)
    again = init(jax.random.key(0), model, BOTH)
    other = init(jax.random.key(1), model, BOTH)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert (params["layers"]["q"] != other["layers"]["q"]).any()
    assert (params["layers"]["gate"] != params["layers"]["up"]).any()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert float(params["layers"]["gate"].std()) == pytest.approx(0.02, rel=0.02)
    assert (params["norm"] == 1).all() and (params["layers"]["ffn_norm"] == 1).all()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size(model, BOTH)


def test_llama_2_7b_has_its_number_of_parameters():
    model = Model(width=4096, layers=32, heads=32, kv_heads=32, ffn=11008)
    assert size(model, Vocabulary(32000, 1, 2, "")) == 6_738_415_616  # LLaMA-2 7B


def test_bf16_stays_near_fp32_and_keeps_fp32_masters():
    tokens, params = np.arange(12)[None], init(jax.random.key(0), MODEL, TEXT)
    rest = np.arange(12)[None], np.ones((1, 12), np.int32)
    want = apply(params, tokens, *rest, MODEL)
    small = MODEL.model_copy(update={"dtype": "bfloat16"})
    got = apply(params, tokens, *rest, small)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=0.1)
    gradient = jax.grad(lambda p: apply(p, tokens, *rest, small).astype(jnp.float32).std())(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def gradients(model, memory, lower=False):
    """Differentiate a loss of the heads through the whole model; or only write the program down."""
    from worldloom.training.loss import weighted_nll

    rng = np.random.default_rng(5)
    tokens, targets = rng.integers(0, BOTH.size, (2, 1, 12)).astype(np.int32)
    positions, segments = np.r_[:7, :5][None], np.repeat([1, 2], [7, 5])[None]

    def loss(params):
        hidden = apply(params, tokens, positions, segments, model, memory=memory)
        return weighted_nll(hidden, heads(params), targets, np.ones((1, 12), np.float32))[0]

    run = jax.jit(jax.grad(loss))
    return run.lower(draw(BOTH, model)).as_text() if lower else run(draw(BOTH, model))


@pytest.mark.parametrize("memory", [{"remat": "layer"}, {"remat": "attention", "ffn_chunk": 5}], ids=str)
def test_what_is_kept_changes_no_gradient(memory):
    want = gradients(MODEL, Memory())
    got = gradients(MODEL, Memory(**memory))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max()), got, want)


def test_every_product_of_a_bf16_model_has_operands_of_one_type():
    """Mixed ones run at a fraction of the speed of matrix units."""
    text = gradients(MODEL.model_copy(update={"dtype": "bfloat16"}), Memory(), lower=True)
    operands = re.findall(r"dot_general.*: \(tensor<\S*?(f32|bf16)>, tensor<\S*?(f32|bf16)>\)", text)
    assert len(operands) > 15 and ("bf16", "bf16") in operands
    assert [pair for pair in operands if len(set(pair)) > 1] == []
