"""The video stream of a file: opened safely, listed without decoding, and decoded only where frames are wanted.

Where packets do not tell the frames (old codecs, a start in the middle of things), listing decodes too.
"""

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ...packing.ledger import FAILED
from ..media import Unfit
from .clip_feeding import FRESH, HIDDEN, SKIP, Packets, plan_feeding
from .nal_units import CLEAN, h264_role, hevc_role, length_size

# None of these ever opens a second file, as playlists and concat scripts do.
PLAIN_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
CONTAINERS = PLAIN_CONTAINERS | {"avi"}
PLAIN_CODECS = {"h264", "hevc", "vp9", "av1"}  # in MP4 and Matroska one packet is one frame
CODECS = PLAIN_CODECS | {"vp8", "mpeg4", "msmpeg4v2", "msmpeg4v3", "mpeg1video", "mpeg2video", "h263", "flv1"}
CODECS |= {"wmv1", "wmv2", "wmv3", "vc1", "mjpeg", "prores", "theora", "ffv1", "huffyuv", "rawvideo"}
STREAMS = 64
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


class Damage(Exception):
    """Say what is wrong inside a video."""


class Video(NamedTuple):
    """An open file, its first real video stream, the unit of its times in seconds, and what each packet calls."""

    container: InputContainer
    stream: VideoStream
    time_base: Fraction
    alive: Callable[[], None]


class Timeline(NamedTuple):
    """The frames of a stream.

    Attributes:
      times: int64[frames], ascending, in units of `time_base`.
      packets: where they tell the frames, else None.
    """

    times: np.ndarray
    time_base: Fraction
    packets: Packets | None


@contextmanager
def open_video(path: str, pixels: int, threads: int, alive: Callable[[], None]) -> Iterator[Video]:
    """Open a local file, which can make nothing else be opened; frames larger than `pixels` are never decoded.

    Raises:
      Unfit: it is no video.
    """
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(sorted(CONTAINERS)),
        "max_streams": str(STREAMS),
        "max_pixels": str(pixels),
        "fflags": "+ignidx",  # a broken index would hide frames, and we read from the start to the end
    }
    try:
        container = av.open(f"file:{path}", "r", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise Unfit(
            FAILED, "not a video", f"no whole header of MP4, MOV, Matroska, WebM or AVI: {explain(error)}"
        ) from error
    with container:
        stream = _find_stream(container)
        for other in container.streams:
            other.discard = Discard.default if other is stream else Discard.all
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(pixels)}
        yield Video(container, stream, stream.time_base or Fraction(1, av.time_base), alive)


def _find_stream(container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & PICTURES]
    if not streams:
        raise Unfit(FAILED, "no video stream", "pictures or sound only" if len(container.streams) else "nothing inside")
    codec = _codec(streams[0])
    if codec not in CODECS:
        raise Unfit(FAILED, "unknown video codec", codec or "one that ffmpeg cannot name")
    return streams[0]


def _codec(stream: VideoStream) -> str:
    context = stream.codec_context
    return context.codec.canonical_name if context else ""


def list_frames(video: Video, most: int) -> Timeline | None:
    """Return the frames as the packets tell them, without decoding, or None where they do not.

    Raises:
      Damage: a packet is broken.
      Unfit: there are more than `most` packets.
    """
    container, stream, time_base, _ = video
    if container.format.name not in PLAIN_CONTAINERS or _codec(stream) not in PLAIN_CODECS:
        return None
    times, roles = array("q"), bytearray()
    role_of = _role_finder(stream)
    with _telling(times, time_base):
        for packet in _packets(video):
            _check_count(len(times), most)
            if packet.is_corrupt:
                raise Damage("broken packet")
            if packet.pts is None or packet.has_sidedata("new_extradata"):
                return None
            times.append(packet.pts)
            roles.append(role_of(packet) | HIDDEN * packet.is_discard)
    packets = Packets(np.frombuffer(times, np.int64), np.frombuffer(roles, np.uint8))
    shown = packets.times()
    return None if shown is None else Timeline(shown, time_base, packets)


def decode_times(video: Video, most: int) -> Timeline:
    """Return the frames that a decoder makes of the whole stream, in the order in which it shows them.

    Raises:
      Damage: a frame is broken, or has no time of its own.
      Unfit: there are more than `most` frames.
    """
    shown = array("q")
    with _telling(shown, video.time_base):
        for frame in _decode_all(video):
            _check_count(len(shown), most)
            if frame.pts is None:
                raise Damage("a frame without a time")
            shown.append(frame.pts)
    # AVI has no times of presentation: those that ffmpeg makes up are right as a set, but not each at its own frame.
    times = np.sort(np.array(shown, np.int64))
    if np.any(np.diff(times) == 0) and list(shown) != times.tolist():
        raise Damage("the times of frames run backwards")
    return Timeline(times, video.time_base, None)


def decode_frames(video: Video, timeline: Timeline, wanted: np.ndarray) -> Iterator[VideoFrame]:
    """Yield the wanted frames of a listed video: each once, ascending, and never fewer.

    Args:
      wanted: int64[n], indices into `timeline.times`, ascending and distinct.

    Raises:
      Damage, av.FFmpegError: a frame that is needed is broken or missing.
    """
    names, frames = _named_frames(video, timeline, wanted)
    left = iter(names.tolist())
    name = next(left)
    for found, frame in frames:
        if found == name:
            yield frame
            if (name := next(left, None)) is None:
                return
    raise Damage("the file ends early")


def _named_frames(
    video: Video, timeline: Timeline, wanted: np.ndarray
) -> tuple[np.ndarray, Iterator[tuple[int | None, VideoFrame]]]:
    """Return what the wanted frames are known by, and the frames with their names: times, or places in the row."""
    if timeline.packets is None:
        return wanted, enumerate(_decode_all(video))
    times = timeline.times[wanted]
    return times, ((frame.pts, frame) for frame in _decode_planned(video, timeline.packets, times))


def _decode_all(video: Video) -> Iterator[VideoFrame]:
    for packet in _packets(video):
        yield from _sound(video.stream.decode(packet))
    yield from _sound(video.stream.decode(None))


def _decode_planned(video: Video, packets: Packets, wanted: np.ndarray) -> Iterator[VideoFrame]:
    """Yield the frames of those packets that the wanted frames need, each of which must give its frame."""
    stream, due = video.stream, set[int]()
    steps = plan_feeding(packets, wanted)
    for step, packet in zip(steps.tobytes(), _packets(video), strict=False):
        if step == SKIP:
            continue
        if step == FRESH:
            yield from _settle(_sound(stream.decode(None)), due)
            if due:
                raise Damage("a frame is missing")
            stream.codec_context.flush_buffers()
        if not packet.is_discard and packet.pts is not None:
            due.add(packet.pts)
        yield from _settle(_sound(stream.decode(packet)), due)
    yield from _settle(_sound(stream.decode(None)), due)


def _settle(frames: Iterator[VideoFrame], due: set[int]) -> Iterator[VideoFrame]:
    """Pass on frames that are due, in the order of their times."""
    for frame in frames:
        if frame.pts is None or frame.pts not in due or frame.pts > min(due):
            raise Damage("a frame is missing")
        due.remove(frame.pts)
        yield frame


def _sound(frames: list[VideoFrame]) -> Iterator[VideoFrame]:
    for frame in frames:
        if frame.is_corrupt:
            raise Damage("a frame is only partly there")
        yield frame


def _packets(video: Video) -> Iterator[Packet]:
    """Yield what is to be decoded; an empty packet would end the decoder's work."""
    for packet in video.container.demux(video.stream):
        video.alive()
        if packet.size:
            yield packet


def _role_finder(stream: VideoStream) -> Callable[[Packet], int]:
    codec = _codec(stream)
    find = {"h264": h264_role, "hevc": hevc_role}.get(codec)
    if find is None:
        return lambda packet: CLEAN * packet.is_keyframe
    size = length_size(codec, stream.codec_context.extradata)
    return lambda packet: find(memoryview(packet), size)


def _check_count(count: int, most: int) -> None:
    if count == most:
        raise Unfit(FAILED, "too many frames", f"more than {most} in the file")


@contextmanager
def _telling(times: array, time_base: Fraction) -> Iterator[None]:
    """Say of what goes wrong after which time it did."""
    try:
        yield
    except (Damage, av.FFmpegError) as error:
        seconds = float((max(times) - min(times)) * time_base) if times else 0.0
        raise Damage(f"after {seconds:.2f} s and {len(times)} frames: {explain(error)}") from error


def explain(error: Exception) -> str:
    """Return an error's own words."""
    return getattr(error, "strerror", None) or str(error)
