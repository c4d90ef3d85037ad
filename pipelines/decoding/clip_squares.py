"""From a decoded video frame to an upright RGB square."""

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter

# Exact rounding and full chroma cost nothing with planar output, and no processor's short cuts change a pixel.
BICUBIC = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
).value


class Turn(NamedTuple):
    """How a stored picture becomes upright: exchange rows and columns first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False


def turn_of(frame: VideoFrame) -> Turn:
    """Return the turn nearest to a frame's display matrix (ISO/IEC 14496-12, 6.2.2; libavutil/display.h)."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Turn()
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Turn(True, c < 0, b < 0)
    return Turn(False, a < 0, d < 0)


def scaled_size(width: int, height: int, pixel_aspect: Fraction, size: int) -> tuple[int, int]:
    """Return width and height with the shorter side `size`; `pixel_aspect` is a pixel's width to its height."""
    wide, high = width * pixel_aspect.numerator, height * pixel_aspect.denominator
    short = min(wide, high)
    return (2 * wide * size + short) // (2 * short), (2 * high * size + short) // (2 * short)


class Squarer:
    """Make squares of one clip's frames: short side scaled to `size`, bicubic, turned upright, cut at the centre.

    Colours are cut on RGB, after scaling: a cut on subsampled chroma would round its place to even pixels.
    """

    def __init__(self, size: int, pixel_aspect: Fraction):
        self.size, self.pixel_aspect = size, pixel_aspect
        self.scaler = VideoReformatter()  # kept, for its tables cost more than a frame

    def square(self, frame: VideoFrame, turn: Turn) -> np.ndarray:
        """Return uint8[size, size, 3], alpha on white."""
        width, height = scaled_size(frame.width, frame.height, self.pixel_aspect, self.size)
        opaque = not any(component.is_alpha for component in frame.format.components)
        # Planar: swscale's vector code writes no packed RGB, and is three times faster this way for the same pixels.
        form = "gbrp" if opaque else "gbrap"
        scaled = self.scaler.reformat(frame, width, height, form, interpolation=BICUBIC, threads=1)
        green, blue, red, *alpha = (self._cut(_pixels(plane), turn) for plane in scaled.planes)
        picture = np.stack([red, green, blue], axis=-1)
        return picture if opaque else _on_white(picture, alpha[0][..., None])

    def _cut(self, plane: np.ndarray, turn: Turn) -> np.ndarray:
        if turn.transpose:
            plane = plane.T
        plane = plane[:: -1 if turn.mirror_y else 1, :: -1 if turn.mirror_x else 1]
        top, left = ((side - self.size) // 2 for side in plane.shape)
        return plane[top : top + self.size, left : left + self.size]


def _pixels(plane: VideoPlane) -> np.ndarray:
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]


def _on_white(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    light = picture.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))
    return ((light + 127) // 255).astype(np.uint8)
