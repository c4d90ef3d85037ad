"""The keys and values of what a model has read, maybe spread over devices, and attention to them.

Along `sp` every device holds its share of each chunk that was read, and every so manieth token that was written, so
all hold equally many. Slots that hold nothing, between rows of unequal length and behind the end, are of segment 0.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ..attention import MASKED
from ..config import Model
from ..mesh import COLUMNS, ROWS
from ..ring.tiles import Carry, Where

HELD = 1  # the segment of slots that hold something


class Cache(NamedTuple):
    """What was read so far.

    Attributes:
      k, v: [layers, B, Hkv, C, D], of the model's dtype, k rotated already; C slots on each device.
      where: of each slot, int32 [B, C].
      lengths: tokens of each row, which is the position of its next one, int32 [B].
      filled: slots in use on each device, int32 scalar.
    """

    k: Array
    v: Array
    where: Where
    lengths: Array
    filled: Array


_KEYS: Any = P(None, ROWS, "tp", COLUMNS, None)
_SLOTS: Any = P(ROWS, COLUMNS)
_EACH: Any = P(ROWS)
_ALIKE: Any = P()
SPECS = Cache(_KEYS, _KEYS, Where(_SLOTS, _SLOTS), _EACH, _ALIKE)


def empty(model: Model, rows: int, slots: int, heads: int) -> Cache:
    """Make a device's part of a cache that holds nothing, with its own rows, slots and key heads."""
    shape = model.layers, rows, heads, slots, model.head_width
    nothing, nowhere = jnp.zeros(shape, model.dtype), jnp.zeros((rows, slots), jnp.int32)
    return Cache(nothing, nothing, Where(nowhere, nowhere), jnp.zeros(rows, jnp.int32), jnp.int32(0))


def bytes_per_device(model: Model, rows: int, tokens: int, mesh: Mesh) -> int:
    """Compute the memory of a cache on each device.

    Args:
      rows, tokens: of the whole cache; what the mesh does not divide is rounded up.
    """
    across = mesh.shape["dp"] * mesh.shape["fsdp"]
    own_rows, slots = -(-rows // across), -(-tokens // mesh.shape[COLUMNS])
    keys = 2 * model.layers * model.kv_heads // mesh.shape["tp"] * model.head_width * np.dtype(model.dtype).itemsize
    return own_rows * (slots * (keys + 8) + 4) + 4  # positions and segments take 4 bytes each


def put(held: Array, new: Array, slot: Array, axis: int) -> Array:
    """Put what is new into the slots from `slot` on."""
    return lax.dynamic_update_slice_in_dim(held, new, slot, axis)


def mark(where: Where, new: Where, slot: Array) -> Where:
    """Say what stands in the slots from `slot` on."""
    return Where(*(put(x, y, slot, 1) for x, y in zip(where, new, strict=True)))


def write(cache: Cache, k: Array, v: Array, new: Where, slot: Array) -> Cache:
    """Put keys and values [layers, B, Hkv, L, D] of tokens [B, L] into the slots from `slot` on."""
    return cache._replace(k=put(cache.k, k, slot, 3), v=put(cache.v, v, slot, 3), where=mark(cache.where, new, slot))


def grow(cache: Cache, slots: int) -> Cache:
    """Make room for more slots behind the end, on each device."""
    more = slots - cache.where.segments.shape[1]

    def pad(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, more if n == axis else 0) for n in range(x.ndim)])

    return cache._replace(k=pad(cache.k, 3), v=pad(cache.v, 3), where=Where(*(pad(x, 1) for x in cache.where)))


def look(q: Array, k: Array, v: Array, seen: Array) -> Carry:
    """Attend from one query of each row to keys of this device.

    Args:
      q: [B, Hq, 1, D].
      k, v: [B, Hkv, C, D].
      seen: bool [B, C].

    Returns:
      What `merge` and `across` put together.
    """
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1])
    scores = jnp.einsum("bhgd,bhkd->bhgk", grouped, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(seen[:, None, None], scores, MASKED)
    top = scores.max(-1)
    shares = jnp.where(seen[:, None, None], jnp.exp(scores - top[..., None]), 0.0)
    out = jnp.einsum("bhgk,bhkd->bhgd", shares.astype(v.dtype), v, preferred_element_type=jnp.float32)
    shape = q.shape[:3]
    return Carry(out.reshape(q.shape), top.reshape(shape), shares.sum(-1).reshape(shape))


def merge(one: Carry, other: Carry) -> Carry:
    """Put together what was seen in two places."""
    top = jnp.maximum(one.top, other.top)
    a, b = jnp.exp(one.top - top), jnp.exp(other.top - top)
    return Carry(one.out * a[..., None] + other.out * b[..., None], top, one.total * a + other.total * b)


def across(part: Carry, axis: str) -> Carry:
    """Put together what every device along an axis saw."""
    top = lax.pmax(part.top, axis)
    fade = jnp.exp(part.top - top)
    out, total = lax.psum((part.out * fade[..., None], part.total * fade), axis)
    return Carry(out, top, total)
