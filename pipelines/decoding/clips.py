"""From a video file to square RGB frames, so many a second of presentation time (design §8).

A first pass only lists the packets; a second one decodes what the chosen frames need and nothing else.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from functools import partial
from itertools import chain, repeat
from typing import NamedTuple

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ...packing.ledger import DROPPED, FAILED
from ..media import Unfit
from .clip_squares import Squarer, Turn, turn_of
from .clip_stream import Damage, Timeline, Video, decode_frames, decode_times, explain, list_frames, open_video
from .frame_choice import Sampling, choose_ticks, count_ticks, frames_at, frames_between
from .whole_files import find_break

BATCH = 8
SLACK = 0.5  # seconds by which a clip's stated end may lie behind its video's: times are rounded
MAX_ASPECT = 16  # nothing useful is narrower, and scaling it would take memory without end

Open = Callable[[], AbstractContextManager[Video]]


class ClipLimits(NamedTuple):
    """What is asked of a clip.

    Attributes:
      size: side of the squares, pixels.
      rate: frames a second of presentation time.
      budget: frames at most; a longer clip is cut or thinned by `sampling`.
      sampling: `window` or `uniform`.
      draw: in [0, 1), places the window.
      start, end: seconds after the first frame, of the part of a longer video that is the clip; end excluded.
      min_side: pixels of the shorter side; max_aspect: longer side to shorter side.
      min_seconds, max_seconds: of the whole clip, its last frame shown as long as the mean one.
      min_frames: frames at `rate`, before the budget.
      pixels: of a source frame at most, checked before anything is decoded.
      packets: of the stream at most; the first pass keeps 9 bytes of each.
      threads: of the decoder.
    """

    size: int = 256
    rate: int = 4
    budget: int = 30
    sampling: Sampling = "window"
    draw: float = 0.0
    start: float | None = None
    end: float | None = None
    min_side: int | None = None
    max_aspect: float | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    min_frames: int = 1
    pixels: int = 2**24
    packets: int = 2**20
    threads: int = 2


class ClipInfo(NamedTuple):
    """What was found and chosen.

    Attributes:
      width, height: pixels, with rotation and the shape of pixels applied.
      seconds: length of the clip, its last frame shown as long as the mean one.
      total: frames at the asked rate.
      chosen: frames kept of them.
      first: index of the first kept.
      start: seconds of the first kept after the video's first frame, of which the clip may be a part.
      rate: mean frames a second of those kept.
    """

    width: int
    height: int
    seconds: float
    total: int
    chosen: int
    first: int
    start: float
    rate: float


class _Picture(NamedTuple):
    """A frame's upright size in pixels, the shape of pixels applied, and its square."""

    width: int
    height: int
    square: np.ndarray


def read_clip(
    path: str, limits: ClipLimits, alive: Callable[[], None] = lambda: None
) -> tuple[ClipInfo, Iterator[np.ndarray]]:
    """Return what a local video holds and its chosen frames, as batches uint8[m, size, size, 3], m at most BATCH.

    `alive` is called at each packet that is read: in long files there may be many before the next frame.

    Raises:
      Unfit: a filter drops the clip, or it is damaged; the batches raise it too, where damage shows only later.
      OSError: the file cannot be read.
    """
    opened = partial(open_video, path, limits.pixels, limits.threads, alive)
    timeline = _list_whole(path, limits, opened)
    _check_end(_seconds(timeline.times, timeline.time_base), limits)
    part = frames_between(timeline.times, limits.start, limits.end, timeline.time_base)
    times, time_base = timeline.times[part], timeline.time_base
    if not len(times):
        raise Unfit(FAILED, "no frames", "between start and end" if len(timeline.times) else "in the whole file")
    total = count_ticks(int(times[0]), int(times[-1]), time_base, limits.rate)
    seconds = _seconds(times, time_base)
    _check_length(seconds, total, limits)
    ticks = choose_ticks(total, limits.budget, limits.sampling, limits.draw)
    wanted, counts = np.unique(frames_at(times, ticks, time_base, limits.rate), return_counts=True)
    pictures = _pictures(opened, limits, timeline, wanted + part.start, counts.tolist(), ticks)
    picture = next(pictures)
    span = ticks[-1] - ticks[0]
    info = ClipInfo(
        width=picture.width,
        height=picture.height,
        seconds=seconds,
        total=total,
        chosen=len(ticks),
        first=ticks[0],
        start=float((int(times[0]) - int(timeline.times[0])) * time_base) + ticks[0] / limits.rate,
        rate=limits.rate * (len(ticks) - 1) / span if span else float(limits.rate),
    )
    return info, _batches(chain([picture], pictures), len(ticks), limits.size)


def _list_whole(path: str, limits: ClipLimits, opened: Open) -> Timeline:
    """Find a clip's frames, and refuse a broken file, of which a demuxer might give just less."""
    found = find_break(path)
    if found and found.reason == "damaged":
        raise Unfit(FAILED, *found)
    try:
        timeline = _list(opened, limits)
    except Unfit as unfit:
        if found and unfit.status == FAILED:
            raise Unfit(FAILED, found.reason, f"{unfit.detail}; {found.detail}") from unfit
        raise
    if found:
        place = f"after {_seconds(timeline.times, timeline.time_base):.2f} s and {len(timeline.times)} frames"
        raise Unfit(FAILED, found.reason, f"{place}; {found.detail}")
    return timeline


def _list(opened: Open, limits: ClipLimits) -> Timeline:
    """Find a clip's frames, by decoding them where nothing cheaper tells."""
    try:
        with opened() as video:
            _check_shape(video.stream, limits)
            timeline = list_frames(video, limits.packets)
        if timeline is None:
            with opened() as video:
                timeline = decode_times(video, limits.packets)
    except Damage as damage:
        raise Unfit(FAILED, "damaged", explain(damage)) from damage
    return timeline


def _check_shape(stream: VideoStream, limits: ClipLimits) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    shape = f"{width} x {height}"
    if not (width and height):
        raise Unfit(FAILED, "damaged", "no picture size")
    if width * height > limits.pixels:
        raise Unfit(FAILED, "too many pixels", f"{shape}, more than {limits.pixels}")
    short, long = sorted((Fraction(height), width * _pixel_aspect(stream)))
    if limits.min_side is not None and short < limits.min_side:
        raise Unfit(DROPPED, "below min_side", f"{shape}, min_side is {limits.min_side}")
    if limits.max_aspect is not None and long > short * Fraction(limits.max_aspect):
        raise Unfit(DROPPED, "above max_aspect", f"{shape}, max_aspect is {limits.max_aspect:g}")
    if long > short * MAX_ASPECT:
        raise Unfit(FAILED, "too narrow", f"{shape}, more than {MAX_ASPECT} to 1")


def _pixel_aspect(stream: VideoStream) -> Fraction:
    aspect = stream.sample_aspect_ratio
    return aspect if aspect and aspect > 0 else Fraction(1)


def _seconds(times: np.ndarray, time_base: Fraction) -> float:
    """Return how long frames are shown, the last as long as the mean one."""
    if not len(times):
        return 0.0
    return float((int(times[-1]) - int(times[0])) * time_base * len(times) / max(len(times) - 1, 1))


def _check_end(seconds: float, limits: ClipLimits) -> None:
    if limits.end is not None and limits.end > seconds + SLACK:
        raise Unfit(FAILED, "bad times", f"the clip ends at {limits.end:g} s and the video at {seconds:.2f} s")


def _check_length(seconds: float, total: int, limits: ClipLimits) -> None:
    if limits.min_seconds is not None and seconds < limits.min_seconds:
        raise Unfit(DROPPED, "below min_seconds", f"{seconds:.2f} s")
    if limits.max_seconds is not None and seconds > limits.max_seconds:
        raise Unfit(DROPPED, "above max_seconds", f"{seconds:.2f} s")
    if total < limits.min_frames:
        raise Unfit(DROPPED, "below min_frames", f"{total} at {limits.rate} a second")


def _pictures(
    opened: Open, limits: ClipLimits, timeline: Timeline, wanted: np.ndarray, counts: list[int], ticks: list[int]
) -> Iterator[_Picture]:
    """Yield one picture for each tick: a frame that is the last before several serves all of them."""
    done, turn = 0, None
    try:
        with opened() as video:
            squarer = Squarer(limits.size, _pixel_aspect(video.stream))
            for frame, count in zip(decode_frames(video, timeline, wanted), counts, strict=True):
                turn = turn or turn_of(frame)  # once: a look at a frame's side data keeps the frame from being freed
                picture = _picture(frame, turn, squarer)
                yield from repeat(picture, count)
                done += count
    except (Damage, av.FFmpegError) as error:
        place = f"at {ticks[done] / limits.rate:.2f} s, frame {done + 1} of {len(ticks)}"
        raise Unfit(FAILED, "damaged", f"{place}: {explain(error)}") from error


def _picture(frame: VideoFrame, turn: Turn, squarer: Squarer) -> _Picture:
    width, height = round(frame.width * squarer.pixel_aspect), frame.height
    if turn.transpose:
        width, height = height, width
    return _Picture(width, height, squarer.square(frame, turn))


def _batches(pictures: Iterator[_Picture], count: int, size: int) -> Iterator[np.ndarray]:
    for done in range(0, count, BATCH):
        batch = np.empty((min(BATCH, count - done), size, size, 3), np.uint8)
        for place, picture in zip(batch, pictures, strict=False):
            place[...] = picture.square
        yield batch
