"""Turn the VQGAN that LWM publishes, a pickle of Flax parameters, into a folder as diffusers publishes them."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
from fsspec.core import url_to_fs
from safetensors.numpy import save_file

from ..errors import UserError
from .pickled_arrays import read_arrays
from .vqgan_folder import CONFIG, RANGE, WEIGHTS


@dataclass(frozen=True)
class Architecture:
    """The numbers that shape a VQGAN of LWM's; the defaults are those of LWM lwm/vqgan.py, VQGANConfig.

    Attributes:
      channels: of each level, the finest first; a level halves the sides, but for the last.
      layers: residual blocks of a level of the encoder; the decoder has one more.
      latent: numbers of a code's entry.
      codes: entries of the codebook.
    """

    channels: tuple[int, ...] = (128, 256, 256, 512, 768)
    layers: int = 2
    latent: int = 64
    codes: int = 8192


LWM = Architecture()


@dataclass(frozen=True)
class Weight:
    """One array: what diffusers calls it, where it lies in Flax's tree, and its shape there."""

    name: str
    path: str
    shape: tuple[int, ...]


def convert(path: str, out: str, architecture: Architecture = LWM) -> None:
    """Write `config.json`, with LWM's pixel range, and safetensors made of LWM's pickle, at paths or URLs.

    The pickle is read without calling anything that it names. Raises UserError where it cannot be read, asks for
    anything but arrays, or is not such a VQGAN, and where `out` already holds a model or cannot be written.
    """
    try:
        folder, root = url_to_fs(out)
        if folder.exists(f"{root}/{CONFIG}"):
            raise UserError(f"{out} already holds a {CONFIG}: give another folder.")
        with fsspec.open(path, "rb") as file:
            weights = rearrange(read_arrays(file, path), architecture, path)
        with tempfile.TemporaryDirectory() as made:
            save_file(weights, f"{made}/{WEIGHTS}", {"format": "pt"})
            (Path(made) / CONFIG).write_text(json.dumps(config(architecture), indent=2))
            folder.makedirs(root, exist_ok=True)
            for name in (WEIGHTS, CONFIG):  # a folder without a config is no model yet
                folder.put_file(f"{made}/{name}", f"{root}/{name}")
    except UserError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{path} cannot be converted into {out} ({error}): give paths that can be used.") from error


def config(architecture: Architecture) -> dict[str, object]:
    """Return what diffusers' `VQModel` is built from, and the range of LWM's pixels."""
    levels = len(architecture.channels)
    return {
        "_class_name": "VQModel",
        RANGE: "-1..1",  # LWM lwm/vision_chat.py
        "block_out_channels": architecture.channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": architecture.layers,
        "latent_channels": architecture.latent,
        "vq_embed_dim": architecture.latent,
        "num_vq_embeddings": architecture.codes,
        "norm_num_groups": 32,  # the default of Flax's GroupNorm
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
        "sample_size": 256,
    }


def rearrange(tree: dict[str, np.ndarray], architecture: Architecture, source: str) -> dict[str, np.ndarray]:
    """Name and turn Flax's arrays as torch has them, float32; raises UserError where one is missing or too many."""
    wanted = list(weights(architecture))
    if unknown := sorted(tree.keys() - {weight.path for weight in wanted}):
        raise UserError(f"{source} holds {unknown[0]}, which LWM's VQGAN does not have: give its own file.")
    for weight in wanted:
        found = tree[weight.path].shape if weight.path in tree else None
        if found != weight.shape:
            raise UserError(
                f"{source} has {'no' if found is None else list(found)} {weight.path}, where LWM's VQGAN has "
                f"{list(weight.shape)}: give its own file."
            )
    return {weight.name: _turned(tree[weight.path]) for weight in wanted}


def _turned(array: np.ndarray) -> np.ndarray:
    """Turn a kernel from Flax's [height, width, in, out] to torch's [out, in, height, width]."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array, np.float32)


def weights(a: Architecture) -> Iterator[Weight]:
    """Yield every array of a VQGAN; Flax numbers a module's parts of one class in the order of their calls."""
    yield from _encoder(a)
    yield from _conv("quant_conv", "quant_conv", 1, a.latent, a.latent)
    yield Weight("quantize.embedding.weight", "quantize/embeddings", (a.codes, a.latent))
    yield from _conv("post_quant_conv", "post_quant_conv", 1, a.latent, a.latent)
    yield from _decoder(a)


def _encoder(a: Architecture) -> Iterator[Weight]:
    width = a.channels[0]
    yield from _conv("encoder.conv_in", "encoder/Conv_0", 3, 3, width)
    for level, out in enumerate(a.channels):
        name, path = f"encoder.down_blocks.{level}", f"encoder/DownsamplingBlock_{level}"
        yield from _blocks(f"{name}.resnets", path, a.layers, width, out)
        width = out
        if level < len(a.channels) - 1:
            yield from _conv(f"{name}.downsamplers.0.conv", f"{path}/Downsample_0/Conv_0", 3, width, width)
    yield from _blocks("encoder.mid_block.resnets", "encoder/MidBlock_0", 2, width, width)
    yield from _norm("encoder.conv_norm_out", "encoder/GroupNorm_0", width)
    yield from _conv("encoder.conv_out", "encoder/Conv_1", 3, width, a.latent)


def _decoder(a: Architecture) -> Iterator[Weight]:
    width = a.channels[-1]
    yield from _conv("decoder.conv_in", "decoder/Conv_0", 3, a.latent, width)
    yield from _blocks("decoder.mid_block.resnets", "decoder/MidBlock_0", 2, width, width)
    for level, out in enumerate(reversed(a.channels)):  # both count from the coarsest
        name, path = f"decoder.up_blocks.{level}", f"decoder/UpsamplingBlock_{level}"
        yield from _blocks(f"{name}.resnets", path, a.layers + 1, width, out)
        width = out
        if level < len(a.channels) - 1:
            yield from _conv(f"{name}.upsamplers.0.conv", f"{path}/Upsample_0/Conv_0", 3, width, width)
    yield from _norm("decoder.conv_norm_out", "decoder/GroupNorm_0", width)
    yield from _conv("decoder.conv_out", "decoder/Conv_1", 3, width, 3)


def _blocks(name: str, path: str, count: int, into: int, out: int) -> Iterator[Weight]:
    """Yield residual blocks, the first of which may change the width."""
    for number in range(count):
        yield from _block(f"{name}.{number}", f"{path}/ResnetBlock_{number}", into if number == 0 else out, out)


def _block(name: str, path: str, into: int, out: int) -> Iterator[Weight]:
    yield from _norm(f"{name}.norm1", f"{path}/GroupNorm_0", into)
    yield from _conv(f"{name}.conv1", f"{path}/Conv_0", 3, into, out)
    yield from _norm(f"{name}.norm2", f"{path}/GroupNorm_1", out)
    yield from _conv(f"{name}.conv2", f"{path}/Conv_1", 3, out, out)
    if into != out:
        yield from _conv(f"{name}.conv_shortcut", f"{path}/Conv_2", 1, into, out)


def _conv(name: str, path: str, side: int, into: int, out: int) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", f"{path}/kernel", (side, side, into, out))
    yield Weight(f"{name}.bias", f"{path}/bias", (out,))


def _norm(name: str, path: str, width: int) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", f"{path}/scale", (width,))
    yield Weight(f"{name}.bias", f"{path}/bias", (width,))
