"""Frames as pictures: what their codes decode to, as PNG, one by one or many on a contact sheet."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Decode = Callable[[np.ndarray], np.ndarray]  # codes uint16 [n, grid * grid] -> pixels uint8 [n, size, size, 3]
BATCH = 32  # frames decoded at once: 6 MB of pixels at LWM's 256 x 256

TILE, COLUMNS = 128, 16  # pixels of a frame's side on a sheet, and the most frames side by side
GAP, LINE = 8, 14  # pixels around a frame, and of a line of text
GROUND, INK, TRAINED, UNTRAINED = "#ffffff", "#1c1b19", "#1c7a37", "#8b8882"


class Tile(NamedTuple):
    """One frame of a contact sheet: a square PNG, and two short lines of ASCII to stand under it."""

    picture: bytes
    label: tuple[str, str]
    trained: bool


def decoded(codes: Sequence[np.ndarray], decode: Decode) -> Iterator[np.ndarray]:
    """Decode frames, a few at a time: yields uint8 `[size, size, 3]` for each row of codes, in order."""
    for low in range(0, len(codes), BATCH):
        yield from decode(np.stack(codes[low : low + BATCH]))


def png(pixels: np.ndarray, side: int) -> bytes:
    """Write a square picture, uint8 `[n, n, 3]`, as PNG, scaled down to `side` pixels by averaging if it is larger."""
    picture = Image.fromarray(pixels)
    return _file(picture.resize((side, side), Image.Resampling.BOX) if picture.width > side else picture)


def contact_sheet(tiles: Sequence[Tile], head: str) -> bytes:
    """Draw frames in a grid, trained ones in a broad green border and others in a thin grey one, under a line of text.

    Returns:
      A PNG, as near to a square of frames as 16 columns allow. The caller bounds their number.
    """
    columns = min(COLUMNS, max(3, math.isqrt(max(0, len(tiles) - 1)) + 1))  # room for the head on three
    rows = -(-len(tiles) // columns)
    width, height = TILE + GAP, TILE + 2 * GAP + 2 * LINE
    sheet = Image.new("RGB", (columns * width + GAP, GAP + LINE + rows * height + GAP), GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP // 2), head, INK, ImageFont.load_default())
    for i, tile in enumerate(tiles):
        _paste(sheet, draw, tile, GAP + i % columns * width, GAP + LINE + i // columns * height)
    return _file(sheet)


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    side, colour, border = TILE - 1, TRAINED if tile.trained else UNTRAINED, 3 if tile.trained else 1
    edge = (left - border, top - border, left + side + border, top + side + border)
    draw.rectangle(edge, outline=colour, width=border)
    sheet.paste(Image.open(io.BytesIO(tile.picture)).resize((TILE, TILE), Image.Resampling.BOX), (left, top))
    for i, line in enumerate(tile.label):
        draw.text((left, top + TILE + 4 + i * LINE), line, INK, ImageFont.load_default())


def _file(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()
