"""One image file to one square of RGB, as the vision tokenizer takes it: short side to the size, centre crop.

JPEG is decoded by libjpeg-turbo through simplejpeg and not by Pillow, which holds the same library but swallows its
warnings: it loads a file that lost bytes shifted, and says nothing. Everything else is Pillow's.
Colour profiles are not applied, as LWM's own reader does not apply them.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from ...packing.ledger import DROPPED, FAILED
from ..media import Unfit

# What cameras and the web hold. Left out is what runs programs (EPS, PDF), draws (WMF), or is rare and little tested
# against hostile bytes (JPEG 2000, PSD, FLI and thirty more).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# Pillow looks for plugins that it has not loaded by loading all it has; these are the ones that it loads late.
LATE = (AvifImagePlugin, TiffImagePlugin, WebPImagePlugin)

SIZE = 256  # LWM's pictures
# Cameras of 100 megapixels pass. At so many the process takes 0.6 GiB for an RGB PNG, 1.2 for one with alpha, 0.4 for a
# progressive JPEG and 60 MiB for a plain one, which is scaled as it is decoded.
PIXELS = 2**27
SCANS = 500  # of a progressive JPEG, as libjpeg-turbo's own fuzzers allow; an encoder writes about 10

# Pillow averages whole blocks before it resizes, down to no less than this many times the target: 54 dB of the exact
# resize, in three quarters of its time.
GAP = 3.0
DRAFT, FAST_DRAFT = 2, 1  # a JPEG's DCT scales it to no less than this many times the target
# TurboJPEG scales by eighths, but by less than half it takes longer than not at all.
LEAST_SCALING = 2

JPEG_COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file")  # jerror.h; its other warnings are of odd headers

DEEP = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
MODES = DEEP | {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
PHOTOMETRIC, BITS_PER_SAMPLE, WHITE_IS_ZERO = 262, 258, 0  # TIFF 6.0, section 8

ORIENTATION = 274  # Exif 2.32, table 4
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureLimits(NamedTuple):
    """Say what is made of a picture and what is asked of it.

    Attributes:
      size: side of the square, in pixels.
      pixels: more than these are a failure; Pillow itself refuses more than 178,956,970.
      fast: scale a JPEG while decoding to no less than the size, not twice the size. It is 1.4 times as fast on large
        photographs and costs 6 to 12 dB: 39 to 44 dB of the full decode on real ones, where the default keeps 46 to 51.
      min_side: shorter sides of fewer pixels are dropped.
      max_aspect: pictures whose longer side is more than this many times the shorter are dropped; 0 keeps all.
    """

    size: int = SIZE
    pixels: int = PIXELS
    fast: bool = False
    min_side: int = 0
    max_aspect: float = 0.0


class Picture(NamedTuple):
    """A decoded picture: frame uint8[size, size, 3], and the upright original's width and height in pixels."""

    frame: np.ndarray
    width: int
    height: int


def decode_picture(data: bytes, limits: PictureLimits) -> Picture:
    """Decode one image file to a square.

    The first frame of an animation is taken, Exif's orientation is applied, what is transparent becomes white, and 16
    bits become 8 by the range of the type. Raises Unfit: dropped where a filter says so, which the header decides
    before any pixel is decoded, else failed.
    """
    if not data:
        raise Unfit(FAILED, "empty file")
    with warnings.catch_warnings():  # Pillow's, on sizes that are judged here and on metadata that nobody reads
        warnings.simplefilter("ignore")
        with _blame():
            _refuse_large_canvas(data, limits)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _decode(data, image, limits)


def to_square(pixels: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Scale the shorter side of uint8[height, width, 3] to `size`, bicubic; return the centre uint8[size, size, 3]."""
    height, width = pixels.shape[:2]
    return np.array(_square(Image.fromarray(pixels), (width, height), size))


@contextmanager
def _blame() -> Iterator[None]:
    """Turn whatever a decoder raises into a failure of the picture: hostile bytes make them raise nearly anything."""
    try:
        yield
    except Unfit:
        raise
    except UnidentifiedImageError as error:
        raise Unfit(FAILED, "unknown format", f"none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise Unfit(FAILED, "too many pixels", str(error)) from error
    except Exception as error:
        raise Unfit(FAILED, "damaged", f"{type(error).__name__}: {error}") from error


def _decode(data: bytes, image: Image.Image, limits: PictureLimits) -> Picture:
    width, height = image.size
    _admit(width, height, image.mode, limits)
    if image.format in ("JPEG", "MPO"):
        pixels = _jpeg(data, image, limits)
    else:
        _check_png(data, image)
        image.load()
        pixels = image
    turn = _orientation(image)
    square = _square(_opaque(pixels), (width, height), limits.size)
    if turn in TURNS:
        square = square.transpose(TURNS[turn])
    return Picture(np.array(square.convert("RGB")), *((height, width) if turn >= 5 else (width, height)))


def _admit(width: int, height: int, mode: str, limits: PictureLimits) -> None:
    """Raise Unfit where the header alone says that the picture is not to be decoded."""
    shorter, longer = sorted((width, height))
    found = f"{width} x {height} pixels"
    if shorter < 1:
        raise Unfit(FAILED, "damaged", found)
    if width * height > limits.pixels:
        raise Unfit(FAILED, "too many pixels", f"{found}, more than {limits.pixels}")
    if mode not in MODES:
        raise Unfit(FAILED, "unsupported pixels", f"mode {mode}: its range is not that of a picture")
    if shorter < limits.min_side:
        raise Unfit(DROPPED, "below min_side", f"{found}, min_side is {limits.min_side}")
    if limits.max_aspect and longer > limits.max_aspect * shorter:
        raise Unfit(DROPPED, "above max_aspect", f"{found}, max_aspect is {limits.max_aspect:g}")


def _refuse_large_canvas(data: bytes, limits: PictureLimits) -> None:
    """Raise Unfit where a WebP's canvas is too large: Pillow allocates it twice as it opens the file."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return
    if data[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    if width * height > limits.pixels:
        raise Unfit(FAILED, "too many pixels", f"{width} x {height} pixels, more than {limits.pixels}")


def _check_png(data: bytes, image: Image.Image) -> None:
    """Raise where a PNG's checksums are wrong: loading it would look at those before the pixels only."""
    if image.format == "PNG":
        with Image.open(io.BytesIO(data), formats=["PNG"]) as again:
            again.verify()


def _jpeg(data: bytes, image: Image.Image, limits: PictureLimits) -> Image.Image:
    """Decode a JPEG strictly, scaled by its DCT as far as the limits allow."""
    if "progressive" in image.info and data.count(b"\xff\xda") > SCANS:  # each scan costs a pass over all pixels
        raise Unfit(FAILED, "damaged", f"a progressive JPEG of more than {SCANS} scans")
    least = limits.size * (FAST_DRAFT if limits.fast else DRAFT)
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=True)
        if (width, height) != image.size:
            raise Unfit(FAILED, "damaged", f"two sizes, {image.width} x {image.height} and {width} x {height}")
        pixels = simplejpeg.decode_jpeg(
            data, JPEG_COLOURS[image.mode], min_height=least, min_width=least, min_factor=LEAST_SCALING, strict=True
        )
    except ValueError as error:
        if str(error).startswith(DAMAGE):
            raise Unfit(FAILED, "damaged", str(error)) from error
        image.draft(None, (least, least))  # unusual, not damaged: rare samplings, a later version of JFIF
        image.load()
        return image
    if image.mode == "CMYK":
        return Image.fromarray(255 - pixels, "CMYK")  # inverted, as Adobe writes them and Pillow supposes, too
    return Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels)


def _orientation(image: Image.Image) -> int:
    """Return Exif's orientation, 1 where there is none or it cannot be read; a TIFF is turned as it is loaded."""
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return turn if turn in TURNS else 1


def _opaque(image: Image.Image) -> Image.Image:
    """Return the picture on white as RGB or L. Before it is scaled, so that colour under alpha 0 cannot bleed."""
    if image.mode in DEEP:
        return _shallow(image)
    if image.has_transparency_data:
        image = _as(image, "RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return _as(image, "L" if image.mode in ("1", "L") else "RGB")


def _as(image: Image.Image, mode: str) -> Image.Image:
    """Convert where there is something to convert; Pillow would copy, and a copy may take half a GiB."""
    return image if image.mode == mode else image.convert(mode)


def _shallow(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits by the range of the type; Pillow's own conversion clips at 255."""
    tags = getattr(image, "tag_v2", {})
    top = 2 ** int(tags.get(BITS_PER_SAMPLE, (16,))[0]) - 1
    scaled = ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)
    deep = np.asarray(image)
    grey = (scaled[::-1] if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else scaled)[deep]
    if isinstance(clear := image.info.get("transparency"), int):
        grey[deep == clear] = 255
    return Image.fromarray(grey)


def _square(image: Image.Image, original: tuple[int, int], size: int) -> Image.Image:
    """Return the centre of a picture that was scaled from `original` pixels by eighths, or not at all."""
    eighths = 8 * max(image.size) // max(original)  # not the scaled sides, which libjpeg rounds up: that costs 10 dB
    width, height = (side * eighths / 8 for side in original)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=GAP)
