"""Clips to frames, against a slow reading: decode everything, then pick by time with fractions."""

import gc
import os
import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")

from av.video.frame import VideoFrame  # noqa: E402
from av.video.reformatter import Interpolation  # noqa: E402
from worldloom.pipelines.decoding import clip_stream, clips  # noqa: E402
from worldloom.pipelines.decoding.clips import ClipInfo, ClipLimits, read_clip  # noqa: E402
from worldloom.pipelines.media import Unfit  # noqa: E402

SIZE, COUNT = 32, 100
ALL = 10**6
EXACT = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
).value
MATRICES = {  # 16.16 fixed point; the display matrix's rows (a, b), (c, d): x' = a x + c y, y' = b x + d y
    "upright": ((1, 0, 0, 1), lambda p: p),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "half": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "counter": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "flipped": ((1, 0, 0, -1), lambda p: p[::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
}


def x264(**more: object) -> dict[str, str]:
    """Return options that make the same file each time: x264's vector code does not, for pictures as small as ours."""
    extra = {"asm": 0, "threads": 1, "b_adapt": 0, "scenecut": 0, "bframes": 3, "keyint": 15, **more}
    text = ":".join(f"{key.replace('_', '-')}={value}" for key, value in extra.items())
    return {"threads": "1", "x264-params": text}


def scene(i: int, width: int, height: int) -> np.ndarray:
    """A picture that tells its number: gradients that drift, and a dot that runs."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([3 * x + 5 * i, 4 * y + 3 * i, 2 * (x + y) + 7 * i], axis=-1).astype(np.uint8)
    picture[(x - 3 * i % width) ** 2 + (y - 2 * i % height) ** 2 < 100] = 255, i % 256, 0
    return picture


def steady(count: int = COUNT, rate: int = 25) -> list[int]:
    return [1000 * i // rate for i in range(count)]


def unsteady(count: int = COUNT, first: int = 0) -> list[int]:
    steps = random.Random(count).choices([1, 5, 20, 40, 41, 250, 900], k=count)
    return [first + sum(steps[:i]) for i in range(count)]


def encode(
    path: Path,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    size: tuple[int, int] = (64, 48),
    form: str = "yuv420p",
    picture: Callable[[int, int, int], np.ndarray] = scene,
    container: dict[str, str] | None = None,
    time_base: Fraction = Fraction(1, 1000),
    prepare: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Write a clip whose frame i has the time `times[i]`."""
    with av.open(str(path), "w", options=container or {}) as target:
        stream = target.add_stream(codec, rate=25, options=x264() if options is None else options)
        (stream.width, stream.height), stream.pix_fmt = size, form
        stream.codec_context.time_base = time_base
        prepare(stream)
        for i, time in enumerate(steady() if times is None else times):
            pixels = picture(i, *size)
            frame = VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[-1] == 4 else "rgb24")
            frame.pts, frame.time_base = time, time_base
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return path


def decode_all(path: Path) -> tuple[list[tuple[Fraction, VideoFrame]], Fraction]:
    """Return every frame with its time in seconds, and the shape of pixels."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.pts * stream.time_base, frame) for frame in container.decode(stream)]
        return sorted(frames, key=lambda pair: pair[0]), stream.sample_aspect_ratio or Fraction(1)


def slow_square(frame: VideoFrame, aspect: Fraction, size: int) -> np.ndarray:
    wide, high = frame.width * aspect, Fraction(frame.height)
    scale = size / min(wide, high)
    target = [int(side * scale + Fraction(1, 2)) for side in (wide, high)]
    pixels = np.rot90(frame.reformat(*target, "rgb24", interpolation=EXACT).to_ndarray(), frame.rotation // 90)
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def slow_clip(path: Path, start: str = "0", end: str = "1000000", size: int = SIZE) -> np.ndarray:
    frames, aspect = decode_all(path)
    first = frames[0][0]
    frames = [(t - first, frame) for t, frame in frames if Fraction(start) <= t - first < Fraction(end)]
    times, k, chosen = [t - frames[0][0] for t, _ in frames], 0, []
    while Fraction(k, 4) <= times[-1]:
        chosen.append(max(i for i, t in enumerate(times) if t <= Fraction(k, 4)))
        k += 1
    squares = {i: slow_square(frames[i][1], aspect, size) for i in set(chosen)}
    return np.stack([squares[i] for i in chosen])


def read(path: Path, **limits: Any) -> tuple[ClipInfo, np.ndarray]:
    info, batches = read_clip(str(path), ClipLimits(**{"size": SIZE, "budget": ALL, **limits}))
    frames = list(batches)
    assert all(batch.dtype == np.uint8 and 1 <= len(batch) <= clips.BATCH for batch in frames)
    return info, np.concatenate(frames)


def assert_as_slow(path: Path) -> None:
    """Hold windows, thinned clips and parts of a clip against the slow reading."""
    expected = slow_clip(path)
    total = len(expected)
    info, frames = read(path)
    assert (info.total, info.chosen, info.first, info.start, info.rate) == (total, total, 0, 0, 4)
    assert np.array_equal(frames, expected)
    for draw in (0.0, 0.5, 0.99):
        info, frames = read(path, budget=4, draw=draw, threads=1)
        start = int(draw * (total - 3))
        assert (info.total, info.chosen, info.first, info.start, info.rate) == (total, 4, start, start / 4, 4)
        assert np.array_equal(frames, expected[start : start + 4])
    for budget in (1, 2, 5):
        info, frames = read(path, budget=budget, sampling="uniform")
        places = [i * (total - 1) // max(budget - 1, 1) for i in range(budget)]
        assert np.array_equal(frames, expected[places])
        assert (info.chosen, info.first) == (budget, 0)
        assert budget == 1 or info.rate == pytest.approx((budget - 1) / ((total - 1) / 4))
    info, frames = read(path, start=1.3, end=3.1)
    assert np.array_equal(frames, slow_clip(path, "1.3", "3.1"))
    assert 1.3 <= info.start < 3.1  # in the video's time


FORMS = {
    "no b-frames": ("a.mp4", "libx264", x264(bframes=0, keyint=20)),
    "one b-frame": ("a.mkv", "libx264", x264(bframes=1, keyint=15)),
    "no pyramid": ("a.mp4", "libx264", x264(bframes=3, b_pyramid="none", keyint=15)),
    "pyramid": ("a.mp4", "libx264", x264(bframes=3, b_pyramid="normal", keyint=15)),
    "one group": ("a.mov", "libx264", x264(bframes=3, keyint=250)),
    "open groups": ("a.mkv", "libx264", x264(bframes=3, keyint=15, open_gop=1)),
    "intra refresh": ("a.mp4", "libx264", x264(bframes=2, keyint=15, intra_refresh=1)),
    "parameter sets inside": ("a.mkv", "libx264", x264(bframes=3, keyint=15, repeat_headers=1, aud=1, slices=3)),
    "interlaced": ("a.mp4", "libx264", x264(bframes=2, keyint=15, tff=1)),
    "hevc": ("a.mp4", "libx265", {"x265-params": "keyint=15:bframes=4:open-gop=0:log-level=none:pools=1"}),
    "open hevc": ("a.mkv", "libx265", {"x265-params": "keyint=15:bframes=4:open-gop=1:log-level=none:pools=1"}),
    "vp9": ("a.webm", "libvpx-vp9", {"g": "15", "lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "8"}),
    "vp8": ("a.webm", "libvpx", {"g": "15", "lag-in-frames": "10", "auto-alt-ref": "1"}),
    "av1": ("a.mp4", "libsvtav1", {"g": "15", "preset": "12"}),
    "mjpeg": ("a.mov", "mjpeg", {}),
}


@pytest.mark.parametrize("times", [steady(), unsteady(first=700)], ids=["steady", "unsteady"])
@pytest.mark.parametrize("name", FORMS)
def test_frames_are_those_of_a_full_decode(tmp_path: Path, name: str, times: list[int]) -> None:
    file, codec, options = FORMS[name]
    size = (64, 64) if name == "av1" else (66, 52)
    form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with ThreadPoolExecutor(1) as thread:  # SVT-AV1 gives the thread that calls it, if it is root's, real-time priority
        path = thread.submit(encode, tmp_path / file, codec, options, times, size, form).result()
    assert_as_slow(path)


@pytest.mark.parametrize(
    ("file", "codec", "options"), [("a.mp4", "mpeg4", {"bf": "2", "g": "12"}), ("a.avi", "mpeg4", {"bf": "2"})]
)
def test_old_codecs(tmp_path: Path, file: str, codec: str, options: dict[str, str]) -> None:
    path = encode(tmp_path / file, codec, options, list(range(COUNT)), time_base=Fraction(1, 25))
    assert_as_slow(path)


def test_h264_in_avi_has_its_frames_in_their_order(tmp_path: Path) -> None:
    """AVI tells no times of presentation; what ffmpeg makes up of B-frames runs backwards."""
    times = list(range(COUNT))
    avi = encode(tmp_path / "a.avi", times=times, time_base=Fraction(1, 25))
    mp4 = encode(tmp_path / "a.mp4", times=times, time_base=Fraction(1, 25))
    assert np.array_equal(read(avi)[1], read(mp4)[1])


def test_fragments_and_live_files(tmp_path: Path) -> None:
    for file, options in [("a.mp4", {"movflags": "frag_keyframe+empty_moov"}), ("b.mkv", {"live": "1"})]:
        assert_as_slow(encode(tmp_path / file, container=options))


def test_a_gap_is_filled_with_the_frame_before_it(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", times=[0, 40, 2001, 2040])
    info, frames = read(path)
    expected = slow_clip(path)
    assert info.total == 9
    assert all(np.array_equal(frame, frames[1]) for frame in frames[1:8])
    assert np.array_equal(frames, expected)


@pytest.mark.parametrize(("size", "form"), [((65, 49), "yuv444p"), ((49, 67), "yuv444p"), ((64, 48), "yuv420p10le")])
def test_odd_sizes_and_deep_colours(tmp_path: Path, size: tuple[int, int], form: str) -> None:
    path = encode(tmp_path / "a.mp4", size=size, form=form)
    assert np.array_equal(read(path)[1], slow_clip(path))


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("size", [(64, 48), (48, 66)])
def test_turned(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    (a, b, c, d), turn = MATRICES[name]
    one = 1 << 16
    matrix = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30]
    path = encode(tmp_path / "a.mov", times=steady(20), size=size, prepare=lambda s: s.set_display_matrix(matrix))
    plain = encode(tmp_path / "b.mov", times=steady(20), size=size)
    info, frames = read(path, size=48)
    assert (info.width, info.height) == (size if a else size[::-1])
    expected = [turn(square) for square in slow_clip(plain, size=48)]
    difference = np.abs(frames.astype(int) - np.stack(expected))
    # The shorter side fills the square; an odd rest on the longer one is cut on the other side after a turn.
    assert difference.max() == 0 if (max(size) - 48) % 2 == 0 else difference.mean() < 16


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    def shape(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(3, 4)

    path = encode(tmp_path / "a.mp4", prepare=shape, times=steady(20))
    info, frames = read(path, size=48)
    assert (info.width, info.height) == (48, 48)
    assert np.array_equal(frames, slow_clip(path, size=48))
    frame = decode_all(path)[0][0][1]
    assert np.array_equal(frames[0], frame.reformat(48, 48, "rgb24", interpolation=EXACT).to_ndarray())


def test_alpha_is_on_white(tmp_path: Path) -> None:
    def glass(i: int, width: int, height: int) -> np.ndarray:
        picture = np.zeros((height, width, 4), np.uint8)
        picture[..., 0], picture[:, : width // 2, 3] = 200, 128
        return picture

    path = encode(tmp_path / "a.mkv", "ffv1", {}, steady(5), (64, 64), "bgra", glass)
    _, frames = read(path, size=64)
    assert np.all(frames[0][:, 40:] == 255)
    assert frames[0][0, 0].tolist() == [227, 127, 127]  # (200 * 128 + 255 * 127) / 255, (255 * 127) / 255


def test_colours_are_right(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "a.mp4",
        options=x264(qp=1),
        times=steady(3),
        picture=lambda i, w, h: np.full((h, w, 3), (200, 60, 20), np.uint8),
    )
    assert np.abs(read(path)[1][0].astype(int) - (200, 60, 20)).max() <= 3


def test_threads_and_calls_change_nothing(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4")
    first = read(path, threads=1)
    for threads in (1, 2, 5):
        info, frames = read(path, threads=threads)
        assert info == first[0] and np.array_equal(frames, first[1])


def decoded_packets(monkeypatch: pytest.MonkeyPatch, path: Path, **limits: Any) -> tuple[int, np.ndarray]:
    """Count the packets that reach the decoder."""
    fed = []

    def planned(packets, wanted, plan=clip_stream.plan_feeding):
        steps = plan(packets, wanted)
        fed.append(int((steps > 0).sum()))
        return steps

    monkeypatch.setattr(clip_stream, "plan_feeding", planned)
    _, frames = read(path, **limits)
    return fed[0], frames


def test_little_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = steady(400)
    path = encode(tmp_path / "a.mp4", options=x264(bframes=3, b_pyramid="none", keyint=25), times=times)
    everything, _ = decoded_packets(monkeypatch, path)
    assert everything < 0.45 * 400  # a quarter is referred to, and a sixth is wanted
    window, frames = decoded_packets(monkeypatch, path, budget=4, draw=0.9)
    assert window < 35
    assert np.array_equal(frames, slow_clip(path)[int(0.9 * 61) :][:4])


def test_frames_are_freed(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4")
    gc.collect()
    gc.disable()
    try:
        _, batches = read_clip(str(path), ClipLimits(size=SIZE, budget=ALL, threads=1))
        most = max(sum(type(o) is VideoFrame for o in gc.get_objects()) for _ in batches)
    finally:
        gc.enable()
    assert most < 6


# Filters


def reason(path: Path, **limits: Any) -> tuple[str, str, str]:
    with pytest.raises(Unfit) as caught:
        read(path, **limits)
    return caught.value.status, caught.value.reason, caught.value.detail


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"min_side": 49}, "dropped: below min_side"),
        ({"max_aspect": 1.33}, "dropped: above max_aspect"),
        ({"min_seconds": 4.01}, "dropped: below min_seconds"),
        ({"max_seconds": 3.99}, "dropped: above max_seconds"),
        ({"min_frames": 17}, "dropped: below min_frames"),
        ({"pixels": 64 * 48 - 1}, "failed: too many pixels"),
        ({"packets": COUNT - 1}, "failed: too many frames"),
    ],
)
def test_filters(tmp_path: Path, limits: dict[str, Any], expected: str) -> None:
    path = encode(tmp_path / "a.mp4")
    status, found, detail = reason(path, **limits)
    assert f"{status}: {found}" == expected
    assert detail
    ((key, value),) = limits.items()
    read(path, **{key: value + (0.01 if key in ("max_aspect", "max_seconds") else -1 if key.startswith("min") else 1)})


def test_a_part_outside_the_video(tmp_path: Path) -> None:
    assert reason(encode(tmp_path / "a.mp4"), start=50.0)[:2] == ("failed", "no frames")


def test_a_clip_that_ends_behind_its_video_is_no_shorter_clip_in_silence(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4")
    whole, _ = read(path, start=1.0)
    assert read(path, start=1.0, end=whole.seconds + 1.4)[0].total == whole.total  # times are rounded
    expected = ("failed", "bad times", f"the clip ends at 9 s and the video at {whole.seconds + 1:.2f} s")
    assert reason(path, start=1.0, end=9.0) == expected


# Damage


def damaged(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("a.mp4", {"movflags": "faststart"}),
        ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.mkv", {"live": "1"}),
        ("a.avi", {}),
    ],
)
def test_a_file_that_is_cut_off_never_gives_a_shorter_clip(tmp_path: Path, file: str, options: dict[str, str]) -> None:
    times = list(range(30))
    path = encode(tmp_path / file, times=times, container=options, time_base=Fraction(1, 25))
    data, whole = path.read_bytes(), len(read(path)[1])
    for cut in [*range(1, 60, 9), *range(60, len(data), 997)]:
        path.write_bytes(data[:-cut])
        try:
            assert len(read(path)[1]) == whole  # all there but the index
            assert file == "a.avi" or cut < 200
        except Unfit as unfit:
            assert unfit.status == "failed"
            assert unfit.reason in ("cut off", "damaged", "not a video")


def test_a_cut_says_where(tmp_path: Path) -> None:
    path = damaged(encode(tmp_path / "a.mkv"), lambda data: data[: len(data) // 2])
    status, found, detail = reason(path)
    assert (status, found) == ("failed", "cut off")
    seconds = float(detail.split()[1])
    assert 1 < seconds < 3 and "bytes are missing" in detail


def overwritten(path: Path, number: int) -> Path:
    """Put noise over the second half of one packet, in the order of decoding."""
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][number]
        at, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[at + size // 4 : at + size] = bytes(size - size // 4)
    path.write_bytes(data)
    return path


def test_damage_half_way_says_where(tmp_path: Path) -> None:
    """The frames before it come, then the failure: never an end."""
    path = overwritten(encode(tmp_path / "a.mp4", options=x264(bframes=0, keyint=250)), 55)
    info, batches = read_clip(str(path), ClipLimits(size=SIZE, budget=ALL, threads=1))
    got = []
    with pytest.raises(Unfit) as caught:
        got.extend(batches)
    assert info.total == 16
    assert sum(map(len, got)) == clips.BATCH  # 2.2 s in: frames 0 to 8 are sound, and come in whole batches
    assert caught.value.status == "failed" and caught.value.reason == "damaged"
    assert caught.value.detail.startswith("at 2.25 s, frame 10 of 16: ")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("number", [0, 30, 99])
def test_damage_anywhere_is_a_failure(tmp_path: Path, number: int, threads: int) -> None:
    path = overwritten(encode(tmp_path / "a.mp4", options=x264(bframes=0, keyint=25)), number)
    assert reason(path, threads=threads)[0] == "failed" if number < 99 else read(path)


def test_an_odd_tail_does_not_fail(tmp_path: Path) -> None:
    for file in ("a.mp4", "a.mkv", "a.avi"):
        path = encode(tmp_path / file, times=list(range(30)), time_base=Fraction(1, 25))
        expected = read(path)[1]
        damaged(path, lambda data: data + b"\0" * 1000 + os.urandom(999))
        assert np.array_equal(read(path)[1], expected)


# Files that are no clips, or try to be more


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def sound(path: Path, cover: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=8000)
        if cover:
            picture = container.add_stream("mjpeg")
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(audio.encode(frame) + audio.encode())
        if cover:
            still = VideoFrame(64, 64, "yuvj420p")
            still.pts = 0
            container.mux(picture.encode(still) + picture.encode())
    return path


def test_sound_and_covers_are_no_video(tmp_path: Path) -> None:
    assert reason(sound(tmp_path / "a.mp4"))[:2] == ("failed", "no video stream")
    assert reason(sound(tmp_path / "b.mp4", cover=True))[:2] == ("failed", "no video stream")


def test_no_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", container={"movflags": "frag_keyframe+empty_moov"})
    data = path.read_bytes()
    status, found, _ = reason(write(path, data[: data.index(b"moof") - 4]))
    assert status == "failed" and found in ("no frames", "damaged")


def test_one_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", times=[0])
    info, frames = read(path)
    assert (info.total, info.seconds, len(frames)) == (1, 0.0, 1)
    assert reason(path, min_frames=2)[:2] == ("dropped", "below min_frames")


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, b"RIFF", bytes(range(256)) * 20, b"GIF89a" + bytes(100)])
def test_no_video_at_all(tmp_path: Path, data: bytes) -> None:
    assert reason(write(tmp_path / "a.mp4", data))[:2] == ("failed", "not a video")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a.mp4")


def test_nothing_else_is_ever_opened(tmp_path: Path) -> None:
    """Playlists and scripts that point to a secret and to a server, under the name of a clip."""
    secret = encode(tmp_path / "secret.mp4")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for data in (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile {secret}\n",
            f"ffconcat version 1.0\nfile {url}\n",
            f'<?xml version="1.0"?><MPD type="static"><Period><BaseURL>{url}</BaseURL></Period></MPD>',
        ):
            assert reason(write(tmp_path / "a.mp4", data.encode()))[:2] == ("failed", "not a video")
        for name in (url, f"concat:{secret}", f"subfile,,start,0,end,99999,,:{secret}"):
            with pytest.raises(FileNotFoundError):
                read_clip(name, ClipLimits())
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_small_header_on_large_frames_decodes_none(tmp_path: Path) -> None:
    """The container says 64 x 48, the frames are larger than allowed."""
    path = encode(tmp_path / "a.mp4", size=(640, 480), times=steady(5))
    small = (64).to_bytes(2, "big") + (48).to_bytes(2, "big")
    lied = damaged(path, lambda data: data.replace((640).to_bytes(2, "big") + (480).to_bytes(2, "big"), small))
    assert reason(lied, pixels=64 * 48)[0] in ("failed", "dropped")


def test_a_clip_that_is_much_too_narrow(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", "ffv1", {}, steady(2), (2000, 20))
    assert reason(path)[:2] == ("failed", "too narrow")


def test_ffmpeg_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = overwritten(encode(tmp_path / "a.mp4"), 0)
    capfd.readouterr()
    reason(path)
    assert capfd.readouterr() == ("", "")


# Real clips


@pytest.mark.parametrize("name", ["bottles.mp4", "cars.mp4", "nasa.mp4", "pancake.mkv", "vid2.mp4"])
def test_real_clips(real_data: Path, name: str) -> None:
    path = real_data / "videos" / name
    times = [time for time, _ in decode_all(path)[0]]
    info, frames = read(path, size=256)
    assert info.total == len(frames) == int(4 * (times[-1] - times[0])) + 1
    if name != "bottles.mp4":  # the slow way is slow
        assert np.array_equal(frames, slow_clip(path, size=256))


def test_the_broken_real_clip(real_data: Path) -> None:
    status, found, detail = reason(real_data / "videos" / "corrupted.mp4")
    assert (status, found) == ("failed", "damaged")
    assert detail.startswith("at 3.00 s, frame 13 of 20: ")
