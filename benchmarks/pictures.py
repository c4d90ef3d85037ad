"""Photographs to 256 x 256 against Pillow's full decode, our strictness included, and what the scaled decode costs."""

import io
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from worldloom.pipelines.decoding.pictures import SIZE, PictureLimits, decode_picture

from benchmarks.measure import Measure, speedup

ORIGINAL = ("canon.jpg", "trailcam.jpg")  # the sound ones of the real photographs with a short side of 1,280 and more
SMALL = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "waterview.jpg")
SHORT, NOISE, QUALITY = 1536, 3.0, 90  # pixels; standard deviation of a camera's noise; JPEG


def measures() -> Iterator[Measure]:
    """Yield the median speedup over photographs and the lowest fidelity in dB, by default and with `fast`."""
    photographs = dict(material())
    if not photographs:
        print("skipped: no photographs; set WORLDLOOM_REAL_DATA", file=sys.stderr)
        return
    for name, limits, faster, fidelity in (
        ("pictures", PictureLimits(), 1.9, 40),
        ("pictures-fast", PictureLimits(fast=True), 2.4, 36),
    ):
        ratios, decibels = zip(*(against(limits, data) for data in photographs.values()), strict=True)
        for told in zip(photographs, ratios, decibels, strict=True):
            print("{} {}: {:.2f} x, {:.1f} dB".format(name, *told), file=sys.stderr)
        yield Measure(name, statistics.median(ratios), faster)
        yield Measure(f"{name}-decibels", min(decibels), fidelity)


def against(limits: PictureLimits, data: bytes) -> tuple[float, float]:
    """Return the speedup over the full decode, and the fidelity to it in dB."""
    ratio = speedup(lambda: decode_picture(data, limits), lambda: full_decode(data))
    return ratio, psnr(decode_picture(data, limits).frame, full_decode(data))


def full_decode(data: bytes) -> np.ndarray:
    """Decode every pixel, scale with bicubic only what the centre crop keeps, and turn: Pillow as it is best used."""
    image = Image.open(io.BytesIO(data))
    turn, pixels = image.getexif(), image.convert("RGB")
    side = min(pixels.size)
    left, top = (pixels.width - side) / 2, (pixels.height - side) / 2
    square = pixels.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    square.getexif().update(turn)
    return np.array(ImageOps.exif_transpose(square))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two pictures in dB."""
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2)))


def material() -> Iterator[tuple[str, bytes]]:
    """Find the large photographs, and make some of small ones: scaled up, with noise, 4:2:0, one of them progressive.

    What Pillow makes of the damaged photograph is a real one of 10 megapixels as soon as it is written again.
    """
    real = Path(os.environ.get("WORLDLOOM_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    folder = real / "images"
    if not folder.is_dir():
        return
    for name in ORIGINAL:
        yield name, (folder / name).read_bytes()
    yield "corrupted.jpg again", jpeg(Image.open(folder / "corrupted.jpg"))
    rng = np.random.default_rng(0)
    for name in SMALL:
        yield (
            f"{name} enlarged",
            jpeg(enlarged(Image.open(folder / name).convert("RGB"), rng), name.startswith("water")),
        )


def enlarged(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    scale = SHORT / min(image.size)
    large = np.asarray(image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS))
    return Image.fromarray((large + rng.normal(0, NOISE, large.shape)).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, progressive: bool = False) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, progressive=progressive)
    return file.getvalue()
