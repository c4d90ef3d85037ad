"""From logits to the next token: guidance, top-k and temperature, as LWM's `lwm/vision_llama.py` has them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..attention import MASKED


class Sampling(NamedTuple):
    """Say how tokens are drawn.

    Attributes:
      temperature: 0 takes the most probable one.
      top_k: only so many of the most probable ones are drawn from; 0 draws from all.
      guidance: how far from the unconditional prediction towards the conditional one: 1 is the latter, and beyond 1
        is further away still; anything but 1 reads every prompt's tokens twice.
    """

    temperature: float = 0.0
    top_k: int = 0
    guidance: float = 1.0

    @property
    def guided(self) -> bool:
        return self.guidance != 1


# lwm/vision_generation.py and scripts/run_vision_chat.sh
GREEDY = Sampling()
IMAGE = Sampling(temperature=1.0, guidance=5.0)  # and a video's first frame; LWM's top-k, 8,192, is all its codes
LATER = Sampling(temperature=1.0, top_k=1000)  # frames after the first


def guide(logits: Array, scale: float) -> Array:
    """Move logits away from the unconditional ones: u + scale · (c - u).

    Args:
      logits: [2 · B, V], rows c, u, c, u, … each conditional one followed by its unconditional one.

    Returns:
      [B, V].
    """
    conditional, unconditional = logits[::2], logits[1::2]
    return unconditional + scale * (conditional - unconditional)


def choose(logits: Array, keys: Array, sampling: Sampling) -> Array:
    """Draw a token of each row: from logits fp32 [B, V] and a key for each, to int32 [B]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, MASKED, logits)
    return jax.vmap(jax.random.categorical)(keys, logits / sampling.temperature).astype(jnp.int32)


def keys_of(seed: Array, prompts: Array, positions: Array) -> Array:
    """Make a key for each row's next token, from nothing but the seed, the prompt's number and the token's position."""

    def one(prompt: Array, position: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), prompt), position)

    return jax.vmap(one)(prompts, positions)
