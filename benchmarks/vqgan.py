"""VQGAN encode on the CPU against eager diffusers under the C library's default allocator, tokens equal."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from safetensors.torch import save_file
from worldloom.tokenizers.allocator import own_allocator
from worldloom.tokenizers.vqgan import VQGAN
from worldloom.tokenizers.vqgan_folder import CONFIG, RANGE, WEIGHTS

from .measure import Measure, seconds

DIFFUSERS, WORLDLOOM = SIDES = ("diffusers", "worldloom")
BATCH = 16  # pictures, the peer's batch
PAIRS = 3  # a pair takes a minute on two cores


def measures() -> Iterator[Measure]:
    """Yield how many times faster than eager diffusers at batch 16 a worker with its own allocator encodes."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_vqgan(Path(folder) / "model")
        pairs = [[run(side, folder) for side in SIDES] for _ in range(PAIRS)]
        if not np.array_equal(*(np.load(f"{folder}/{side}.npy") for side in SIDES)):
            raise AssertionError("the codes differ from diffusers'")
    print(f"seconds a picture, {SIDES}: {np.round(np.array(pairs) / BATCH, 2).tolist()}", file=sys.stderr)
    yield Measure("vqgan-encode-cpu", statistics.median(peer / ours for peer, ours in pairs), 1.5)


def run(side: str, folder: str) -> float:
    """Return the seconds that one side takes in a process of its own, which also writes its codes."""
    command = [sys.executable, "-m", "benchmarks.vqgan", side, folder]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(side: str, folder: str) -> None:
    if side == WORLDLOOM:
        own_allocator()  # as a job's worker does
    encode = (ours if side == WORLDLOOM else peer)(f"{folder}/model")
    frames = pictures(BATCH)
    encode(frames[:1])
    codes: list[np.ndarray] = []
    print(seconds(lambda: codes.append(encode(frames))))
    np.save(f"{folder}/{side}.npy", codes[0])


def ours(folder: str) -> Callable[[np.ndarray], np.ndarray]:
    return VQGAN.load(folder).encode


def peer(folder: str) -> Callable[[np.ndarray], np.ndarray]:
    model = VQModel.from_pretrained(folder, use_safetensors=True).eval()

    @torch.inference_mode()
    def encode(frames: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous() / 127.5 - 1
        indices = model.quantize(model.encode(pixels).latents)[2][2]
        return indices.reshape(len(frames), -1).numpy().astype(np.uint16)

    return encode


def pictures(n: int, seed: int = 0) -> np.ndarray:
    """Draw random pictures of large and small patches, `uint8[n, 256, 256, 3]`."""
    rng = np.random.default_rng(seed)
    coarse, fine = (rng.integers(0, 128, (n, side, side, 3), np.uint8) for side in (8, 64))
    return sum(
        patches.repeat(256 // patches.shape[1], 1).repeat(256 // patches.shape[2], 2) for patches in (coarse, fine)
    )


def write_random_vqgan(folder: Path, tiny: bool = False, seed: int = 0, pixel_range: str | None = "-1..1") -> None:
    """Write a VQGAN as diffusers publishes it with seeded random weights: LWM's size, or 100,000 parameters."""
    config = {
        "down_block_types": ["DownEncoderBlock2D"] * 5,
        "up_block_types": ["UpDecoderBlock2D"] * 5,
        "block_out_channels": [8, 8, 8, 16, 16] if tiny else [128, 256, 256, 512, 768],
        "norm_num_groups": 4 if tiny else 32,
        "latent_channels": 8 if tiny else 64,
        "num_vq_embeddings": 64 if tiny else 8192,
        "layers_per_block": 2,
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VQModel(**config)
        torch.nn.init.normal_(model.quantize.embedding.weight, std=0.2)  # as wide as what the encoder gives
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / WEIGHTS)
    named = {} if pixel_range is None else {RANGE: pixel_range}
    (folder / CONFIG).write_text(json.dumps({"_class_name": "VQModel", **config, **named}, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
