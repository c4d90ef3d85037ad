"""Clips to square frames at 4 a second beside PyAV's bare decoding of every frame of the same files.

Real clips, scaled up and coded as web videos are: x264 veryfast, B-frames, a key frame every 250.
"""

import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import VideoReformatter
from worldloom.pipelines.decoding.clips import ClipLimits, read_clip

from benchmarks.measure import Measure, speedup

THREADS = 2
FRAMES, RATE = 300, 30
FLOORS = {(640, 360): 0.8, (1280, 720): 1.1, (1920, 1080): 1.1}
CLIP = Path(os.environ.get("WORLDLOOM_REAL_DATA", "../shared/data")) / "videos" / "bottles.mp4"


def measures() -> Iterator[Measure]:
    limits = ClipLimits(budget=FRAMES, threads=THREADS)
    with tempfile.TemporaryDirectory() as folder:
        for (width, height), floor in FLOORS.items():
            path = str(Path(folder) / f"{height}.mp4")
            encode(path, width, height)
            ratio = speedup(lambda path=path: sum(map(len, read_clip(path, limits)[1])), lambda path=path: decode(path))
            yield Measure(f"clip_{height}p_over_bare_decode", ratio, floor)


def decode(path: str) -> None:
    """Decode every frame and do nothing with it: what any reader does at least that skips nothing."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = THREADS
        for _ in container.decode(stream):
            pass


def encode(path: str, width: int, height: int) -> None:
    scaler = VideoReformatter()
    with av.open(str(CLIP)) as source, av.open(path, "w") as target:
        stream = target.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "g": "250", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i, frame in enumerate(source.decode(video=0)):
            if i == FRAMES:
                break
            scaled = scaler.reformat(frame, width, height, "yuv420p", interpolation="BICUBIC")
            scaled.pts, scaled.time_base, scaled.pict_type = i, Fraction(1, RATE), 0
            target.mux(stream.encode(scaled))
        target.mux(stream.encode())
