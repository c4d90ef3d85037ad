"""A clip of 4,000 frames, tokenized once, serves sequences of 32K, 128K and 1M tokens."""

import json
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
