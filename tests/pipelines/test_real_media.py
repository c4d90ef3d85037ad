"""Real pictures and clips through the job: the damaged ones are rejects, and each other one is there, by frames."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from worldloom.cli import main
from worldloom.packing.dataset import open_dataset
from worldloom.packing.report import Reject, read_rejects, read_report
from worldloom.packing.row import row_examples
from worldloom.packing.storage import Folder
from worldloom.packing.verify import verify
from worldloom.tokenizers.codebook import Codebook

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
FRAME = 257


def build(real_data: Path, out: Path, small_model: Path, kind: str, filters: dict[str, Any]) -> list[Reject]:
    """Build the pairs of one kind, and return the rejects but for the files of the other kind."""
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 1, 1, 3)
    Codebook(np.broadcast_to(colours, (216, 16, 16, 3)).copy()).save(str(out / "c.npz"))
    recipe = {
        "vocabulary": {"text": str(small_model), "vision": {"kind": "codebook", "path": "c.npz"}},
        "sources": [{"name": "s", "kind": kind, "path": str(real_data / "captions.tsv"), "filters": filters}],
        "limits": {"failed": 1},
    }
    if kind == "video-text":
        recipe["sources"][0]["frames"] = 450
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["build", str(out / "recipe.yaml"), "--out", str(out / "data")]) == 0
    assert verify(str(out / "data")) == []
    folder = Folder(str(out / "data" / "examples"))
    report = read_report(folder, "s-0000000")
    assert report
    return [r for r in read_rejects(folder, report) if r.reason not in ("not a picture", "not a clip")]


def told(out: Path, real_data: Path) -> dict[str, Any]:
    """Return by file what a kept record's span of pictures says, with its codes, `[frames, 256]`."""
    names = dict(line.split("\t")[::-1] for line in (real_data / "captions.tsv").read_text().splitlines())
    data = open_dataset(str(out / "data" / "examples"))
    found = {}
    for row in range(data.rows):
        (example,) = row_examples(data.row(row))
        spans = {span.kind: span for span in example.spans}
        place = spans.get("image") or spans["video"]
        frames = example.tokens[place.start : place.end].reshape(-1, FRAME)[:, :-1].astype(int) - 400
        lines = (real_data / "captions.tsv").read_bytes()
        record = lines[int(example.record.rpartition("@")[2]) :].split(b"\t")[0].decode()
        found[record] = {**json.loads(place.ref), "codes": frames}
    assert set(found) <= set(names.values())
    return found


@pytest.mark.parametrize(("filters", "small"), [({}, []), ({"min_side": 256}, ["images/palette_color.png"])])
def test_pictures(
    real_data: Path, tmp_path: Path, small_model: Path, filters: dict[str, Any], small: list[str]
) -> None:
    rejects = build(real_data, tmp_path, small_model, "image-text", filters)
    assert [(r.status, r.reason) for r in rejects if r.status == "failed"] == [("failed", "damaged")]
    assert "Corrupt JPEG data" in next(r.error for r in rejects if r.status == "failed")
    assert [r.reason for r in rejects if r.status == "dropped"] == ["below min_side"] * len(small)
    found = told(tmp_path, real_data)
    every = {f"images/{path.name}" for path in (real_data / "images").iterdir()}
    assert set(found) == every - {"images/corrupted.jpg", *small}
    for name, span in found.items():
        with Image.open(real_data / name) as picture:
            assert {picture.width, picture.height} == {span["width"], span["height"]}
        assert span["codes"].shape == (1, 256)


def presentation_times(path: Path) -> list[Fraction]:
    """Decode all of a clip's first video stream."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return sorted(frame.pts * stream.time_base for frame in container.decode(stream))


@pytest.mark.parametrize("filters", [{}, {"min_side": 256}])
def test_clips(real_data: Path, tmp_path: Path, small_model: Path, filters: dict[str, Any]) -> None:
    rejects = build(real_data, tmp_path, small_model, "video-text", filters)
    (broken,) = (r for r in rejects if r.status == "failed")
    assert broken.reason == "damaged" and "frame 13 of 20" in broken.error
    found, small = told(tmp_path, real_data), 0
    for path in sorted((real_data / "videos").iterdir()):
        if path.name == "corrupted.mp4":
            continue
        times = presentation_times(path)
        with av.open(str(path)) as container:
            side = min(container.streams.video[0].width, container.streams.video[0].height)
        if filters and side < 256:
            small += 1
            assert f"videos/{path.name}" not in found
            continue
        span = found.pop(f"videos/{path.name}")
        total = int(4 * (times[-1] - times[0])) + 1
        assert (span["of"], span["frames"], len(span["codes"])) == (total, min(450, total), min(450, total))
    assert not found
    assert [r.reason for r in rejects if r.status == "dropped"] == ["below min_side"] * small
    assert bool(small) == bool(filters)
