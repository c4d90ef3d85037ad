"""Pictures to squares, against Pillow's full decode and NumPy's arithmetic on small ones made here."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from worldloom.pipelines.decoding.pictures import Picture, PictureLimits, decode_picture, to_square
from worldloom.pipelines.media import Unfit

SIZE = 32  # half the short side of the scene, so that scaling the whole and cropping whole pixels is the right answer
LIMITS = PictureLimits(size=SIZE)


def scene(width: int = 96, height: int = 64) -> np.ndarray:
    """Draw waves of different lengths in each channel: uint8[height, width, 3], alike under no turn."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 17), np.cos(x / 23 - y / 7), np.sin(x * y / 900)]
    return ((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8)


def alpha(width: int = 96, height: int = 64) -> np.ndarray:
    """Draw a transparency from 0 to 255, with a hole and an opaque part: uint8[height, width]."""
    ramp = np.tile(np.linspace(-80, 340, width).clip(0, 255), (height, 1)).astype(np.uint8)
    ramp[20:40, 40:60] = 0
    return ramp


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def whole_then_crop(pixels: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Scale the whole picture and cut out the middle, in whole pixels."""
    height, width = pixels.shape[:2]
    scale = size / min(width, height)
    image = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"))


def on_white(pixels: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    part = (opacity / 255)[..., None]
    return np.rint(pixels * part + 255 * (1 - part)).astype(np.uint8)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other) ** 2))))


def refusal(data: bytes, limits: PictureLimits = LIMITS) -> tuple[str, str]:
    with pytest.raises(Unfit) as caught:
        decode_picture(data, limits)
    return caught.value.status, caught.value.reason


def photograph(seed: int = 0, width: int = 320, height: int = 240) -> Image.Image:
    """Draw what a camera would: no detail finer than a few pixels, and noise."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(scene(width // 4, height // 4)).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(soft) + rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


SCENE, GREY, ALPHA = Image.fromarray(scene()), Image.fromarray(scene()).convert("L"), Image.fromarray(alpha())
TRANSPARENT = SCENE.copy()
TRANSPARENT.putalpha(ALPHA)
GREY_ALPHA = Image.merge("LA", (GREY, ALPHA))
PALETTE = SCENE.quantize(60)
RGB_OF: dict[str, Callable[[], np.ndarray]] = {
    "rgb": scene,
    "grey": lambda: np.asarray(GREY.convert("RGB")),
    "bits": lambda: np.asarray(GREY.convert("1").convert("RGB")),
    "palette": lambda: np.asarray(PALETTE.convert("RGB")),
    "cmyk": lambda: np.asarray(SCENE.convert("CMYK").convert("RGB")),
    "rgba": lambda: on_white(scene(), alpha()),
    "la": lambda: on_white(np.asarray(GREY.convert("RGB")), alpha()),
    "palette, index 3 clear": lambda: on_white(
        np.asarray(PALETTE.convert("RGB")), np.where(np.asarray(PALETTE) == 3, 0, 255)
    ),
    "palette, alpha bytes": lambda: on_white(
        np.asarray(PALETTE.convert("RGB")), np.array([*range(0, 240, 4), *[255] * 196])[np.asarray(PALETTE)]
    ),
    "grey, level clear": lambda: on_white(
        np.asarray(GREY.convert("RGB")), np.where(np.asarray(GREY) == CLEAR_LEVEL, 0, 255)
    ),
}
CLEAR_LEVEL = int(np.asarray(GREY)[30, 50])
EXACT = {
    "PNG rgb": ("rgb", encoded(SCENE, "PNG")),
    "PNG grey": ("grey", encoded(GREY, "PNG")),
    "PNG bits": ("bits", encoded(GREY.convert("1"), "PNG")),
    "PNG palette": ("palette", encoded(PALETTE, "PNG")),
    "PNG rgba": ("rgba", encoded(TRANSPARENT, "PNG")),
    "PNG la": ("la", encoded(GREY_ALPHA, "PNG")),
    "PNG index clear": ("palette, index 3 clear", encoded(PALETTE, "PNG", transparency=3)),
    "PNG alpha bytes": ("palette, alpha bytes", encoded(PALETTE, "PNG", transparency=bytes(range(0, 240, 4)))),
    "PNG level clear": ("grey, level clear", encoded(GREY, "PNG", transparency=CLEAR_LEVEL)),
    "GIF palette": ("palette", encoded(PALETTE, "GIF")),
    "GIF index clear": ("palette, index 3 clear", encoded(PALETTE, "GIF", transparency=3)),
    "BMP rgb": ("rgb", encoded(SCENE, "BMP")),
    "BMP palette": ("palette", encoded(PALETTE, "BMP")),
    "WEBP rgb": ("rgb", encoded(SCENE, "WEBP", lossless=True)),
    "WEBP rgba": ("rgba", encoded(TRANSPARENT, "WEBP", lossless=True, exact=True)),
    "TIFF rgb": ("rgb", encoded(SCENE, "TIFF")),
    "TIFF deflated": ("rgb", encoded(SCENE, "TIFF", compression="tiff_adobe_deflate")),
    "TIFF bits": ("bits", encoded(GREY.convert("1"), "TIFF", compression="group4")),
    "TIFF cmyk": ("cmyk", encoded(SCENE.convert("CMYK"), "TIFF")),
    "TIFF rgba": ("rgba", encoded(TRANSPARENT, "TIFF")),
    "TIFF la": ("la", encoded(GREY_ALPHA, "TIFF")),
    "APNG, 2 frames": ("rgb", encoded(SCENE, "PNG", save_all=True, append_images=[ImageOps.invert(SCENE)])),
    "GIF, 2 frames": ("palette", encoded(PALETTE, "GIF", save_all=True, append_images=[ImageOps.flip(PALETTE)])),
    "WEBP, 2 frames": (
        "rgb",
        encoded(SCENE, "WEBP", save_all=True, append_images=[ImageOps.invert(SCENE)], lossless=True),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_mode_and_format_equals_the_slow_answer(name: str) -> None:
    kind, data = EXACT[name]
    picture = decode_picture(data, LIMITS)
    assert picture.frame.shape == (SIZE, SIZE, 3) and picture.frame.dtype == np.uint8
    assert (picture.width, picture.height) == (96, 64)
    expected = whole_then_crop(RGB_OF[kind]())
    assert np.abs(picture.frame.astype(int) - expected).max() <= 1


def test_colour_under_alpha_0_does_not_bleed() -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)  # black and clear, but for a white opaque half
    pixels[:, 32:] = 255
    assert (decode_picture(encoded(Image.fromarray(pixels), "PNG"), LIMITS).frame == 255).all()


DEEP = np.tile(np.linspace(0, 65535, 96).astype(np.uint16), (64, 1))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_its_range(form: str) -> None:
    frame = decode_picture(encoded(Image.fromarray(DEEP), form), LIMITS).frame
    assert (frame == whole_then_crop(np.repeat(np.rint(DEEP / 257).astype(np.uint8)[..., None], 3, -1))).all()


def test_16_bit_grey_of_a_tiff_that_counts_from_white() -> None:
    data = encoded(Image.fromarray(DEEP), "TIFF")
    entry = struct.pack("<HHII", 262, 3, 1, 1)  # PhotometricInterpretation, one short: 1, black is zero
    assert data.count(entry) == 1
    frame = decode_picture(data.replace(entry, struct.pack("<HHII", 262, 3, 1, 0)), LIMITS).frame
    expected = whole_then_crop(np.repeat(np.rint(255 - DEEP / 257).astype(np.uint8)[..., None], 3, -1))
    assert np.abs(frame.astype(int) - expected).max() <= 1


def test_a_clear_level_of_16_bit_grey_becomes_white() -> None:
    level = int(DEEP[0, 48])
    data = png(96, 64, 16, 0, DEEP.astype(">u2"), [(b"tRNS", struct.pack(">H", level))])
    shallow = np.rint(DEEP / 257).astype(np.uint8)
    expected = whole_then_crop(np.repeat(np.where(level == DEEP, 255, shallow).astype(np.uint8)[..., None], 3, -1))
    assert np.abs(decode_picture(data, LIMITS).frame.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("array", [DEEP.astype(np.float32), DEEP.astype(np.int32)], ids=["float", "int32"])
def test_pixels_without_a_range_are_refused(array: np.ndarray) -> None:
    assert refusal(encoded(Image.fromarray(array), "TIFF")) == ("failed", "unsupported pixels")


JPEGS = {
    "4:2:0": encoded(photograph(), "JPEG", quality=90, subsampling="4:2:0"),
    "4:2:2": encoded(photograph(), "JPEG", quality=90, subsampling="4:2:2"),
    "4:4:4": encoded(photograph(), "JPEG", quality=90, subsampling="4:4:4"),
    "progressive": encoded(photograph(), "JPEG", quality=90, progressive=True),
    "restarts": encoded(photograph(), "JPEG", quality=90, restart_marker_blocks=7),
    "rgb": encoded(photograph(), "JPEG", quality=90, keep_rgb=True),
    "grey": encoded(photograph().convert("L"), "JPEG", quality=90),
    "cmyk": encoded(photograph().convert("CMYK"), "JPEG", quality=90),
}
JPEGS["ycck"] = JPEGS["cmyk"].replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2")
JPEGS["trailing data"] = JPEGS["4:2:0"] + JPEGS["grey"]
JPEGS["fill bytes"] = JPEGS["4:2:0"][:-2] + b"\xff" * 9 + JPEGS["4:2:0"][-2:]
JPEGS["JFIF 3.01, which a strict decoder remarks on"] = JPEGS["4:2:0"].replace(b"JFIF\0\x01", b"JFIF\0\x03")


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("size", [256, 64, 47, 32])  # decoded whole, and scaled by the DCT to 1/1, 3/8 and 2/8
def test_every_sound_jpeg_is_close_to_the_full_decode(name: str, size: int) -> None:
    frame = decode_picture(JPEGS[name], PictureLimits(size=size)).frame
    pixels = np.asarray(Image.open(io.BytesIO(JPEGS[name])).convert("RGB"))
    assert psnr(frame, to_square(pixels, size)) >= 40


@pytest.mark.parametrize("width, height", [(273, 257), (257, 257), (321, 241)])
def test_a_scaled_decode_of_odd_sides_does_not_shift(width: int, height: int) -> None:
    """libjpeg rounds scaled sides up; taking them for the true ones loses more than 10 dB here."""
    data = encoded(photograph(0, width, height), "JPEG", quality=95, subsampling="4:4:4")
    frame = decode_picture(data, LIMITS).frame
    assert psnr(frame, to_square(np.asarray(Image.open(io.BytesIO(data))), SIZE)) >= 48


def test_a_jpeg_of_two_sizes_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap was held against the size that Pillow read."""
    monkeypatch.setattr("simplejpeg.decode_jpeg_header", lambda data, **_: (65000, 65000, "YCbCr", "420"))
    assert refusal(JPEGS["4:2:0"]) == ("failed", "damaged")


def test_fast_costs_fidelity_and_default_scales_to_no_less_than_twice_the_target() -> None:
    data, right = JPEGS["4:4:4"], to_square(np.asarray(Image.open(io.BytesIO(JPEGS["4:4:4"]))), 64)
    default, fast = (psnr(decode_picture(data, PictureLimits(size=64, fast=f)).frame, right) for f in (False, True))
    assert default > fast > 25
    exact = decode_picture(data, PictureLimits(size=121)).frame  # twice 121 is more than 240: nothing is scaled
    assert psnr(exact, to_square(np.asarray(Image.open(io.BytesIO(data))), 121)) > 50


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(9))
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 100, "subsampling": "4:4:4"} if form == "JPEG" else {}
    data = encoded(SCENE, form, exif=exif, **options, **({"lossless": True} if form == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    picture = decode_picture(data, LIMITS)
    assert (picture.width, picture.height) == upright.size
    assert psnr(picture.frame, whole_then_crop(np.asarray(upright.convert("RGB")))) >= 40


def test_broken_exif_costs_the_orientation_alone() -> None:
    data = encoded(SCENE, "PNG", exif=b"Exif\0\0no such thing")
    assert np.abs(decode_picture(data, LIMITS).frame.astype(int) - whole_then_crop(scene())).max() <= 1


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_any_size_gives_a_square_that_keeps_a_flat_colour(width: int, height: int, size: int) -> None:
    pixels = np.full((height, width, 3), (9, 120, 250), np.uint8)
    for form in ("PNG", "JPEG"):
        picture = decode_picture(encoded(Image.fromarray(pixels), form, quality=100), PictureLimits(size=size))
        assert (picture.width, picture.height) == (width, height)
        assert picture.frame.shape == (size, size, 3) and np.abs(picture.frame - np.array([9, 120, 250])).max() <= 3


def test_a_reduced_large_picture_is_close_to_the_full_resize() -> None:
    large = photograph(3, 1201, 903)
    frame = decode_picture(encoded(large, "PNG", compress_level=1), LIMITS).frame
    right = large.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(149, 0, 1052, 903))
    assert psnr(frame, np.asarray(right)) >= 45


def test_filters_are_drops_and_need_no_pixels() -> None:
    header = png(96, 64, 8, 2, None)
    assert refusal(header, PictureLimits(min_side=65)) == ("dropped", "below min_side")
    assert refusal(header, PictureLimits(max_aspect=1.49)) == ("dropped", "above max_aspect")
    assert refusal(header, PictureLimits(min_side=64, max_aspect=1.5)) == ("failed", "damaged")
    assert decode_picture(encoded(SCENE, "PNG"), PictureLimits(min_side=64, max_aspect=1.5)).width == 96


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, bits: int, colour: int, rows: np.ndarray | None, chunks: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """Write a PNG by hand; without rows it is a header and an empty stream of pixels."""
    packed = b"" if rows is None else b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def webp_header(width: int, height: int) -> bytes:
    body = (
        b"VP8X" + struct.pack("<IB3x", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


BOMBS = {
    "PNG of a gigapixel": png(32768, 32768, 8, 2, None),
    "PNG of more than any": png(2**31 - 1, 2**31 - 1, 8, 2, None),
    "PNG between ours and Pillow's limit": png(2**14, 2**13 + 1, 8, 2, None),
    "WEBP": webp_header(16383, 16383),
    "GIF": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    "JPEG": JPEGS["4:2:0"].replace(struct.pack(">BHH", 8, 240, 320), struct.pack(">BHH", 8, 65000, 65000)),
    "BMP": encoded(SCENE, "BMP").replace(struct.pack("<ii", 96, 64), struct.pack("<ii", 40000, 40000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_too_many_pixels_are_refused_by_the_header(name: str) -> None:
    assert refusal(BOMBS[name]) == ("failed", "too many pixels")


def test_the_cap_is_the_limits_own() -> None:
    data = encoded(SCENE, "PNG")
    assert refusal(data, PictureLimits(pixels=96 * 64 - 1)) == ("failed", "too many pixels")
    assert decode_picture(data, PictureLimits(pixels=96 * 64)).height == 64


def test_a_large_text_in_a_png_is_not_unpacked() -> None:
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**25)))
    data = encoded(SCENE, "PNG")
    assert refusal(data[:33] + text + data[33:]) == ("failed", "damaged")


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = JPEGS["progressive"]
    last = data.rindex(b"\xff\xda")
    assert refusal(data[:-2] + data[last:-2] * 600 + data[-2:]) == ("failed", "damaged")


@pytest.mark.parametrize("data", [b"hello, world", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"P6 1 1 255 abc", b"\0" * 4096])
def test_other_formats_are_unknown(data: bytes) -> None:
    assert refusal(data) == ("failed", "unknown format")


def test_an_empty_file_says_so() -> None:
    assert refusal(b"") == ("failed", "empty file")


WHOLE = [*list(JPEGS.values())[:8], *(EXACT[name][1] for name in EXACT if not name.startswith("GIF"))]


@given(st.sampled_from(WHOLE), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_every_truncation_is_a_failure(whole: bytes, part: float) -> None:
    assert refusal(whole[: int(part * (len(whole) - 6))])[0] == "failed"


@pytest.mark.parametrize("name", list(JPEGS)[:8])
@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_jpeg_without_its_very_end_is_a_failure(name: str, missing: int) -> None:
    assert refusal(JPEGS[name][:-missing]) == ("failed", "damaged")


@given(st.floats(0, 0.95))
@settings(max_examples=20, deadline=None)
def test_a_gif_without_all_of_its_first_frame_is_a_failure(part: float) -> None:
    whole = EXACT["GIF palette"][1]
    assert refusal(whole[: int(part * len(whole))])[0] == "failed"


BETWEEN_SCANS = (b"\xff\xc4", b"\xff\xda")  # their tables and their headers


@given(st.sampled_from(["4:2:0", "grey", "restarts", "progressive"]), st.floats(0, 0.98))
@settings(max_examples=40, deadline=None)
def test_a_jpeg_cut_short_and_closed_again_is_a_failure(name: str, part: float) -> None:
    """Between two scans a progressive one is whole, only coarser: nobody can say that it was cut."""
    data = JPEGS[name]
    start = data.index(b"\xff\xda") + 14
    cut = start + int(part * (len(data) - start))
    assume(data[cut : cut + 2] not in BETWEEN_SCANS and data[cut - 1 : cut + 1] not in BETWEEN_SCANS)
    assert refusal(data[:cut] + b"\xff\xd9") == ("failed", "damaged")


@pytest.mark.parametrize(("name", "least"), [("4:2:0", 36), ("grey", 36), ("restarts", 36), ("progressive", 27)])
def test_most_jpegs_that_lost_bytes_are_failures_though_pillow_loads_them(name: str, least: int) -> None:
    """Not all: a decoder that falls into step again, and happens on the right number of blocks, has no complaint."""
    data, rng, refused = JPEGS[name], np.random.default_rng(0), 0
    start = data.index(b"\xff\xda") + 14
    for at in rng.integers(start, len(data) - 400, 40):
        lost = data[:at] + data[at + 300 :]
        Image.open(io.BytesIO(lost)).load()
        try:
            decode_picture(lost, LIMITS)
        except Unfit as unfit:
            refused += (unfit.status, unfit.reason) == ("failed", "damaged")
    assert refused >= least


@given(st.sampled_from([*JPEGS, *EXACT]), st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_raise_nothing_but_unfit(name: str, data: st.DataObject) -> None:
    whole = bytearray(JPEGS.get(name) or EXACT[name][1])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert decodes_or_is_unfit(bytes(whole))


SIGNATURES = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF\0\0\0\0WEBPVP8X"]
SIGNATURES += [b"\0\0\0\x1cftypavif"]


@given(st.sampled_from(SIGNATURES), st.binary(max_size=400))
@settings(max_examples=150, deadline=None)
def test_random_bytes_raise_nothing_but_unfit(signature: bytes, rest: bytes) -> None:
    assert decodes_or_is_unfit(signature + rest)


def decodes_or_is_unfit(data: bytes) -> bool:
    try:
        return isinstance(decode_picture(data, PictureLimits(size=8, pixels=2**20)), Picture)
    except Unfit as unfit:
        return unfit.status == "failed" and bool(unfit.reason)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_a_wrong_checksum_of_a_png_is_damage(kind: bytes) -> None:
    data = bytearray(encoded(SCENE, "PNG"))
    at = data.index(kind)
    end = at + 4 + struct.unpack(">I", data[at - 4 : at])[0]
    data[end] ^= 1
    assert refusal(bytes(data))[0] == "failed"


def test_bytes_after_the_end_do_no_harm() -> None:
    for kind in ("PNG rgb", "GIF palette", "BMP rgb", "TIFF rgb"):
        data = EXACT[kind][1]
        assert (decode_picture(data + b"more", LIMITS).frame == decode_picture(data, LIMITS).frame).all()


def test_avif_is_read() -> None:
    frame = decode_picture(encoded(SCENE, "AVIF", quality=95), LIMITS).frame
    assert psnr(frame, whole_then_crop(scene())) > 30


def test_to_square_takes_decoded_pixels() -> None:
    assert np.abs(to_square(scene(), SIZE).astype(int) - whole_then_crop(scene())).max() <= 1


def test_the_real_pictures(real_data: Path) -> None:
    """All are kept but the one that lost bytes, which Pillow alone loads without a word."""
    limits = PictureLimits()
    for path in sorted((real_data / "images").iterdir()):
        if path.name == "corrupted.jpg":
            Image.open(path).load()
            assert refusal(path.read_bytes(), limits) == ("failed", "damaged")
            continue
        picture = decode_picture(path.read_bytes(), limits)
        upright = ImageOps.exif_transpose(Image.open(path))
        assert (picture.width, picture.height) == upright.size
        if upright.mode == "RGB":
            assert psnr(picture.frame, to_square(np.asarray(upright))) >= 40
