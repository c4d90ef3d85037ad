"""What the headers of NAL units say, by hand from the standards' tables, and of what real encoders write."""

from pathlib import Path

import numpy as np
import pytest
from worldloom.pipelines.decoding.nal_units import CLEAN, SETS, SPARE, h264_role, hevc_role, length_size

av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")


def measured(*units: bytes, size: int = 4) -> memoryview:
    return memoryview(b"".join(len(u).to_bytes(size, "big") + u for u in units))


def parted(*units: bytes) -> memoryview:
    return memoryview(b"".join(b"\0\0\0\1" + u for u in units))


def h264(kind: int, referred: int) -> bytes:
    return bytes([referred << 5 | kind]) + b"abc\x01"


def hevc(kind: int) -> bytes:
    return bytes([kind << 1, 1]) + b"abc"


@pytest.mark.parametrize("packet", [measured, parted])
@pytest.mark.parametrize(
    ("units", "role"),
    [
        ([h264(5, 3)], CLEAN),
        ([h264(9, 0), h264(6, 0), h264(5, 1)], CLEAN),
        ([h264(7, 3), h264(8, 3), h264(5, 3)], CLEAN | SETS),
        ([h264(1, 2)], 0),
        ([h264(1, 0)], SPARE),
        ([h264(6, 0), h264(1, 0), h264(1, 0)], SPARE),
        ([h264(1, 0), h264(1, 1)], 0),  # two fields, one of them referred to
        ([h264(8, 3), h264(1, 0)], SETS),  # a parameter set that later packets may need
        ([h264(8, 3)], SETS),
        ([h264(2, 0), h264(3, 0)], 0),  # data partitions
        ([h264(14, 0), h264(1, 0)], 0),  # a prefix: left to the decoder
        ([h264(6, 0)], 0),
        ([], 0),
    ],
)
def test_h264(packet, units, role):
    assert h264_role(packet(*units), 4 if packet is measured else 0) == role


@pytest.mark.parametrize("packet", [measured, parted])
@pytest.mark.parametrize(
    ("units", "role"),
    [
        ([hevc(19)], CLEAN),
        ([hevc(21)], CLEAN),
        ([hevc(16)], CLEAN),
        ([hevc(22)], 0),
        ([hevc(1)], 0),
        ([hevc(0)], 0),
        ([hevc(9)], 0),
        ([hevc(32), hevc(33), hevc(34), hevc(39), hevc(20)], CLEAN | SETS),
    ],
)
def test_hevc(packet, units, role):
    assert hevc_role(packet(*units), 4 if packet is measured else 0) == role


@pytest.mark.parametrize("size", [1, 2, 4])
def test_lengths_of_each_size(size):
    assert h264_role(measured(h264(6, 0), h264(1, 0), size=size), size) == SPARE


def test_units_longer_than_their_packet_make_nothing_spare():
    whole = measured(h264(1, 0), h264(1, 0))
    for cut in range(len(whole) - 1):
        assert h264_role(whole[:cut], 4) in ({0, SPARE} if cut in range(9, 14) else {0})
    assert hevc_role(measured(hevc(19))[:-1], 4) == 0
    assert h264_role(memoryview(b"\0\0\0\0" * 4), 4) == 0


def test_length_sizes():
    assert length_size("h264", b"\x01\x64\x00\x1e\xff\xe1") == 4
    assert length_size("h264", b"\x01\x64\x00\x1e\xfd") == 2
    assert length_size("h264", b"\0\0\0\1\x67") == length_size("h264", None) == length_size("h264", b"\1") == 0
    assert length_size("hevc", b"\x01" + bytes(20) + b"\xff") == 4


@pytest.mark.parametrize(("pyramid", "frames"), [("none", 3), ("normal", 3), ("none", 0)])
def test_what_x264_writes(tmp_path: Path, pyramid: str, frames: int) -> None:
    """Without a pyramid all B-frames are spare; with one, those in the middle are not."""
    path = str(tmp_path / "clip.mp4")
    with av.open(path, "w") as container:
        extra = f"b-pyramid={pyramid}:threads=1:scenecut=0:b-adapt=0:weightp=0"
        stream = container.add_stream("libx264", rate=25, options={"bf": str(frames), "g": "20", "x264-params": extra})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(60):
            picture = np.full((48, 64, 3), 4 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    with av.open(path) as container:
        stream = container.streams.video[0]
        size = length_size("h264", stream.codec_context.extradata)
        packets = [p for p in container.demux(stream) if p.size]
        roles = {p.pts: h264_role(memoryview(p), size) for p in packets}
        keys = {p.pts for p in packets if p.is_keyframe}
    with av.open(path) as container:
        kinds = {frame.pts: frame.pict_type for frame in container.decode(video=0)}
    between = {pts for pts, kind in kinds.items() if kind == 3}
    spare = {pts for pts, role in roles.items() if role & SPARE}
    assert {pts for pts, role in roles.items() if role & CLEAN} == keys
    assert spare == between if pyramid == "none" else spare < between and spare
    assert bool(spare) == bool(frames)
