"""Reading the toy world's pictures: which shape and colour, which motion; it shares no line with their drawing.

It judges pictures that a model made, so it forgives patches that are a little wrong, and answers nothing where
a picture shows nothing clearly.
"""

from functools import cache

import numpy as np

from .world import BACKGROUNDS, CELLS, COLOURS, SIZES

SIDE = 64  # pixels to which pictures are reduced, 8 a cell
LEAST = 60  # pixels of SIDE x SIDE that a colour must have: half of what the smallest shape covers
CLEAR = 0.5  # the second colour may have at most this share of the first one's pixels
ALIKE = 0.7  # intersection over union of what is seen with the shape that it is taken for
MOVED = 1.0  # cells between the first frame and the last


def read_scene(picture: np.ndarray) -> tuple[str, str] | None:
    """Return shape and colour of what a picture uint8[size, size, 3] shows, or None where that is not clear."""
    small = _reduced(picture)
    if (colour := _colour(small)) is None:
        return None
    seen = _covered(small, colour).ravel().astype(np.float32)
    shapes, masks = _templates()
    both = masks @ seen
    likeness = both / (masks.sum(axis=1) + seen.sum() - both)
    best = int(likeness.argmax())
    return (shapes[best], colour) if likeness[best] >= ALIKE else None


def read_motion(frames: np.ndarray) -> str | None:
    """Return where the shape in frames uint8[n, size, size, 3] moves: `left`, `right`, `up`, `down`, or None.

    That is the larger part of the way from the first frame that shows a shape to the last. None where it is less
    than a cell long, or where more than half of the frames show no shape.
    """
    centres = [where for frame in frames if (where := _centre(frame)) is not None]
    if 2 * len(centres) < len(frames) or not centres:
        return None
    right, down = centres[-1] - centres[0]
    if max(abs(right), abs(down)) < MOVED:
        return None
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "down" if down > 0 else "up"


def _reduced(picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.int32)


def _distances(small: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """Return each pixel's squared distance to each colour, int[SIDE, SIDE, colours]."""
    return ((small[:, :, None] - np.array([*palette.values()])) ** 2).sum(axis=-1)


def _colour(small: np.ndarray) -> str | None:
    """Return the colour that most pixels have that are not background, None where few have, or another rivals it."""
    nearest = _distances(small, COLOURS | BACKGROUNDS).argmin(axis=-1)
    counts = np.bincount(nearest.ravel(), minlength=len(COLOURS))[: len(COLOURS)]
    second, first = np.sort(counts)[-2:]
    return [*COLOURS][counts.argmax()] if first >= LEAST and second <= CLEAR * first else None


def _covered(small: np.ndarray, colour: str) -> np.ndarray:
    """Mark the pixels that are nearer to a colour than to the background, bool[SIDE, SIDE]."""
    grounds = _distances(small, BACKGROUNDS)
    ground = np.bincount(grounds.argmin(axis=-1).ravel(), minlength=len(BACKGROUNDS)).argmax()
    return _distances(small, {colour: COLOURS[colour]})[..., 0] < grounds[..., ground]


def _centre(frame: np.ndarray) -> np.ndarray | None:
    """Return x and y in cells of the middle of what a frame shows, None where that is not clear."""
    small = _reduced(frame)
    if (colour := _colour(small)) is None:
        return None
    rows, columns = np.nonzero(_covered(small, colour))
    return np.array([columns.mean(), rows.mean()]) * CELLS / SIDE


@cache
def _templates() -> tuple[list[str], np.ndarray]:
    """Return the shape and the mask, float32[n, SIDE * SIDE], of every shape in every size at every cell."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) * CELLS / SIDE
    names, masks = [], []
    for cells in SIZES.values():
        for top, left in np.ndindex(CELLS - cells + 1, CELLS - cells + 1):
            # from -1 to 1 across the shape's box
            for name, inside in _shapes(2 * (x - left) / cells - 1, 2 * (y - top) / cells - 1).items():
                names.append(name)
                masks.append(inside.ravel())
    return names, np.array(masks, np.float32)


def _shapes(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Mark the points inside each shape, whose box goes from -1 to 1; y grows downwards."""
    wide, high = np.abs(x), np.abs(y)
    box = (wide < 1) & (high < 1)
    return {
        "circle": wide**2 + high**2 < 1,
        "square": box,
        "triangle": box & (2 * wide < y + 1),
        "cross": box & ((wide < 0.5) | (high < 0.5)),
        "diamond": wide + high < 1,
    }
