"""A whole training step on packed data against one as LWM's trainer does it, at equal shapes, on a ring of four.

LWM's way: the `ringattention` package, which works on every causal block whatever the segments, and the logits of both
heads for every token. Model, mesh, sharding and recomputation are ours in both.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

from .measure import Measure, speedup

DEVICES, ROWS, LENGTH = 4, 1, 4096
FLOOR = 1.5
TILE, PEER_TILE = 128, 256  # each one's best, see benchmarks/ring.py


def measures() -> Iterator[Measure]:
    """Measure in a process of its own, since the number of devices is fixed when JAX starts."""
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.step"],
        env=os.environ | {"XLA_FLAGS": flags},
        check=True,
        stdout=subprocess.PIPE,
        timeout=1800,
    )
    yield Measure("step: packed rows, times faster than LWM's way", json.loads(child.stdout)["ratio"], FLOOR)


def compare() -> float:
    """Time gradients of one packed row of a dozen documents, both ways, in turns."""
    import jax
    import numpy as np
    from worldloom.packing.weights import Rule
    from worldloom.tokenizers.vocabulary import Vocabulary
    from worldloom.training.config import Memory, Mesh, Model
    from worldloom.training.mesh import PARTS, make_mesh, state_shardings
    from worldloom.training.model import init
    from worldloom.training.ring.ring import make_ring
    from worldloom.training.ring.xla import Xla
    from worldloom.training.step import loss_and_gradients

    vocabulary = Vocabulary(32_000, 1, 2, "text", 8192, "vision")
    model = Model(preset="tiny", width=256, layers=4, heads=4, kv_heads=4, ffn=688)
    mesh, memory = make_mesh(Mesh(fsdp=1, sp=DEVICES)), Memory(remat="attention", ffn_chunk=512)
    params = init(jax.random.key(0), model, vocabulary)
    params = jax.device_put(params, state_shardings(params, mesh))
    parts = jax.device_put(packed_row(np.random.default_rng(0), vocabulary.size), jax.NamedSharding(mesh, PARTS))

    ours = jax.jit(
        lambda p, q: loss_and_gradients(p, q, 12, model, Rule.TOKEN, make_ring(block=Xla(TILE)), memory, mesh)
    )
    theirs = jax.jit(partial(lwm_step, model=model, memory=memory, mesh=mesh))
    mine, other = ours(params, parts)[0], theirs(params, parts)[0]
    assert abs(float(mine) - float(other)) < 1e-3 * float(mine), "both must compute one loss"
    return speedup(
        lambda: jax.block_until_ready(ours(params, parts)), lambda: jax.block_until_ready(theirs(params, parts))
    )


def packed_row(rng: Any, size: int) -> dict[str, Any]:
    """Draw a row of one part: half of it one document, the rest eleven shorter ones; a tenth of the targets text."""
    import numpy as np

    lengths = [LENGTH // 2, *np.diff(np.linspace(0, LENGTH // 2, 12).astype(int))]
    rows = {
        "tokens": rng.integers(0, size, LENGTH),
        "targets": rng.integers(32_000, size, LENGTH),
        "positions": np.concatenate([np.arange(n) for n in lengths]),
        "segments": np.repeat(np.arange(1, 13), lengths),
    }
    rows["targets"][: LENGTH // 10] %= 32_000
    whole = {name: row.astype(np.int32)[None, None] for name, row in rows.items()}
    return whole | {"weights": np.ones((1, 1, LENGTH), np.float32)}


def lwm_step(params: Any, parts: Any, model: Any, memory: Any, mesh: Any) -> tuple[Any, Any]:
    """Take loss and gradients with `ringattention` and full logits."""
    import jax
    import jax.extend
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import PartitionSpec
    from worldloom.training.mesh import NAMES, PARTS, make_spread, specs, sum_alike
    from worldloom.training.model import apply, heads

    jax.lib.xla_bridge = SimpleNamespace(get_backend=jax.extend.backend.get_backend)  # gone from JAX since the package
    from ringattention import ringattention

    blocks = {"causal_block_size": 1, "deterministic": True, "dropout_rng": None, "attn_pdrop": 0.0}
    blocks |= {"query_chunk_size": PEER_TILE, "key_chunk_size": PEER_TILE, "dtype": jnp.float32, "policy": None}
    blocks |= {"precision": None, "prevent_cse": False}

    def attend(q: Any, k: Any, v: Any, positions: Any, segments: Any) -> Any:
        everywhere = lax.all_gather(segments, "sp", axis=1, tiled=True)
        return ringattention(
            q, k, v, None, everywhere, axis_name="sp", float32_logits=True, cache_idx=None, blockwise_kwargs=blocks
        )

    def loss(params: Any, part: Any) -> Any:
        spread = make_spread(model.dtype)
        hidden = apply(params, part["tokens"], part["positions"], part["segments"], model, attend, memory, spread)
        total, targets = 0.0, part["targets"]
        for head in heads(params, spread):
            scores = jax.nn.log_softmax(hidden @ head)
            own = (targets >= 0) & (targets < head.shape[1])
            chosen = jnp.take_along_axis(scores, jnp.where(own, targets, 0)[..., None], 2)[..., 0]
            total, targets = total - jnp.where(own, chosen * part["weights"], 0).sum(), targets - head.shape[1]
        return total

    def own(params: Any, parts: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, {name: array[0] for name, array in parts.items()})
        return lax.psum(value, NAMES) / LENGTH, sum_alike(gradients, where)

    where = specs(params)
    out = PartitionSpec(), where
    return jax.shard_map(own, mesh=mesh, in_specs=(where, PARTS), out_specs=out, check_vma=False)(params, parts)


if __name__ == "__main__":
    print(json.dumps({"ratio": compare()}))
