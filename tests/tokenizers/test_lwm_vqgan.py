"""LWM's VQGAN after conversion against LWM's own network, written again in slow NumPy from its description.

`flax_encode` and `flax_decode` follow LWM's lwm/vqgan.py module by module, in its layout [n, height, width,
channels], in float64. A `Scope` names parameters as Flax's `nn.compact` does, so the first run makes the tree.
"""

import json
import pickle
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worldloom.benchmarks.vqgan import pictures
from worldloom.errors import UserError
from worldloom.tokenizers.lwm_vqgan import LWM, Architecture, convert, weights
from worldloom.tokenizers.vision import load

TINY = Architecture(channels=(32, 32, 64, 32, 64), layers=1, latent=8, codes=32)


@dataclass
class Scope:
    """A module of Flax: parameters and parts in a dict, parts of one class numbered as they are made."""

    tree: dict[str, Any]
    rng: np.random.Generator
    made: dict[str, int] = field(default_factory=dict)

    def part(self, kind: str) -> "Scope":
        number = self.made[kind] = self.made.get(kind, -1) + 1
        return self.named(f"{kind}_{number}")

    def named(self, name: str) -> "Scope":
        return Scope(self.tree.setdefault(name, {}), self.rng)

    def get(self, name: str, shape: tuple[int, ...], mean: float, deviation: float) -> np.ndarray:
        if name not in self.tree:
            self.tree[name] = self.rng.normal(mean, deviation, shape).astype(np.float32)
        return self.tree[name].astype(np.float64)


def conv(scope: Scope, x: np.ndarray, width: int, side: int = 3, stride: int = 1) -> np.ndarray:
    """Flax's nn.Conv, padding SAME for stride 1 and VALID for stride 2."""
    into = x.shape[-1]
    kernel = scope.get("kernel", (side, side, into, width), 0, (side * side * into) ** -0.5)
    bias = scope.get("bias", (width,), 0, 0.1)
    if stride == 1:
        x = np.pad(x, [(0, 0), (side // 2, side // 2), (side // 2, side // 2), (0, 0)])
    rows, columns = ((n - side) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, width)) + bias
    for i in range(side):
        for j in range(side):
            taps = x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            out += taps @ kernel[i, j]
    return out


def norm(scope: Scope, x: np.ndarray) -> np.ndarray:
    """Flax's nn.GroupNorm: 32 groups, epsilon 1e-6."""
    scale, bias = scope.get("scale", x.shape[-1:], 1, 0.2), scope.get("bias", x.shape[-1:], 0, 0.2)
    grouped = x.reshape(*x.shape[:3], 32, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((1, 2, 4), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * scale + bias


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def residual(scope: Scope, x: np.ndarray, width: int) -> np.ndarray:
    hidden = conv(scope.part("Conv"), silu(norm(scope.part("GroupNorm"), x)), width)
    hidden = conv(scope.part("Conv"), silu(norm(scope.part("GroupNorm"), hidden)), width)
    return hidden + (x if x.shape[-1] == width else conv(scope.part("Conv"), x, width, side=1))


def middle(scope: Scope, x: np.ndarray) -> np.ndarray:
    for _ in range(2):
        x = residual(scope.part("ResnetBlock"), x, x.shape[-1])
    return x


def encoder(scope: Scope, x: np.ndarray, a: Architecture) -> np.ndarray:
    x = conv(scope.part("Conv"), x, a.channels[0])
    for level, width in enumerate(a.channels):
        block = scope.part("DownsamplingBlock")
        for _ in range(a.layers):
            x = residual(block.part("ResnetBlock"), x, width)
        if level != len(a.channels) - 1:
            x = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
            x = conv(block.part("Downsample").part("Conv"), x, width, stride=2)
    x = middle(scope.part("MidBlock"), x)
    return conv(scope.part("Conv"), silu(norm(scope.part("GroupNorm"), x)), a.latent)


def decoder(scope: Scope, x: np.ndarray, a: Architecture) -> np.ndarray:
    x = middle(scope.part("MidBlock"), conv(scope.part("Conv"), x, a.channels[-1]))
    for level in reversed(range(len(a.channels))):
        block = scope.part("UpsamplingBlock")
        for _ in range(a.layers + 1):
            x = residual(block.part("ResnetBlock"), x, a.channels[level])
        if level != 0:
            x = x.repeat(2, 1).repeat(2, 2)
            x = conv(block.part("Upsample").part("Conv"), x, x.shape[-1])
    return conv(scope.part("Conv"), silu(norm(scope.part("GroupNorm"), x)), 3)


def flax_encode(model: Scope, frames: np.ndarray, a: Architecture) -> np.ndarray:
    """Return each place's squared distances to all codes, `[n, grid * grid, codes]`."""
    hidden = encoder(model.named("encoder"), frames / 127.5 - 1, a)
    z = conv(model.named("quant_conv"), hidden, a.latent, side=1)
    entries = model.named("quantize").get("embeddings", (a.codes, a.latent), 0, 0.7)
    return ((z[..., None, :] - entries) ** 2).sum(-1).reshape(len(frames), -1, a.codes)


def flax_decode(model: Scope, codes: np.ndarray, a: Architecture) -> np.ndarray:
    side = round(codes.shape[1] ** 0.5)
    entries = model.named("quantize").get("embeddings", (a.codes, a.latent), 0, 0.7)
    z = conv(model.named("post_quant_conv"), entries[codes].reshape(len(codes), side, side, -1), a.latent, side=1)
    return (np.clip(decoder(model.named("decoder"), z, a), -1, 1) + 1) * 127.5


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    """Make the tree of the tiny network by running it once on next to nothing."""
    model = Scope({}, np.random.default_rng(0))
    flax_encode(model, np.zeros((1, 16, 16, 3)), TINY)
    flax_decode(model, np.zeros((1, 1), int), TINY)
    return model.tree


def leaves(tree: dict[str, Any], path: str = "") -> dict[str, np.ndarray]:
    found = {}
    for name, part in tree.items():
        found |= leaves(part, f"{path}{name}/") if isinstance(part, dict) else {path + name: part}
    return found


def test_the_converted_network_is_lwms(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "vqgan").write_bytes(pickle.dumps(tree))
    convert(str(tmp_path / "vqgan"), str(tmp_path / "out"), TINY)
    ours, model = load("vqgan", str(tmp_path / "out")), Scope(tree, np.random.default_rng(0))
    frames = pictures(1)
    distances = flax_encode(model, frames, TINY)[0]
    codes = ours.encode(frames)
    nearest, second = np.sort(distances, -1)[:, :2].T
    assert (ours.size, ours.grid, ours.codes, codes.shape) == (256, 16, 32, (1, 256))
    assert len(np.unique(codes)) > 5
    clear = second - nearest > 1e-4 * second  # the rest, where float32 may choose either, is next to nothing
    assert clear.mean() > 0.97 and np.array_equal(codes[0][clear], distances.argmin(-1)[clear])
    decoded, expected = ours.decode(codes), flax_decode(model, codes.astype(int), TINY)
    assert expected.std() > 10
    assert np.abs(decoded - expected).max() < 0.51


def test_every_weight_of_lwms_has_a_place(tree: dict[str, Any]) -> None:
    assert {weight.path: weight.shape for weight in weights(TINY)} == {k: v.shape for k, v in leaves(tree).items()}
    assert sum(int(np.prod(weight.shape)) for weight in weights(LWM)) == 146_244_675  # 585 MB of float32


def test_the_config_is_diffusers(tree: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """diffusers itself loads the folder, without a word on our key."""
    from diffusers.models.autoencoders.vq_model import VQModel

    (tmp_path / "vqgan").write_bytes(pickle.dumps(tree))
    convert(str(tmp_path / "vqgan"), str(tmp_path / "out"), TINY)
    model, info = VQModel.from_pretrained(str(tmp_path / "out"), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert "pixel_range" not in capfd.readouterr().err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["_worldloom_pixel_range"] == "-1..1"
    assert tuple(model.config.block_out_channels) == TINY.channels


def without(tree: dict[str, Any], path: str) -> dict[str, Any]:
    copy = pickle.loads(pickle.dumps(tree))
    *above, last = path.split("/")
    node = copy
    for name in above:
        node = node[name]
    del node[last]
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, "encoder/MidBlock_0/ResnetBlock_1/Conv_0/bias"), "has no encoder/MidBlock_0/ResnetBl"),
        (lambda t: t | {"discriminator": {"kernel": np.ones(3, np.float32)}}, "holds discriminator/kernel"),
        (lambda t: t | {"quant_conv": {"kernel": np.ones((1, 1, 8, 9)), "bias": np.ones(8)}}, r"\[1, 1, 8, 9\] quant"),
        (lambda t: t | {"quant_conv": 3}, "int at 'quant_conv'"),
        (lambda t: {}, "has no "),
    ],
)
def test_other_trees_are_refused(tree: dict[str, Any], change: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "vqgan").write_bytes(pickle.dumps(change(tree)))
    with pytest.raises(UserError, match=message):
        convert(str(tmp_path / "vqgan"), str(tmp_path / "out"), TINY)
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_overwritten(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="already holds"):
        convert(str(tmp_path / "vqgan"), str(tmp_path), TINY)


def test_a_missing_file_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be converted"):
        convert(str(tmp_path / "none"), str(tmp_path / "out"))


def test_urls_are_taken(tree: dict[str, Any]) -> None:
    import fsspec

    with fsspec.open("memory://lwm/vqgan", "wb") as file:
        file.write(pickle.dumps(tree))
    convert("memory://lwm/vqgan", "memory://lwm/out", TINY)
    assert load("vqgan", "memory://lwm/out").codes == 32


def test_it_needs_no_torch() -> None:
    import subprocess

    code = "import sys, worldloom.tokenizers.lwm_vqgan; print(*({'torch', 'jax', 'diffusers'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_jax_arrays_and_frozen_dicts_are_taken(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jax = pytest.importorskip("jax")
    module = types.ModuleType("flax.core.frozen_dict")

    class FrozenDict(dict):
        def __reduce__(self) -> tuple[Any, ...]:
            return FrozenDict, (dict(self),)

    FrozenDict.__module__, FrozenDict.__qualname__, module.FrozenDict = module.__name__, "FrozenDict", FrozenDict
    with monkeypatch.context() as patch:
        for name in ("flax", "flax.core", "flax.core.frozen_dict"):
            patch.setitem(sys.modules, name, module)
        content = pickle.dumps(FrozenDict(jax.tree.map(jax.numpy.asarray, tree)))
    (tmp_path / "vqgan").write_bytes(content)
    (tmp_path / "plain").write_bytes(pickle.dumps(tree))
    for name in ("vqgan", "plain"):
        convert(str(tmp_path / name), str(tmp_path / f"{name}.out"), TINY)
    written = [(tmp_path / f"{name}.out" / "diffusion_pytorch_model.safetensors") for name in ("vqgan", "plain")]
    assert written[0].read_bytes() == written[1].read_bytes()
