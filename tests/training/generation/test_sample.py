"""Sampling against the distributions written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worldloom.training.generation.sample import Sampling, choose, guide, keys_of

LOGITS = np.array([1.0, 0.5, 3.0, -2.0, 2.0, 0.0], np.float32)
DRAWS = 20_000


def shares(sampling, seed=0):
    keys = keys_of(jnp.uint32(seed), jnp.arange(DRAWS), jnp.zeros(DRAWS, jnp.int32))
    tokens = choose(jnp.tile(LOGITS, (DRAWS, 1)), keys, sampling)
    return np.bincount(tokens, minlength=len(LOGITS)) / DRAWS


@pytest.mark.parametrize(("temperature", "top_k"), [(0.5, 0), (2.0, 3), (1.0, 1)])
def test_tokens_are_drawn_by_temperature_among_the_most_probable(temperature, top_k):
    want = np.exp(LOGITS / temperature)
    want[np.argsort(LOGITS)[: -top_k or None] if 0 < top_k < 6 else []] = 0
    got = shares(Sampling(temperature, top_k))
    np.testing.assert_allclose(got, want / want.sum(), atol=0.015)  # four standard deviations
    assert (got[want == 0] == 0).all()


def test_without_temperature_the_most_probable_is_taken():
    assert choose(jnp.asarray(LOGITS)[None], jax.random.split(jax.random.key(0), 1), Sampling()).tolist() == [2]


def test_guidance_moves_away_from_the_unconditional():
    rows = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    got = guide(jnp.asarray(rows), 5.0)
    for n in range(2):
        c, u = rows[2 * n], rows[2 * n + 1]
        np.testing.assert_allclose(got[n], u + 5.0 * (c - u), rtol=1e-6)


def test_keys_come_from_seed_prompt_and_position_alone():
    def key(seed, prompt, position, beside=0):
        prompts, positions = jnp.array([beside, prompt]), jnp.array([beside, position])
        return tuple(jax.random.key_data(keys_of(jnp.uint32(seed), prompts, positions))[1].tolist())

    assert key(1, 2, 3) == key(1, 2, 3, beside=9)
    assert len({key(s, p, n) for s in (1, 2) for p in (0, 1, 2) for n in (0, 1, 2)}) == 18
