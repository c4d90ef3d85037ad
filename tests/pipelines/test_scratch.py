"""Temporary files: gone with their unit, and those of a killed process with the next unit."""

import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from worldloom.packing.report import REJECTS, SHARDS, UNITS
from worldloom.pipelines.scratch import PREFIX, scratch
from worldloom.pipelines.tokenize import TokenizeJob
from worldloom.pipelines.toy.files import write_clips
from worldloom.recipe import Recipe
from worldloom.tokenizers.codebook import Codebook

HOLD = "from worldloom.pipelines.scratch import scratch\nwith scratch() as folder: print(folder, flush=True); input()"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def age(folder: Path) -> None:
    os.utime(folder, (0, 0))


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_nothing_is_left(place: Path, error: type[BaseException] | None) -> None:
    with pytest.raises(error or ZeroDivisionError), scratch() as folder:
        (folder / "a").write_bytes(b"a")
        assert folder.parent == place
        raise (error or ZeroDivisionError)
    assert not list(place.iterdir())


def test_what_a_killed_process_left_is_removed_and_nothing_else(place: Path) -> None:
    (place / "worldloom-other").mkdir()
    (place / f"{PREFIX}new").mkdir()  # one that is being made has no lock yet
    holders = [subprocess.Popen([sys.executable, "-c", HOLD], stdin=-1, stdout=-1, text=True) for _ in range(2)]
    living, killed = (Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout)
    for folder in (living, killed):
        (folder / "clip.mp4").write_bytes(b"x")
        age(folder)
    holders[1].send_signal(signal.SIGKILL)
    holders[1].communicate()
    with scratch() as folder:
        assert {p.name for p in place.iterdir()} == {"worldloom-other", f"{PREFIX}new", living.name, folder.name}
        assert (living / "clip.mp4").exists()
    holders[0].communicate("\n")
    assert not living.exists()


def test_a_unit_that_fails_leaves_no_clip(place: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips wait for the tokenizer, which breaks at its first batch."""
    made = place / "made"
    write_clips(made / "clips", 6, 1)
    with tarfile.open(made / "clips.tar", "w") as archive:
        for path in sorted((made / "clips").rglob("*.mp4")):
            archive.add(path, path.name)
            archive.add(path.with_suffix(".txt"), path.with_suffix(".txt").name)
    codebook = np.zeros((1, 16, 16, 3), np.uint8)
    Codebook(codebook).save(str(made / "codebook.npz"))
    recipe = Recipe.model_validate(
        {
            "vocabulary": {
                "text": str(small_model),
                "vision": {"kind": "codebook", "path": str(made / "codebook.npz")},
            },
            "sources": [{"name": "s", "kind": "video-text", "path": str(made / "clips.tar")}],
        }
    )
    job = TokenizeJob(recipe, str(made / "out"))
    job.folder.make(UNITS, SHARDS, REJECTS)
    (unit,) = job.units("s")

    def broken(*_: object) -> None:
        assert len(list(place.glob(f"{PREFIX}*/*.mp4"))) > 1
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Codebook, "encode", broken)
    monkeypatch.setattr("worldloom.pipelines.encoding.BATCH", 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        job.run(unit)
    assert list(place.iterdir()) == [made]
