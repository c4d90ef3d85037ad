"""Which devices hold what: one table from the meaning of an axis to the mesh, and how devices work together.

The mesh has the axes `dp, fsdp, tp, sp` (LWM's names). Rows are spread over dp and fsdp, columns over sp. A parameter
is spread over fsdp and sp by its width, and over tp by its heads or its feed-forward; embeddings and heads, which have
neither, by their width over all three. Devices along dp hold it alike.
"""

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from ..errors import UserError
from . import config
from .config import Config
from .model import AXES, Axes, Params, Spread

NAMES = ("dp", "fsdp", "tp", "sp")
ROWS, COLUMNS = ("dp", "fsdp"), "sp"
TABLE: dict[str, tuple[str, ...]] = {
    "rows": ROWS,
    "columns": (COLUMNS,),
    "width": ("fsdp", "sp"),
    "table_width": ("fsdp", "sp", "tp"),
    "heads": ("tp",),
    "kv_heads": ("tp",),
    "ffn": ("tp",),
    "ids": (),
    "layers": (),
    "head": (),
    "norm": (),
}
APART = ("heads", "kv_heads", "ffn")  # each device along tp computes its own part of these
COORDINATOR = "WORLDLOOM_COORDINATOR"  # HOST:PORT of the first process, where the machine has no scheduler that says it
PARTS = PartitionSpec(None, ROWS, COLUMNS)  # of a step's arrays, [accumulation, rows, columns]


def start() -> None:
    """Join the other hosts of a run, where the environment says that there are any.

    JAX finds its fellows on TPU pods, under Slurm and Open MPI by itself. Elsewhere `WORLDLOOM_COORDINATOR` (HOST:PORT
    of the first process), `WORLDLOOM_PROCESSES` and `WORLDLOOM_PROCESS` say who they are.

    Raises:
      UserError: one of the three is missing, or no number.
    """
    if jax.distributed.is_initialized():
        return
    if not (coordinator := os.environ.get(COORDINATOR)):
        if any(name in os.environ for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")) or _on_a_pod():
            jax.distributed.initialize()
        return
    try:
        count, number = (int(os.environ[name]) for name in ("WORLDLOOM_PROCESSES", "WORLDLOOM_PROCESS"))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{COORDINATOR} is {coordinator}, so WORLDLOOM_PROCESSES must be the number of processes and "
            f"WORLDLOOM_PROCESS this one's, counted from 0 ({error}): set both, or unset {COORDINATOR}"
        ) from None
    jax.distributed.initialize(coordinator, count, number)


def _on_a_pod() -> bool:
    return "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def make_mesh(sizes: config.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
    """Lay the devices out along the four axes.

    Args:
      sizes: devices along each axis, -1 for what is left. Where none is -1 and there is one host, devices may be left.
      devices: all that there are, where left out.

    Raises:
      UserError: there are too few devices, or they do not divide.
    """
    devices = jax.devices() if devices is None else devices
    wanted = [getattr(sizes, name) for name in NAMES]
    known = math.prod(size for size in wanted if size > 0)
    if -1 not in wanted and jax.process_count() == 1:
        devices = devices[:known]
    shape = [size if size > 0 else len(devices) // known for size in wanted]
    if math.prod(shape) != len(devices):
        asked = ", ".join(f"{name} {size}" for name, size in zip(NAMES, wanted, strict=True))
        raise UserError(
            f"mesh: {asked} make {known} devices{' or a multiple' if -1 in wanted else ''}, and there are "
            f"{len(devices)}: choose sizes that multiply to {len(devices)}, or leave one at -1"
        )
    return jax.make_mesh(tuple(shape), NAMES, axis_types=(AxisType.Auto,) * len(NAMES), devices=devices)


def check(mesh: Mesh, given: Config, length: int, data: str = "data") -> None:
    """Refuse a run that cannot be cut evenly.

    Raises:
      UserError: names the number, what it is cut by and the remedy.
    """
    model, rows = given.model, given.rows // given.accumulation
    across = {name: math.prod(mesh.shape[axis] for axis in axes) for name, axes in TABLE.items()}
    cuts = [
        ("rows / accumulation", rows, "rows", "raise rows, or lower accumulation, dp or fsdp"),
        (f"the length of the sequences of {data}", length, "columns", "choose an sp that divides it"),
        ("model.width", model.width, "width", "choose fsdp and sp whose product divides it"),
        ("model.width", model.width, "table_width", "choose fsdp, sp and tp whose product divides it"),
        ("model.heads", model.heads, "heads", "choose a tp that divides it"),
        ("model.kv_heads", model.kv_heads, "kv_heads", "choose a tp that divides it"),
        ("model.ffn", model.ffn, "ffn", "choose a tp that divides it"),
    ]
    for what, number, name, remedy in cuts:
        if number % across[name]:
            axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in TABLE[name])
            raise UserError(f"{what} is {number}, which mesh {axes} does not divide: {remedy}")


def specs(params: Params) -> Params:
    """Say where each parameter lies: a tree of `PartitionSpec` like the parameters."""
    return jax.tree.map_with_path(lambda path, _: _spec(path), params)


def _spec(path: tuple[Any, ...]) -> PartitionSpec:
    axes: Any = AXES
    for key in path:
        axes = axes[key.key]
    return PartitionSpec(*(TABLE[name] or None for name in axes))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Place a training state: the optimizer's moments, trees like the parameters, lie where those do.

    Args:
      state: of shapes alone (`jax.eval_shape`).
    """

    def place(path: tuple[Any, ...], _: Any) -> NamedSharding:
        inner = tuple(key for key in path if isinstance(key, DictKey))
        return NamedSharding(mesh, _spec(inner) if inner else PartitionSpec())

    return jax.tree.map_with_path(place, state)


def with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """Say of an array that is not there yet where it shall lie."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def make_spread(dtype: str) -> Spread:
    """Say how devices work together inside a `shard_map` over a mesh, see `Spread`.

    Parameters travel in the type of the activations, and their gradients are summed in fp32.
    """

    def gather(weights: Array, axes: Axes) -> Array:
        for at, name in enumerate(axes):
            if TABLE[name] and name not in APART:
                weights = _gather(weights, TABLE[name], at, dtype)
        return weights

    return Spread(gather, lambda x: lax.psum(x, "tp"))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(weights: Array, over: tuple[str, ...], at: int, dtype: str) -> Array:
    whole = lax.all_gather(weights.astype(dtype), over, axis=at, tiled=True)
    return whole.astype(weights.dtype)


def _gather_forward(weights: Array, over: tuple[str, ...], at: int, dtype: str) -> tuple[Array, None]:
    return _gather(weights, over, at, dtype), None


def _gather_backward(over: tuple[str, ...], at: int, dtype: str, _: None, slope: Array) -> tuple[Array]:
    return (lax.psum_scatter(slope, over, scatter_dimension=at, tiled=True),)


_gather.defvjp(_gather_forward, _gather_backward)


def sum_alike(gradients: Params, where: Params) -> Params:
    """Sum each gradient over the axes along which devices hold its parameter alike, inside the `shard_map`."""

    def add(gradient: Array, spec: PartitionSpec) -> Array:
        spread = [axis for axes in spec for axis in ((axes,) if isinstance(axes, str) else axes or ())]
        return lax.psum(gradient, tuple(name for name in NAMES if name not in spread))

    return jax.tree.map(add, gradients, where)


def own_share(weights: Array, chunk: int) -> Array:
    """Keep the loss weights, [parts, rows, L], of the chunks of a part whose turn is this device's along tp.

    All devices along tp hold the same tokens, and a chunk without weights is not scored.
    """
    part = jnp.arange(math.prod(weights.shape[1:])).reshape(weights.shape[1:])
    turns = part // chunk % lax.axis_size("tp")
    return jnp.where(turns == lax.axis_index("tp"), weights, 0)


def groups(mesh: Mesh) -> int:
    """Count the rings: each takes its own rows."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def own_slices(mesh: Mesh, rows: int, columns: int) -> tuple[slice, slice]:
    """Return which rows and columns of a step this process has to load: those of its devices, one block."""
    where = NamedSharding(mesh, PartitionSpec(ROWS, COLUMNS)).addressable_devices_indices_map((rows, columns))
    blocks = [index for index in where.values() if index is not None]
    return tuple(_cover([index[n] for index in blocks], size) for n, size in enumerate((rows, columns)))  # type: ignore[return-value]


def _cover(slices: list[slice], size: int) -> slice:
    return slice(min(s.start or 0 for s in slices), max(size if s.stop is None else s.stop for s in slices))


def place(parts: dict[str, np.ndarray], mesh: Mesh, rows: int, columns: int) -> dict[str, Array]:
    """Put this process's block of a step on its devices, as global arrays [accumulation, rows / accumulation, L]."""
    sharding = NamedSharding(mesh, PARTS)

    def put(local: np.ndarray) -> Array:
        return jax.make_array_from_process_local_data(
            sharding, local, (local.shape[0], rows // local.shape[0], columns)
        )

    return {name: put(array) for name, array in parts.items()}
