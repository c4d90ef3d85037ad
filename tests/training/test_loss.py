"""The weighted cross-entropy against a loop over tokens in float64, and the promise of its memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.packing.weights import Rule
from worldloom.training.loss import divisor, weighted_nll

TEXT, VISION, WIDTH = 11, 7, 6


def naive(hidden, heads, targets, weights):
    """Score one token at a time, by a softmax over its own modality's ids written out."""
    hidden = np.asarray(hidden, np.float64).reshape(-1, hidden.shape[-1])
    total = 0.0
    for x, target, weight in zip(hidden, np.ravel(targets), np.ravel(weights), strict=True):
        head = np.asarray(heads[int(target >= TEXT)], np.float64)
        logits = x @ head
        own = target - TEXT * (target >= TEXT)
        total += float(weight) * -np.log(np.exp(logits[own]) / np.exp(logits).sum())
    return total


def draw(seed, shape=(2, 9), ids=TEXT + VISION):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(*shape, WIDTH)), jnp.float32)
    heads = tuple(jnp.asarray(rng.normal(size=(WIDTH, n)), jnp.float32) for n in (TEXT, VISION))
    targets = jnp.asarray(rng.integers(0, ids, shape), jnp.int32)
    weights = jnp.asarray(rng.random(shape) * (rng.random(shape) < 0.7), jnp.float32)
    return hidden, heads, targets, weights


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_equals_a_loop_over_tokens_for_any_chunk(seed, chunk):
    hidden, heads, targets, weights = draw(seed)
    nll, weight = weighted_nll(hidden, heads, targets, weights, chunk)
    np.testing.assert_allclose(nll, naive(hidden, heads, targets, weights), rtol=2e-6)
    np.testing.assert_allclose(weight, np.sum(np.asarray(weights, np.float64)), rtol=1e-6)


def test_one_head_alone():
    hidden, heads, targets, weights = draw(1, ids=TEXT)
    nll, _ = weighted_nll(hidden, heads[:1], targets, weights)
    np.testing.assert_allclose(nll, naive(hidden, heads, targets, weights), rtol=2e-6)


def test_gradients_equal_the_formula():
    """d(w·nll)/dlogits is w·(softmax − one-hot), within the target's own head."""
    hidden, heads, targets, weights = draw(2)
    got = jax.grad(lambda h, w: weighted_nll(h, w, targets, weights, 4)[0], argnums=(0, 1))(hidden, heads)
    want_hidden = np.zeros((*targets.shape, WIDTH))
    want_heads = [np.zeros((WIDTH, TEXT)), np.zeros((WIDTH, VISION))]
    for at in np.ndindex(*targets.shape):
        x, target, which = np.asarray(hidden[at], np.float64), int(targets[at]), int(targets[at] >= TEXT)
        head = np.asarray(heads[which], np.float64)
        slope = np.exp(x @ head) / np.exp(x @ head).sum()
        slope[target - TEXT * which] -= 1
        slope *= float(weights[at])
        want_hidden[at], want_heads[which] = head @ slope, want_heads[which] + np.outer(x, slope)
    np.testing.assert_allclose(got[0], want_hidden, atol=1e-6)
    for gradient, want in zip(got[1], want_heads, strict=True):
        np.testing.assert_allclose(gradient, want, atol=2e-6)


def test_tokens_without_weight_take_no_gradient_and_may_hold_anything():
    hidden, heads, targets, weights = draw(3)
    unseen = np.asarray(weights) == 0
    wild = jnp.where(unseen, 10**6, targets), jnp.where(unseen[..., None], 1e30, hidden)
    gradient = jax.grad(lambda h: weighted_nll(h, heads, wild[0], weights, 5)[0])(wild[1])
    assert unseen.any() and not np.asarray(gradient)[unseen].any()
    np.testing.assert_array_equal(
        weighted_nll(wild[1], heads, wild[0], weights, 5)[0], weighted_nll(hidden, heads, targets, weights, 5)[0]
    )


def test_a_modality_that_is_not_there_gets_no_gradient():
    hidden, heads, targets, weights = draw(4, ids=TEXT)
    gradient = jax.grad(lambda w: weighted_nll(hidden, w, targets, weights)[0])(heads)
    assert np.asarray(gradient[0]).any() and not np.asarray(gradient[1]).any()


def test_no_weights_at_all_give_zero():
    hidden, heads, targets, weights = draw(5)
    nll, weight = weighted_nll(hidden, heads, targets, weights * 0)
    assert nll == 0 and weight == 0


def test_bf16_hidden_gives_fp32_sums_and_gradients_of_the_masters():
    hidden, heads, targets, weights = draw(6)
    rounded = hidden.astype(jnp.bfloat16)
    nll, gradient = jax.value_and_grad(lambda w: weighted_nll(rounded, w, targets, weights)[0])(heads)
    assert nll.dtype == jnp.float32 and {g.dtype for g in gradient} == {jnp.dtype("float32")}
    np.testing.assert_allclose(nll, naive(hidden, heads, targets, weights), rtol=2e-2)


def test_no_buffer_holds_all_logits():
    """In the compiled gradient no array has both the length and the vocabulary in it."""
    length, ids = 4096, 1536
    arguments = (
        jax.ShapeDtypeStruct((1, length, WIDTH), jnp.float32),
        (jax.ShapeDtypeStruct((WIDTH, ids), jnp.float32),),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        jax.ShapeDtypeStruct((1, length), jnp.float32),
    )

    def largest(chunk):
        loss = jax.grad(lambda *x: weighted_nll(*x, chunk=chunk)[0], argnums=(0, 1))
        text = jax.jit(loss).lower(*arguments).compile().as_text()
        shapes = re.findall(r"(?:f32|s32|pred|bf16)\[([\d,]+)\]", text)
        return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)

    assert largest(length) >= length * ids
    assert largest(128) <= 256 * ids


@pytest.mark.parametrize(("rule", "want"), [(Rule.LWM, 3.0), (Rule.EXAMPLE, 3.0), (Rule.TOKEN, 2.5)])
def test_divisor(rule, want):
    assert divisor(rule, jnp.int32(3), jnp.float32(2.5)) == want
    assert divisor(rule, jnp.int32(0), jnp.float32(0)) == 1
