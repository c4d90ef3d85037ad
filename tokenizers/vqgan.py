"""The VQGAN of LWM and aMUSEd, run by diffusers' `VQModel`, read from safetensors and nothing else.

Floating-point codes depend on the shapes that the network sees and on how a sum is split among threads. So
it always runs on one internal batch, of which the last is padded, and on one torch thread. On a CPU that batch
is a single picture, which is as fast as any, needs the least memory, and leaves nothing beside a picture
that could change its codes; several pictures run side by side, each on a thread of its own.
"""

import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import UserError
from .model_files import local_file
from .vqgan_folder import CONFIG, RANGE, WEIGHTS

RANGES = {"-1..1": (-1.0, 1.0), "0..1": (0.0, 1.0)}  # what a network takes for black and white: LWM's, aMUSEd's
SIZE = 256  # pixels a side: LWM lwm/vqgan.py, VQGANConfig.resolution; a config of diffusers does not say
MOST_CODES = 1 << 16  # codes are uint16

# A wrong pixel range shows in how well a small picture comes back by either. A network of 0..1 knows nothing below 0,
# so by -1..1 it loses the darker half. One of -1..1 gives back 0..1 too, as a picture of half the contrast: at as much
# error as by its own range where the error is of contrast, at 4 times as much where it is of the codebook's steps.
PROBE = 64  # pixels a side
WELL = 0.02  # mean squared error for black 0 and white 1, or 17 dB; the darker half lost makes 0.08, grey alone 0.15
TWICE = 2.0  # the error by -1..1 over that by 0..1: from 1/4 to 1 for the one network, above 4 for the other


@dataclass(frozen=True)
class Setting:
    """How the network runs on a kind of device: whatever decides a code, and how many batches run at once."""

    dtype: torch.dtype
    batch: int
    threads: int
    at_once: int


# Two at once keep two cores busy where one process has them; more cores are what more workers are for.
SETTINGS = {
    "cpu": Setting(torch.float32, batch=1, threads=1, at_once=2),
    "cuda": Setting(torch.bfloat16, batch=16, threads=1, at_once=1),
}
ELSEWHERE = "give the workers one, or set vocabulary.vision.device to what they have"
ENTRIES = {"lookup_from_codebook": False}  # we hand `VQModel.decode` the entries, not their numbers
DAMAGED = (SafetensorError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_turn = threading.Lock()  # the number of threads belongs to the whole process


class VQGAN:
    """Run one VQGAN, in fp32 on a CPU and in bf16, codebook in fp32, on a GPU.

    Attributes:
      size: side of a picture in pixels.
      grid: codes a side.
      codes: number of different codes.
      device: `cpu` or `cuda`: what its codes are made on.
      digest: blake2b of the weights, the config, the pixel range and the setting, 32 hexadecimal characters.
    """

    size = SIZE

    def __init__(self, model: VQModel, pixel_range: str, digest: str, device: str | None = None):
        self._low, high = RANGES[pixel_range]
        self._unit = 255 / (high - self._low)  # so that x / unit + low is x / 127.5 - 1 for LWM, as it computes it
        self._model = model
        self.device = device or model.device.type
        self._setting = SETTINGS[model.device.type]
        self.grid = SIZE >> (len(model.config["block_out_channels"]) - 1)
        self.codes = int(model.config["num_vq_embeddings"])
        self.digest = digest

    @classmethod
    def load(cls, path: str, pixel_range: str | None = None, device: str | None = None) -> Self:
        """Read a folder as diffusers publishes it, local or at a URL; warns where the pixel range looks wrong.

        On a machine without the device that is asked for it tells its digest, decodes, and does not encode.

        Raises UserError where a file is missing or damaged, does not fit the other, or where the pixel range is
        unknown, contradicted, or named neither by the config nor by the caller.
        """
        told, weights = (_local(path, name) for name in (CONFIG, WEIGHTS))
        config, named = _read_config(path, told)
        chosen = _pixel_range(path, named, pixel_range)
        model = _read_model(path, weights, config, device)
        digest = _digest(weights, config, chosen, device or model.device.type)
        _warn_of_range(path, chosen, _suspected(*(_error(cls(model, tried, digest)) for tried in RANGES)))
        return cls(model, chosen, digest, device)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Return the nearest codes by Euclidean distance, `uint16[n, grid * grid]`, of `uint8[n, size, size, 3]`."""
        if frames.dtype != np.uint8 or frames.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"pictures must be uint8[n, {SIZE}, {SIZE}, 3], not {frames.dtype}{list(frames.shape)}")
        if self._model.device.type != self.device:
            raise UserError(f"The recipe's codes are made on {self.device}, which this machine lacks: {ELSEWHERE}.")
        return self._run(self._encode, frames, np.empty((0, self.grid**2), np.uint16))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return pictures `uint8[n, size, size, 3]`, clipped and rounded, of codes `[n, grid * grid]`."""
        if codes.ndim != 2 or codes.shape[1] != self.grid**2:
            raise ValueError(f"codes must be [n, {self.grid**2}], not {list(codes.shape)}")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codes:
            raise ValueError(f"codes must be in [0, {self.codes}), not in [{codes.min()}, {codes.max()}]")
        return self._run(self._decode, codes, np.empty((0, SIZE, SIZE, 3), np.uint8))

    def _run(self, work: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, nothing: np.ndarray) -> np.ndarray:
        """Apply the network to every internal batch of the rows."""
        batch = self._setting.batch
        batches = [_padded(rows[start : start + batch], batch) for start in range(0, len(rows), batch)]
        with _threads(self._setting) as pool:
            return np.concatenate([nothing, *pool.map(work, batches)])[: len(rows)]

    @torch.inference_mode()
    def _encode(self, frames: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(frames).to(self._model.device).permute(0, 3, 1, 2).float().contiguous()
        latents = self._model.encode((pixels / self._unit + self._low).to(self._setting.dtype)).latents
        codes = self._model.quantize(latents.float())[2][2]
        return codes.reshape(len(frames), -1).cpu().numpy().astype(np.uint16)

    @torch.inference_mode()
    def _decode(self, codes: np.ndarray) -> np.ndarray:
        side = isqrt(codes.shape[1])
        indices = torch.from_numpy(codes.astype(np.int64)).to(self._model.device)
        entries = self._model.quantize.embedding(indices).unflatten(1, (side, side)).permute(0, 3, 1, 2).contiguous()
        pixels = self._model.decode(entries.to(self._setting.dtype), force_not_quantize=True).sample.float()
        levels = ((pixels - self._low) * self._unit).round().clamp(0, 255)
        return levels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def _padded(rows: np.ndarray, batch: int) -> np.ndarray:
    return np.pad(rows, [(0, batch - len(rows))] + [(0, 0)] * (rows.ndim - 1))


@contextmanager
def _threads(setting: Setting) -> Iterator[ThreadPoolExecutor]:
    """Offer threads of which each computes alone, and give torch its own number of threads back."""
    start = partial(torch.set_num_threads, setting.threads)
    with _turn:
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(setting.at_once, initializer=start) as pool:
                yield pool
        finally:
            torch.set_num_threads(before)


def _local(path: str, name: str) -> Path:
    """Return the local path of a file of a model's folder."""
    try:
        file = local_file(f"{path.rstrip('/')}/{name}")
        if not file.is_file():
            raise FileNotFoundError
    except FileNotFoundError:
        raise UserError(_missing(path, name)) from None
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The VQGAN at {path} cannot be read ({error}): give a folder that can.") from error
    return file


def _missing(path: str, name: str) -> str:
    return (
        f"The VQGAN at {path} has no {name}: give a folder with {CONFIG} and {WEIGHTS}, such as aMUSEd's vqvae, "
        "or make one from LWM's own file with `worldloom convert-vqgan FILE --out DIR`."
    )


def _read_config(path: str, file: Path) -> tuple[dict[str, Any], Any]:
    """Read what decides the network, and the pixel range that is named under our own key, or None."""
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"The {CONFIG} of the VQGAN at {path} is no JSON ({error}): fetch it again.") from error
    if not isinstance(config, dict) or config.get("_class_name", "VQModel") != "VQModel":
        raise UserError(
            f"The {CONFIG} at {path} describes no {VQModel.__name__}: give a VQGAN, such as aMUSEd's vqvae."
        )
    return {key: value for key, value in config.items() if not key.startswith("_")}, config.get(RANGE)


def _pixel_range(path: str, named: Any, given: str | None) -> str:
    """Choose the range that the config names or the caller gives; where both do, they must agree."""
    for value in (named, given):
        if value is not None and value not in [*RANGES]:  # a config may name a list, which is no key
            raise UserError(f"The pixel range of {path} is {value!r}: it must be one of {', '.join(RANGES)}.")
    if named and given and named != given:
        raise UserError(f"{path} names the pixel range {named}, but {given} is given: leave pixel_range out.")
    if not (chosen := given or named):
        raise UserError(
            f"The config of the VQGAN at {path} names no pixel range: give pixel_range, "
            '"0..1" for aMUSEd\'s weights or "-1..1" for LWM\'s.'
        )
    return str(chosen)


def _read_model(path: str, weights: Path, config: dict[str, Any], wanted: str | None) -> VQModel:
    """Build the network around the weights, which on a CPU stay mapped, so that all workers of a machine share them."""
    device = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    try:
        with torch.device("meta"):
            model = VQModel(**config | ENTRIES).eval()
        tensors = load_file(weights)
        _check(config, model.state_dict(), tensors)
        model.load_state_dict({name: _placed(name, tensor, device) for name, tensor in tensors.items()}, assign=True)
    except DAMAGED as error:
        raise UserError(f"{CONFIG} and {WEIGHTS} at {path} make no VQGAN ({error}): fetch both again.") from error
    return model


def _placed(name: str, tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Move a weight to the device in its type there; the codebook stays exact."""
    return tensor.to(device, torch.float32 if name.startswith("quantize.") else SETTINGS[device].dtype)


def _check(config: dict[str, Any], wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Refuse weights that are not the network's, and networks that make no uint16 codes of RGB pictures."""
    for name in sorted(wanted.keys() | found.keys()):
        shape, actual = (list(tensors[name].shape) if name in tensors else None for tensors in (wanted, found))
        if shape != actual:
            raise ValueError(f"the config asks for {name} of shape {shape}, the file has {actual}")
        if not found[name].is_floating_point():
            raise ValueError(f"{name} is of type {found[name].dtype}, not of a floating-point one")
    if (codes := config.get("num_vq_embeddings", 0)) > MOST_CODES:
        raise ValueError(f"num_vq_embeddings is {codes}, at most {MOST_CODES} are possible")
    for key in ("in_channels", "out_channels"):
        if config.get(key, 3) != 3:
            raise ValueError(f"{key} is {config[key]}, a picture has 3")


def _digest(weights: Path, config: dict[str, Any], pixel_range: str, device: str) -> str:
    with weights.open("rb") as file:
        content = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
    s = SETTINGS[device]
    decisive = [content, config, pixel_range, device, str(s.dtype), s.batch, s.threads]
    return hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=16).hexdigest()


def _warn_of_range(path: str, chosen: str, suspected: str | None) -> None:
    """Warn where the network looks like one of the other range."""
    if suspected not in (None, chosen):
        warnings.warn(
            f"The pixel range {chosen} of the VQGAN at {path} looks wrong: it gives a picture back as a network of "
            f"{suspected} does. If its author does not say {chosen}, set pixel_range: {suspected}.",
            stacklevel=3,
        )


def _suspected(wide: float, narrow: float) -> str | None:
    """Tell the network's range from a picture's errors by -1..1 and by 0..1; None where it gives no picture back."""
    if min(wide, narrow) >= WELL:
        return None
    return "-1..1" if wide < TWICE * narrow else "0..1"


def _error(tokenizer: VQGAN) -> float:
    """Return the mean squared error of a small round trip, for black 0 and white 1."""
    picture = probe()[None]
    setting = tokenizer._setting
    with _threads(setting) as pool:
        back = pool.submit(lambda: tokenizer._decode(tokenizer._encode(_padded(picture, setting.batch)))).result()
    return float(np.mean((back[:1] / 255.0 - picture / 255.0) ** 2))


def probe() -> np.ndarray:
    """Draw a picture with black, white, colours, slopes and edges, `uint8[PROBE, PROBE, 3]`."""
    y, x = np.mgrid[:PROBE, :PROBE] / (PROBE - 1)
    picture = np.stack([x, y, 1 - x], axis=-1)
    picture[(x - 0.3) ** 2 + (y - 0.3) ** 2 < 0.04] = (1, 1, 1)
    picture[(x - 0.7) ** 2 + (y - 0.3) ** 2 < 0.04] = (0, 0, 0)
    picture[(abs(x - 0.3) < 0.2) & (abs(y - 0.75) < 0.1)] = (1, 0.2, 0)
    picture[(abs(x - 0.75) < 0.15) & (abs(y - 0.75) < 0.15)] = (0, 0.3, 0.8)
    return np.asarray(np.rint(picture * 255), np.uint8)
