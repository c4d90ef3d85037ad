"""Dense attention against a loop over single queries in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.training.attention import attention, visible

WIDTH = 8


def naive(q, k, v, positions, segments):
    """Attend one query and one head at a time, over a list of the keys that it may see."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    share = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        if segments[b, i] == 0:
            continue
        keys = [j for j in range(q.shape[1]) if segments[b, j] == segments[b, i] and positions[b, j] <= positions[b, i]]
        scores = np.array([q[b, i, h] @ k[b, j, h // share] for j in keys]) / np.sqrt(q.shape[3])
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        out[b, i, h] = sum(s * v[b, j, h // share] for s, j in zip(shares, keys, strict=True))
    return out


def packed(rows, length):
    """Lay out lists of segment lengths: positions and segments, int32 [rows, length]."""
    positions, segments = np.zeros((2, len(rows), length), np.int32)
    for b, lengths in enumerate(rows):
        at = 0
        for number, n in enumerate(lengths, 1):
            positions[b, at : at + n], segments[b, at : at + n] = np.arange(n), number
            at += n
    return positions, segments


def draw(seed, batch, length, heads, kv_heads, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(batch, length, n, WIDTH)), dtype) for n in (heads, kv_heads, kv_heads))


LAYOUTS = packed([[7, 1, 9], [24]], 24)


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_equals_a_loop_over_queries(kv_heads):
    q, k, v = draw(0, 2, 24, 8, kv_heads)
    got = attention(q, k, v, *LAYOUTS)
    np.testing.assert_allclose(got, naive(q, k, v, *LAYOUTS), atol=2e-6)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=0, max_size=3), min_size=1, max_size=2),
    st.integers(0, 2**32 - 1),
)
def test_equals_a_loop_for_any_packing_in_any_order(rows, seed):
    positions, segments = packed(rows, 20)
    order = np.random.default_rng(seed).permutation(20)
    positions, segments = positions[:, order], segments[:, order]
    q, k, v = draw(seed, len(rows), 20, 2, 1)
    np.testing.assert_allclose(attention(q, k, v, positions, segments), naive(q, k, v, positions, segments), atol=2e-6)


def test_gradients_equal_finite_differences_of_the_loop():
    q, k, v = (np.asarray(x, np.float64) for x in draw(1, 2, 8, 2, 1))
    layout = packed([[3, 4], [6]], 8)
    pull = np.random.default_rng(2).normal(size=q.shape)
    got = jax.grad(lambda *x: jnp.sum(attention(*x, *layout) * pull), argnums=(0, 1, 2))(
        *(jnp.asarray(x, jnp.float32) for x in (q, k, v))
    )
    for slot, gradient in enumerate(got):
        want = np.zeros(gradient.shape)
        for index in np.ndindex(*gradient.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [q.copy(), k.copy(), v.copy()]
                moved[slot][index] += step
                ends.append(np.sum(naive(*moved, *layout) * pull))
            want[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient, want, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_padding_gives_exact_zeros_and_takes_no_gradient(dtype):
    q, k, v = draw(3, 2, 24, 4, 2, dtype)
    padding = LAYOUTS[1] == 0
    assert padding.any()
    got, pull = jax.vjp(lambda *x: attention(*x, *LAYOUTS), q, k, v)
    assert got.dtype == dtype
    assert not np.asarray(got, np.float32)[padding].any()
    for gradient in pull(jnp.ones_like(got)):
        assert gradient.dtype == dtype
        assert np.isfinite(np.asarray(gradient, np.float32)).all()
        assert not np.asarray(gradient, np.float32)[padding].any()


def test_other_segments_and_later_tokens_change_nothing_bitwise():
    q, k, v = draw(4, 1, 12, 2, 2)
    layout = packed([[5, 7]], 12)
    noise = jnp.where((np.arange(12) >= 8)[:, None, None], 1e4, 0.0)
    before = attention(q, k, v, *layout)
    after = attention(q + noise, k + noise, v + noise, *layout)
    np.testing.assert_array_equal(before[:, :8], after[:, :8])


def test_huge_scores_stay_finite_forward_and_backward():
    q, k, v = (x * 1e4 for x in draw(5, 2, 24, 2, 2))
    got, pull = jax.vjp(lambda *x: attention(*x, *LAYOUTS), q, k, v)
    assert np.isfinite(got).all()
    assert all(np.isfinite(gradient).all() for gradient in pull(got))


def test_bf16_is_as_good_as_its_inputs():
    q, k, v = draw(6, 2, 24, 4, 2, jnp.bfloat16)
    want = naive(*(np.asarray(x, np.float32) for x in (q, k, v)), *LAYOUTS)
    np.testing.assert_allclose(np.asarray(attention(q, k, v, *LAYOUTS), np.float32), want, atol=2e-2, rtol=2e-2)


def test_visible_by_eye():
    want = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    got = visible(jnp.array([[0, 1, 0, 0]]), jnp.array([[1, 1, 2, 0]]))
    np.testing.assert_array_equal(got[0], np.array(want, bool))
