"""A clip of 4,000 frames, tokenized once, serves sequences of 32K, 128K and 1M tokens."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from worldloom.cli import main
from worldloom.packing.dataset import open_dataset
from worldloom.packing.report import UNITS
from worldloom.packing.row import row_examples
from worldloom.tokenizers.codebook import Codebook
from worldloom.tokenizers.text import load

av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
FRAMES, FRAME = 4000, 257
LENGTHS = {"32k": 2**15, "128k": 2**17, "1m": 2**20}
CAPTION = "a fox walks for a thousand seconds"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A clip whose frame k has the grey of k in two of its 256 patches, its base-16 digits; 4 a second."""
    folder = tmp_path_factory.mktemp("long")
    with av.open(str(folder / "long.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"qp": "4", "preset": "ultrafast"})
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        for k in range(FRAMES):
            pixels = np.zeros((256, 256, 3), np.uint8)
            for place, digit in enumerate((k % 16, k // 16 % 16, k // 256)):
                pixels[:16, 16 * place : 16 * place + 16] = 17 * digit
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    (folder / "long.txt").write_text(CAPTION)
    greys = (17 * np.arange(16)).astype(np.uint8)
    Codebook(np.broadcast_to(greys[:, None, None, None], (16, 16, 16, 3)).copy(), 256).save(str(folder / "c.npz"))
    recipe = {
        "vocabulary": {"text": str(small_model), "vision": {"kind": "codebook", "path": "c.npz"}},
        "sources": [{"name": "s", "kind": "video-text", "path": "long.mp4", "frames": FRAMES, "sampling": "uniform"}],
        "pack": [{"name": name, "length": n, "frames": "fit"} for name, n in LENGTHS.items()],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["build", str(folder / "recipe.yaml"), "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.mark.parametrize("name", LENGTHS)
def test_first_and_last_frame_are_kept_and_the_text_is_whole(built: Path, small_model: Path, name: str) -> None:
    dataset = open_dataset(str(built / f"packed-{name}"))
    (example,) = row_examples(dataset.row(0))
    text = load(str(small_model))
    other = 2 + len(text.encode(CAPTION)) + len(text.encode("<vision>")) + len(text.encode("</vision>"))
    kept = min(FRAMES, (LENGTHS[name] - other) // FRAME)
    assert len(example.tokens) == other + kept * FRAME
    (span,) = [s for s in example.spans if s.kind == "video"]
    frames = example.tokens[span.start : span.end].reshape(kept, FRAME).astype(int) - text.text_size
    numbers = frames[:, 0] + 16 * frames[:, 1] + 256 * frames[:, 2]
    assert numbers.tolist() == [i * (FRAMES - 1) // (kept - 1) for i in range(kept)]
    assert (numbers[0], numbers[-1]) == (0, FRAMES - 1)
    assert frames[:, -1].tolist() == [16] * (kept - 1) + [17]  # eof, and eov at the end
    assert json.loads(span.ref)["frames"] == kept
    (caption,) = [s for s in example.spans if s.kind == "caption"]
    np.testing.assert_array_equal(example.tokens[caption.start : caption.end], text.encode(CAPTION))
    assert example.trained[1:].all() and not example.trained[0]


def test_it_was_tokenized_once(built: Path) -> None:
    assert len(list((built / "examples" / UNITS).iterdir())) == 1


# ---- an hour


SCENES, HOUR, MINUTE = 500, 3600, 60  # seconds
RUN = """
import json, resource, sys
from worldloom.pipelines import pictured
from worldloom.pipelines.decoding.decoders import close_kept
from worldloom.pipelines.records import Media, VideoText
from worldloom.pipelines.scratch import scratch
from worldloom.recipe import Recipe
path, records, budget, sampling, model, codebook = sys.argv[1:]
source = {"name": "s", "kind": "video-text", "path": "p", "frames": int(budget), "sampling": sampling}
vocabulary = {"text": model, "vision": {"kind": "codebook", "path": codebook}}
recipe = Recipe.model_validate({"vocabulary": vocabulary, "sources": [source]})
records = (VideoText(str(i), "w", "a fox", Media(path=path)) for i in range(int(records)))
with scratch() as folder:
    rows = pictured.rows(recipe, recipe.sources[0], records, frozenset(), folder)
    frames = [len(row.tokens) // 257 for row in rows]
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
close_kept()
print(json.dumps([frames, own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of an hour, joined from 500 scenes in each of which a square moves, and its first minute."""
    folder = tmp_path_factory.mktemp("hour")
    for name, seconds in (("hour", HOUR), ("minute", MINUTE)):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast", "bf": "2", "g": "60"})
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for k in range(4 * seconds):
                scene = k * SCENES // (4 * HOUR)
                pixels = np.full((64, 64, 3), np.random.default_rng(scene).integers(0, 256, 3), np.uint8)
                pixels[k % 48 : k % 48 + 16, scene % 48 : scene % 48 + 16] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(stream.encode())
    return folder


@pytest.mark.parametrize(("budget", "sampling"), [(450, "window"), (4000, "uniform")])
def test_an_hour_takes_the_memory_of_a_minute(
    clips: Path, built: Path, small_model: Path, budget: int, sampling: str
) -> None:
    """Three of a minute fill all queues, as one of an hour does."""
    models = (str(small_model), str(built.parent / "c.npz"))
    peaks = {}
    for name, seconds, records in (("minute", MINUTE, 3), ("hour", HOUR, 1)):
        asked = (str(clips / f"{name}.mp4"), str(records), str(budget), sampling)
        done = subprocess.run([sys.executable, "-c", RUN, *asked, *models], capture_output=True, text=True, check=True)
        frames, *peaks[name] = json.loads(done.stdout)
        assert frames == [min(4 * seconds, budget)] * records
    for minute, hour in zip(peaks["minute"], peaks["hour"], strict=True):
        assert hour <= 1.1 * minute, peaks
