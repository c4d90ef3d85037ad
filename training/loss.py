"""The weighted cross-entropy: sums over tokens, divided once by whoever has all of them.

Weights carry the rule (`lwm`, `example`, `token`) and come with the batch. A sum over any part of a step may be added
to any other, so devices and accumulation steps change nothing; dividing each part first would.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..packing.weights import Rule

CHUNK = 1024  # tokens whose logits exist at once: 131 MB of fp32 for 32,000 ids


def weighted_nll(
    hidden: Array, heads: Sequence[Array], targets: Array, weights: Array, chunk: int = CHUNK
) -> tuple[Array, Array]:
    """Sum the weighted negative log-likelihood of the targets without ever holding all logits.

    Each target is scored by the head that its id belongs to, normalised within that head alone, as in LWM. A head is
    computed only for chunks in which a target with a weight belongs to it.

    Args:
      hidden: [B, L, E].
      heads: [E, V] each; the first owns ids [0, V), the next the ids that follow, and so on.
      targets: int32 [B, L].
      weights: fp32 [B, L]; where it is 0 the target is not looked at.
      chunk: tokens scored at once.

    Returns:
      Σ w·nll in nats, and Σ w, both fp32 scalars.
    """
    chunk = min(chunk, targets.size)

    @jax.checkpoint
    def score(total: Array, piece: tuple[Array, Array, Array]) -> tuple[Array, None]:
        hidden, targets, weights = piece
        for head in heads:
            total = total + _head_nll(hidden, head, targets, weights)
            targets = targets - head.shape[1]
        return total, None

    count = -(-targets.size // chunk)
    flat = hidden.reshape(targets.size, -1), targets.reshape(-1), weights.reshape(-1)
    total, _ = lax.scan(score, jnp.float32(0), tuple(_cut(x, count, chunk) for x in flat))
    return total, weights.sum(dtype=jnp.float32)


def _cut(x: Array, count: int, chunk: int) -> Array:
    """Cut [N, …] into [count, chunk, …], filled up with zeros, which weigh nothing."""
    filled = jnp.pad(x, [(0, count * chunk - len(x))] + [(0, 0)] * (x.ndim - 1))
    return filled.reshape(count, chunk, *x.shape[1:])


def _head_nll(hidden: Array, head: Array, targets: Array, weights: Array) -> Array:
    """Sum w·nll of the targets that lie in [0, V) of this head [E, V]; hidden [N, E], the others [N]."""
    own = (targets >= 0) & (targets < head.shape[1]) & (weights != 0)

    def score() -> Array:
        logits = _logits(hidden, head)
        chosen = jnp.take_along_axis(logits, jnp.where(own, targets, 0)[:, None], axis=1)[:, 0]
        nll = jax.nn.logsumexp(logits, axis=1) - chosen
        return jnp.where(own, weights * nll, 0.0).sum()

    return lax.cond(own.any(), score, lambda: jnp.float32(0))


@jax.custom_vjp
def _logits(hidden: Array, head: Array) -> Array:
    """Score tokens [N, E] by a head [E, V] in the type of `hidden`, summed in fp32: [N, V]."""
    return jnp.einsum("ne,ev->nv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _logits_backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    """Multiply in the type of `hidden` as well, which autodiff would not, and sum the head's gradient in fp32."""
    hidden, head = saved
    slope = slope.astype(hidden.dtype)
    d_hidden = jnp.einsum("nv,ev->ne", slope, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    d_head = jnp.einsum("ne,nv->ev", hidden, slope, preferred_element_type=jnp.float32)
    return d_hidden.astype(hidden.dtype), d_head.astype(head.dtype)


_logits.defvjp(lambda hidden, head: (_logits(hidden, head), (hidden, head)), _logits_backward)


def divisor(rule: Rule, examples: Array, weights: Array) -> Array:
    """Return what a step's summed loss is divided by, once.

    Args:
      rule: says which of the two it is (design §4).
      examples: S, the segments of the whole step.
      weights: Σ w of the whole step.

    Returns:
      fp32 scalar; 1 for a step without anything to divide by, whose loss is 0.
    """
    total = examples if rule.by_examples else weights
    return jnp.where(total > 0, total, 1).astype(jnp.float32)
