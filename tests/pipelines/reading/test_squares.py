"""Squares for a codebook: every picture and clip that paths name, in order, the bad ones noted."""

from pathlib import Path

import numpy as np
import pytest
from worldloom.errors import UserError

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
from worldloom.pipelines.reading.squares import squares  # noqa: E402


def grey(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 10), level).save(path)


def levels(paths: list[str], unread: list[str] | None = None) -> list[int]:
    found = list(squares(paths, 8, [] if unread is None else unread))
    assert all(frame.shape == (8, 8, 3) and frame.dtype == np.uint8 for frame in found)
    return [int(frame[0, 0, 0]) for frame in found]


def test_files_folders_and_globs_are_read_in_order(tmp_path: Path) -> None:
    for name, level in {"b [1]/2.png": 2, "b [1]/deep/1.PNG": 1, "a/3.bmp": 3, "a/4.png": 4}.items():
        grey(tmp_path / name, level)
    (tmp_path / "a/notes.txt").write_text("no picture")
    assert levels([str(tmp_path / "b [1]"), str(tmp_path / "a")]) == [2, 1, 3, 4]
    assert levels([str(tmp_path / "*" / "*.png")]) == [4, 2]
    assert levels([str(tmp_path / "a/3.bmp")]) == [3]


def test_what_cannot_be_read_is_noted(tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 7)
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "c.png").mkdir()
    (tmp_path / "d.mp4").write_bytes(b"no clip")
    unread: list[str] = []
    assert levels([str(tmp_path)], unread) == [7]
    assert [line.split(": ")[0] for line in unread] == [str(tmp_path / "b.png"), str(tmp_path / "d.mp4")]
    assert "unknown format" in unread[0]


@pytest.mark.parametrize("path", ["none", "*.png", "."])
def test_a_path_without_pictures_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"names no picture or clip .*: mend the path"):
        levels([str(tmp_path / path)])
