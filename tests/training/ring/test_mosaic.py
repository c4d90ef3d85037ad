"""The whole ring compiled ahead of time for eight TPUs: what the schedule does while keys are on their way."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tpu_compile

TILE, SHARD, DEVICES = 256, 1024, 8
KERNEL = 'custom_call_target="tpu_custom_call"'


def compile_ring() -> str:
    """Compile a ring of eight v5e, forward and backward, and return what they will run, in order."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import Array
    from jax.experimental.topologies import get_topology_desc
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from worldloom.training.ring.mosaic import Mosaic
    from worldloom.training.ring.ring import make_ring

    devices = np.array(get_topology_desc("v5e:2x4", "tpu").devices)
    mesh = Mesh(devices.reshape(1, 1, 1, DEVICES), ("dp", "fsdp", "tp", "sp"))
    across = PartitionSpec(("dp", "fsdp"), "sp")
    attend = make_ring(block=Mosaic(TILE), gather_below=0)

    def both(q: Array, k: Array, v: Array, positions: Array, segments: Array, d_out: Array) -> tuple[Array, ...]:
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, positions, segments), q, k, v)
        return out, *back(d_out)

    def given(*shape: int, dtype: object = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, DEVICES * SHARD, *shape), dtype, sharding=NamedSharding(mesh, across))

    q, k, line = given(4, 128), given(2, 128), given(dtype=jnp.int32)
    ring = jax.shard_map(both, mesh=mesh, in_specs=(across,) * 6, out_specs=(across,) * 4, check_vma=False)
    return jax.jit(ring).lower(q, k, k, line, line, q).compile().as_text()


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The instructions of every computation, in the order in which a TPU runs them."""
    libtpu = Path(__file__).parents[3] / ".venv" / "tpu"
    if not libtpu.is_dir():
        pytest.skip(f"SKIPPED FOR LACK OF LIBTPU: {libtpu} is missing; `make env` installs it")
    into = tmp_path_factory.mktemp("tpu") / "ring.hlo"
    paths = os.pathsep.join(filter(None, [str(libtpu), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, __file__, str(into)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return split(into.read_text())


def split(text: str) -> dict[str, list[str]]:
    """Cut a compiled program into its computations; the first one to run is called ENTRY."""
    assert "is_scheduled=true" in text
    heads = re.compile(r"^(ENTRY|%\S+) .*\{\n((?:  .*\n)*)\}", re.MULTILINE)
    return {name: body.strip().splitlines() for name, body in heads.findall(text)}


def permutes(body: list[str]) -> list[tuple[str, int, int]]:
    """Find what each permute carries, such as `bf16[1,2,1024,128]`, and where it starts and is done."""
    ends = {m[1]: n for n, line in enumerate(body) if (m := re.search(r" collective-permute-done\((%[\w.-]+)\)", line))}
    starts = (re.search(r"(%[\w.-]+) = \((\w+\[[\d,]*\]).* collective-permute-start\(", line) for line in body)
    return [(m[2], n, ends[m[1]]) for n, m in enumerate(starts) if m]


def loops(schedule: dict[str, list[str]]) -> list[list[str]]:
    """The bodies of loops over hops, forward first."""
    bodies = [m[1] for line in schedule["ENTRY"] if (m := re.search(r" while\(.*body=(%[\w.-]+)", line))]
    return [schedule[name] for name in bodies if permutes(schedule[name])]


def test_kernels_run_while_keys_are_on_their_way(schedule: dict[str, list[str]]) -> None:
    forward, backward = loops(schedule)
    keys, sums = f"bf16[1,2,{SHARD},128]", f"f32[1,2,{SHARD},128]"
    for body, carried, kernels in ((forward, [keys] * 2, 1), (backward, [keys] * 2 + [sums] * 2, 2)):
        large = [(start, end) for what, start, end in permutes(body) if what.count(",") == 3]
        assert sorted(what for what, *_ in permutes(body) if what.count(",") == 3) == carried
        for start, end in large:
            assert sum(KERNEL in line for line in body[start:end]) == kernels


def test_nothing_is_passed_on_after_the_last_hop(schedule: dict[str, list[str]]) -> None:
    """The last block is computed outside of the loops, where only gradients of keys go home, by a permute a bit."""
    assert sum(KERNEL in line for line in schedule["ENTRY"]) == 3
    inside = loops(schedule)
    outside = [body for body in schedule.values() if permutes(body) and body not in inside]
    assert schedule["ENTRY"] not in outside
    # One for dk and dv before the last block, so that what the last hop but one added is not left behind.
    assert len(outside) == 1 + (DEVICES - 1).bit_length()
    assert all(what == f"f32[1,2,{SHARD},128]" for body in outside for what, *_ in permutes(body))


def test_nothing_but_bounds_of_tiles_is_gathered(schedule: dict[str, list[str]]) -> None:
    lines = [line for body in schedule.values() for line in body]
    gathers = [line for line in lines if re.search(r" (all-gather|all-reduce|reduce-scatter|all-to-all)", line)]
    assert gathers
    assert not any(re.search(r"(bf16|f32)\[", line.split("(%")[0]) for line in gathers)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(compile_ring())
