"""What a stranger may hand us: each bad file, caption or link is one reject, nothing hangs, the sound ones are kept."""

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from worldloom.cli import main
from worldloom.packing.report import Reject, finished_units, read_rejects, read_report
from worldloom.packing.storage import Folder
from worldloom.tokenizers.codebook import Codebook

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")


def png(number: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def gigapixel() -> bytes:
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def no_frames() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", "mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return out.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes, **more: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in more.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data) if member.isfile() else None)


def rejected(tmp_path: Path, small_model: Path, kind: str, path: str) -> tuple[int, dict[str, Reject]]:
    """Build a source. Returns the number of examples, and the rejects by record."""
    greys = np.arange(0, 256, 17).astype(np.uint8)
    Codebook(np.broadcast_to(greys[:, None, None, None], (16, 16, 16, 3)).copy(), 32).save(str(tmp_path / "c.npz"))
    vocabulary = {"text": str(small_model), "vision": {"kind": "codebook", "path": "c.npz"}}
    source = {"name": "s", "kind": kind, "path": path}
    recipe = {"vocabulary": vocabulary, "sources": [source], "limits": {"failed": 1.0}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["build", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    folder = Folder(str(tmp_path / "out" / "examples"))
    reports = [report for unit in finished_units(folder) if (report := read_report(folder, unit))]
    assert all(report.ledger.balanced for report in reports)
    rejects = {r.record: r for report in reports for r in read_rejects(folder, report)}
    return sum(report.ledger.kept for report in reports), rejects


def test_hostile_tars(tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as archive:
        for name, picture, caption in (
            ("sound", png(), b"a sound one"),
            ("bomb", gigapixel(), b"a bomb"),
            ("talker", png(1), b"a" * 2**20),
            ("../../outside", png(2), b"outside"),
            ("last", png(3), b"a sound one, too"),
        ):
            add(archive, f"{name}.png", picture)
            add(archive, f"{name}.txt", caption)
        add(archive, "link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    (tmp_path / "in" / "nothing.tar").write_bytes(b"PK\5\6" + bytes(18))  # an empty zip
    (tmp_path / "in" / "empty.tar.gz").write_bytes(b"")
    kept, rejects = rejected(tmp_path, small_model, "image-text", "in")
    assert kept == 2
    reasons = {name: reject.reason for name, reject in rejects.items()}
    assert reasons["a.tar/bomb"] == "too many pixels"
    assert "too l" in reasons["a.tar/talker"]
    assert any("outside" in name and reason == "no plain member" for name, reason in reasons.items()), reasons
    assert any("link" in name for name in reasons) and any("nothing.tar" in name for name in reasons)
    assert any("empty.tar" in name for name in reasons)


def test_hostile_links_and_paths_in_a_table(tmp_path: Path, small_model: Path) -> None:
    links = ["http://127.0.0.1/a.png", "http://10.0.0.1/", "http://2130706433/", "http://[::1]/", "file:///etc/passwd"]
    table = "url\tcaption\n" + "".join(f"{link}\tcaption {i}\n" for i, link in enumerate(links))
    (tmp_path / "table.tsv").write_text(table)
    kept, rejects = rejected(tmp_path, small_model, "image-text", "table.tsv")
    assert kept == 0 and len(rejects) == len(links)
    assert {r.reason for r in rejects.values()} == {"private address", "not http or https"}


def test_hostile_clips(tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "in").mkdir()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"
    for name, data in {"no-frames": no_frames(), "playlist": playlist, "noise": bytes(range(256)) * 40}.items():
        (tmp_path / "in" / f"{name}.mp4").write_bytes(data)
        (tmp_path / "in" / f"{name}.txt").write_text("a clip")
    kept, rejects = rejected(tmp_path, small_model, "video-text", "in")
    assert kept == 0 and sorted(rejects) == ["no-frames.mp4", "noise.mp4", "playlist.mp4"]
    assert {r.status for r in rejects.values()} == {"failed"}
    assert all(r.stage == "decode" and r.reason for r in rejects.values())
