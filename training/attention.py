"""Attention among the packed tokens of a row, in its plainest form: every score at once.

This is the reference that faster forms are held against, and what the model calls until one of them takes its place.
A form is any function of `(q, k, v, positions, segments)`; where a token stands in memory means nothing to it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Attention = Callable[[Array, Array, Array, Array, Array], Array]

# Finite, since a row that sees nothing would make NaN of -inf minus -inf, and far below any score.
MASKED = -1e30


def visible(positions: Array, segments: Array) -> Array:
    """Tell which keys each query sees: those of its own segment at its own position or before.

    Args:
      positions, segments: int32 [B, L]; segment 0 is padding, which sees nothing and is seen by nothing.

    Returns:
      bool [B, L (query), L (key)].
    """
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] != 0)
    return same & (positions[:, :, None] >= positions[:, None, :])


def attention(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> Array:
    """Attend causally within each segment, with the softmax in fp32 whatever the inputs are.

    Memory is O(L²). Padding gives exact zeros, and gradients of exactly zero.

    Args:
      q: [B, L, Hq, D].
      k, v: [B, L, Hkv, D], where Hkv divides Hq; key head g serves the Hq/Hkv query heads from g·Hq/Hkv on.
      positions, segments: int32 [B, L], see `visible`.

    Returns:
      [B, L, Hq, D], of the type of `q`.
    """
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    scores = jnp.einsum("bqghd,bkgd->bghqk", grouped, k, preferred_element_type=jnp.float32) * q.shape[3] ** -0.5
    seen = visible(positions, segments)[:, None, None]
    shares = jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1)
    mixed = jnp.einsum("bghqk,bkgd->bqghd", shares.astype(v.dtype), v, preferred_element_type=jnp.float32)
    # A row of padding sees nothing, not even itself, and its shares mean nothing.
    return jnp.where(segments[:, :, None, None] != 0, mixed.reshape(q.shape), 0.0).astype(q.dtype)
