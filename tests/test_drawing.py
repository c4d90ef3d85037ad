"""Frames become the pictures that their codes decode to, pixel by pixel."""

import io

import numpy as np
import pytest
from PIL import Image
from worldloom.drawing import BATCH, COLUMNS, GAP, LINE, TILE, Tile, contact_sheet, decoded, png

RNG = np.random.default_rng(0)


def noise(side: int) -> np.ndarray:
    return RNG.integers(0, 256, (side, side, 3), dtype=np.uint8)


def opened(data: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "PNG" and picture.mode == "RGB"
    return np.asarray(picture)


@pytest.mark.parametrize("n", [0, 1, BATCH, 2 * BATCH + 3])
def test_frames_are_decoded_in_order_and_a_few_at_a_time(n):
    codes, calls = [np.array([i, i + 1], np.uint16) for i in range(n)], []

    def decode(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        assert batch.dtype == np.uint16
        return np.broadcast_to(batch.sum(1).astype(np.uint8)[:, None, None, None], (len(batch), 4, 4, 3))

    assert [int(p[0, 0, 0]) for p in decoded(codes, decode)] == [(2 * i + 1) % 256 for i in range(n)]
    assert sum(calls) == n and max(calls, default=0) <= BATCH


def test_a_png_holds_the_pixels_or_their_means():
    pixels = noise(32)
    for side in (32, 99):
        assert (opened(png(pixels, side)) == pixels).all()
    means = pixels.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(opened(png(pixels, 16)) - means).max() <= 1  # rounded once a direction


@pytest.mark.parametrize("n", [1, 5, 16, 17, 300])
def test_a_contact_sheet_holds_every_picture_in_its_place(n):
    pictures = [noise(TILE) for _ in range(min(n, 5))]
    tiles = [Tile(png(pictures[i % 5], TILE), ("row 1", f"#{i}"), i % 2 == 0) for i in range(n)]
    sheet = opened(contact_sheet(tiles, "some frames"))
    across = (sheet.shape[1] - GAP) // (TILE + GAP)
    assert across <= COLUMNS and (across == 3 or (across - 1) ** 2 < n)
    width, height = TILE + GAP, TILE + 2 * GAP + 2 * LINE
    assert sheet.shape[0] <= GAP + LINE + -(-n // across) * height + GAP
    for i in range(n):
        left, top = GAP + i % across * width, GAP + LINE + i // across * height
        assert (sheet[top : top + TILE, left : left + TILE] == pictures[i % 5]).all(), i
        red, green, blue = sheet[top + 9, left - 1].tolist()
        assert (green > red + 50 and green > blue + 50) == (i % 2 == 0)
        assert (sheet[top + TILE + 4 : top + TILE + 4 + 2 * LINE, left : left + TILE] < 128).any(), "no label"


def test_small_pictures_fill_their_tile():
    sheet = opened(contact_sheet([Tile(png(np.full((8, 8, 3), 7, np.uint8), 8), ("a", "b"), False)], "one"))
    assert (sheet[GAP + LINE : GAP + LINE + TILE, GAP : GAP + TILE] == 7).all()
