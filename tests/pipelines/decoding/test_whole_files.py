"""Files that end too early, by hand from the formats' descriptions."""

from pathlib import Path

import pytest
from worldloom.pipelines.decoding.whole_files import find_break


def box(kind: bytes, body: bytes, size: int | None = None) -> bytes:
    return (8 + len(body) if size is None else size).to_bytes(4, "big") + kind + body


def large_box(kind: bytes, body: bytes) -> bytes:
    return (1).to_bytes(4, "big") + kind + (16 + len(body)).to_bytes(8, "big") + body


def element(name: int, body: bytes, size: int | None = None) -> bytes:
    """An EBML element with a size of 8 bytes; size -1 is the unknown one."""
    stated = (1 << 56) - 1 if size == -1 else len(body) if size is None else size
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + (1 << 56 | stated).to_bytes(8, "big") + body


def chunk(kind: bytes, body: bytes, size: int | None = None) -> bytes:
    return kind + (len(body) if size is None else size).to_bytes(4, "little") + body + b"\0" * (len(body) % 2)


BODY = b"\2"  # no header has two of these bytes
HEAD = element(0x1A45DFA3, b"webm")
BLOCKS = [element(0xE7, b"\1"), element(0xA3, BODY * 50), element(0xA0, BODY * 60)]
CLUSTER = element(0x1F43B675, b"".join(BLOCKS))
OPEN_CLUSTER = element(0x1F43B675, b"".join(BLOCKS), -1)
MOVIE = chunk(b"LIST", b"movi" + chunk(b"00dc", BODY * 102) + chunk(b"01wb", BODY * 10))
FILES = {
    "mp4": box(b"ftyp", b"isom") + box(b"moov", bytes(100)) + box(b"free", b"") + box(b"mdat", bytes(200)),
    "large mp4": box(b"ftyp", b"isom") + large_box(b"mdat", bytes(300)) + box(b"moov", bytes(100)),
    "fragments": box(b"ftyp", b"iso5") + (box(b"moof", bytes(30)) + box(b"mdat", bytes(90))) * 3,
    "matroska": HEAD + element(0x18538067, element(0x1549A966, b"info") + CLUSTER * 2),
    "live matroska": HEAD + element(0x18538067, element(0x1549A966, b"info") + CLUSTER * 2, -1),
    "endless clusters": HEAD + element(0x18538067, OPEN_CLUSTER * 2, -1),
    "avi": chunk(b"RIFF", b"AVI " + chunk(b"LIST", b"hdrl" + bytes(70)) + MOVIE),
    "long avi": chunk(b"RIFF", b"AVI " + MOVIE) + chunk(b"RIFF", b"AVIX" + MOVIE),
}


@pytest.fixture(params=FILES)
def name(request) -> str:
    return request.param


def missing(path: Path, data: bytes) -> int:
    """Return the bytes that are found missing, 0 for a whole file, -1 for damage."""
    path.write_bytes(data)
    found = find_break(str(path))
    if found is None:
        return 0
    return -1 if found.reason == "damaged" else int(found.detail.split()[0])


def test_whole(tmp_path, name):
    assert missing(tmp_path / "x", FILES[name]) == 0


@pytest.mark.parametrize("tail", [bytes(40), b"\xff" * 40, b"<html>a proxy was here</html>", b"PK\x03\x04" * 9])
def test_an_odd_tail_is_no_harm(tmp_path, name, tail):
    assert missing(tmp_path / "x", FILES[name] + tail) == 0


@pytest.mark.parametrize("cut", [1, 7, 33])
def test_cut_inside_the_last_part(tmp_path, name, cut):
    assert missing(tmp_path / "x", FILES[name][:-cut]) == (cut if "avi" not in name else pytest.approx(cut, abs=1))


def test_cut_between_two_samples(tmp_path):
    """The index tells of 200 bytes and 100 are there: no demuxer need read one that is only half there."""
    assert missing(tmp_path / "x", FILES["mp4"][:-100]) == 100


@pytest.mark.parametrize(
    ("name", "noise"), [("matroska", b"\0"), ("matroska", b"\xff"), ("avi", b"\xff"), ("avi", b"\x11")]
)
def test_a_hole_is_found(tmp_path, name, noise):
    """Wherever it begins, with noise that makes no header: inside one block it is the decoder's to find."""
    data = FILES[name]
    for at in range(data.index(b"movi" if name == "avi" else CLUSTER[:4]) + 4, len(data) - 60):
        found = missing(tmp_path / "x", data[:at] + noise * 60 + data[at + 60 :])
        assert bool(found) == (data[at : at + 60] != BODY * 60), at


def test_unknown_sizes(tmp_path):
    assert missing(tmp_path / "x", box(b"ftyp", b"isom") + box(b"mdat", bytes(50), 0)) == 0
    body = b"AVI LIST" + bytes(4) + b"movi" + chunk(b"00dc", bytes(100))
    assert missing(tmp_path / "x", chunk(b"RIFF", body, 0)) == 0
    cut = chunk(b"RIFF", body[:-10], 0)
    assert missing(tmp_path / "x", cut) == 10


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"RIFF",
        bytes(1000),
        b"\xff" * 1000,
        b"just some words that are no video at all",
        HEAD,
        HEAD + b"\x18\x53\x80\x67",
        box(b"ftyp", b"", 8) * 5,
        box(b"free", b"", 2**32 - 1),
        (1).to_bytes(4, "big") + b"free" + b"\xff" * 8,
        element(0x18538067, b"", -1) * 50,
    ],
)
def test_others_are_let_pass_and_nothing_hangs(tmp_path, data):
    assert missing(tmp_path / "x", data) == 0


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        find_break(str(tmp_path / "none.mp4"))
