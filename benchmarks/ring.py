"""Ring attention, forward and backward, against `ringattention` 0.1.2 on devices that the host stands for.

Both get float32 and tiles of the size that suits them best. The peer no longer imports without a line that puts back
what JAX took away. JAX fixes the number of devices when it starts, so every measure has a process of its own.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.backend import get_backend
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from worldloom.packing.batch import Table
from worldloom.training.attention import Attention
from worldloom.training.ring.layout import plan_layout
from worldloom.training.ring.ring import make_ring
from worldloom.training.ring.xla import Xla

from benchmarks.measure import Measure, speedup

Run = Callable[[], Any]
SHARD = P(None, "sp")

LENGTH, HEADS, WIDTH, TILE, PEER_TILE = 8192, 4, 64, 128, 256
DOCUMENTS = {
    "one": [LENGTH],
    # Half of the tokens in two long documents, a quarter in clips, a quarter in captioned pictures.
    "mixed": [64] * 7 + [2048] + [64] * 9 + [512] * 2 + [64] * 16 + [2048] + [512] * 2,
    "short": [256] * 32,
}
FLOORS = {"one": 1.3, "mixed": 4, "short": 10}
OVERHEAD = 1.15  # at most, of four devices over one, on one core
HELD = 16_384  # tokens on a device whose memory is compared


def measures() -> Iterator[Measure]:
    """Yield speedups with 4 devices and with 1, the overhead of 4 on one core, and memory a token against the peer."""
    for name, floor in FLOORS.items():
        yield Measure(f"ring-4-{name}", apart("race", 4, name), floor)
    yield Measure("ring-1-one", apart("race", 1, "one"), 0.9)
    yield Measure("ring-4-over-1", apart("overhead", 4), 1 / OVERHEAD)
    yield Measure("ring-memory", apart("memory", 4), 1.5)


def apart(what: str, devices: int, *documents: str) -> float:
    """Take one measure in a process with so many devices."""
    code = f"from benchmarks import ring; print(ring.{what}({devices}, *{documents}))"
    flags = f"--xla_force_host_platform_device_count={devices}"
    child = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return float(child.stdout)


def race(devices: int, documents: str) -> float:
    """Return how many times faster than the peer it is; raises AssertionError where results differ."""
    (ours, back), (theirs, _) = prepared(devices, documents), peer_prepared(devices, documents)
    for mine, other in zip(ours(), theirs(), strict=True):
        np.testing.assert_allclose(np.asarray(mine)[:, back], other, atol=2e-5 * np.abs(other).max())
    return speedup(ours, theirs)


def overhead(devices: int) -> float:
    """Return what a document takes on one device over what it takes on several, all on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX makes its threads
    return speedup(prepared(devices, "one")[0], prepared(1, "one")[0])


def memory(devices: int) -> float:
    """Return the peer's temporary memory over ours, with 16K tokens on a device."""
    held = []
    for attend in (peer(devices), ring(devices)):
        rows = placed(devices, [np.zeros((1, devices * HELD, HEADS, WIDTH), np.float32)] * 4)
        where = placed(devices, [np.zeros((1, devices * HELD), np.int32)] * 2)
        held.append(both_passes(attend).lower(*rows, *where).compile().memory_analysis().temp_size_in_bytes)
    return float(held[0] / held[1])


def prepared(devices: int, documents: str) -> tuple[Run, np.ndarray]:
    """Lay out a row as the planner says; return what runs it, and the permutation that undoes the layout."""
    lengths = np.array(DOCUMENTS[documents], np.int32)
    layout = plan_layout(Table(np.array([len(lengths)]), lengths, lengths, lengths), LENGTH, devices, TILE)
    run, arrays = both_passes(ring(devices)), placed(devices, [x[:, layout.permutation] for x in row(documents)])
    return lambda: jax.block_until_ready(run(*arrays)), layout.inverse


def peer_prepared(devices: int, documents: str) -> tuple[Run, np.ndarray]:
    run, arrays = both_passes(peer(devices)), placed(devices, row(documents))
    return lambda: jax.block_until_ready(run(*arrays)), np.arange(LENGTH)


def row(documents: str) -> list[np.ndarray]:
    """Draw q, k, v and the result's cotangent, and say where the tokens stand."""
    rng, lengths = np.random.default_rng(0), DOCUMENTS[documents]
    drawn = [rng.normal(size=(1, LENGTH, HEADS, WIDTH)).astype(np.float32) for _ in range(4)]
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])[None]
    return [*drawn, positions, np.repeat(np.arange(len(lengths), dtype=np.int32) + 1, lengths)[None]]


def both_passes(attend: Attention) -> Any:
    def run(q: Array, k: Array, v: Array, d_out: Array, positions: Array, segments: Array) -> tuple[Array, ...]:
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, positions, segments), q, k, v)
        return out, *pull(d_out)

    return jax.jit(run)


def ring(devices: int) -> Attention:
    return jax.shard_map(
        make_ring("sp", Xla(TILE), (), 0),
        mesh=mesh(devices),
        in_specs=(SHARD,) * 5,
        out_specs=SHARD,
        check_vma=False,
    )


def peer(devices: int) -> Attention:
    """Wrap the peer; it takes every device's segments on every device, and tells positions from where tokens lie."""
    jax.lib.xla_bridge = SimpleNamespace(get_backend=get_backend)
    from ringattention import ringattention

    options = {
        "causal_block_size": 1,
        "query_chunk_size": PEER_TILE,
        "key_chunk_size": PEER_TILE,
        "deterministic": True,
        "dropout_rng": None,
        "attn_pdrop": 0.0,
        "dtype": jnp.float32,
        "policy": jax.checkpoint_policies.nothing_saveable,
        "precision": None,
        "prevent_cse": False,
    }

    def attend(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> Array:
        return ringattention(q, k, v, None, segments, None, "sp", True, options)

    return jax.shard_map(attend, mesh=mesh(devices), in_specs=(SHARD,) * 4 + (P(),), out_specs=SHARD, check_vma=False)


def placed(devices: int, arrays: list[np.ndarray]) -> list[Array]:
    return [jax.device_put(x, NamedSharding(mesh(devices), SHARD)) for x in arrays]


def mesh(devices: int) -> Mesh:
    return jax.make_mesh((devices,), ("sp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
