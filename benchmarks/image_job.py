"""The whole image job against the slower of its two stages alone: decoding photographs, and encoding their squares."""

import io
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from worldloom.pipelines.captioned import read_part
from worldloom.pipelines.decoding.decoders import Decoders, Request
from worldloom.pipelines.encoding import BATCH
from worldloom.pipelines.pictured import rows
from worldloom.pipelines.reading.listing import list_parts
from worldloom.pipelines.scratch import scratch
from worldloom.recipe import Recipe
from worldloom.tokenizers.codebook import Codebook
from worldloom.tokenizers.train import train

from benchmarks.measure import Measure, speedup
from benchmarks.pictures import material

IMAGES, CODES = 256, 1024
FLOOR = 0.85


def measures() -> Iterator[Measure]:
    """Yield the job's speed as a fraction of the slower stage's."""
    photographs = [data for _, data in material()]
    if not photographs:
        print("skipped: no photographs; set WORLDLOOM_REAL_DATA", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [photographs[i % len(photographs)] for i in range(IMAGES)]
        recipe, codebook = prepare(folder, files)
        squares = np.random.default_rng(0).integers(0, 256, (BATCH, 256, 256, 3), np.uint8)

        def encode() -> None:
            for _ in range(IMAGES // BATCH):
                codebook.encode(squares)

        job, decoding = lambda: run(recipe), lambda: decode(files)
        ratios = {"decode": speedup(job, decoding), "encode": speedup(job, encode)}
        print(", ".join(f"job / {stage} alone {ratio:.2f}" for stage, ratio in ratios.items()), file=sys.stderr)
        yield Measure("image-job", max(ratios.values()), FLOOR)


def prepare(folder: Path, files: list[bytes]) -> tuple[Recipe, Codebook]:
    """Write a tar of photographs, a text model and a codebook."""
    with tarfile.open(folder / "photos.tar", "w") as archive:
        for i, data in enumerate(files):
            for member, content in ((f"{i:09d}.jpg", data), (f"{i:09d}.txt", b"a photograph")):
                header = tarfile.TarInfo(member)
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    train(["a photograph of a fox and of the sea"] * 20, str(folder / "text.model"), 300)
    codebook = Codebook(np.random.default_rng(0).integers(0, 256, (CODES, 16, 16, 3), np.uint8), 256)
    codebook.save(str(folder / "codebook.npz"))
    vision = {"kind": "codebook", "path": str(folder / "codebook.npz")}
    source = {"name": "photos", "kind": "image-text", "path": str(folder / "photos.tar")}
    vocabulary = {"text": str(folder / "text.model"), "vision": vision}
    return Recipe.model_validate({"vocabulary": vocabulary, "sources": [source]}), codebook


def run(recipe: Recipe) -> None:
    """Read, decode, encode and render every photograph."""
    source = recipe.sources[0]
    assert source.kind == "image-text"
    records = (found for part, _ in list_parts(source) for found in read_part(source, part))
    with scratch() as folder:
        assert sum(1 for _ in rows(recipe, source, records, frozenset(), folder)) == IMAGES


def decode(files: list[bytes]) -> None:
    """Decode every photograph in the job's decoder process, whose start counts too."""
    with Decoders() as decoders:
        asked = (Request("picture", {"size": 256}, data) for data in files)
        assert sum(len(f.frames) for _, frames in decoders.decode(asked, lambda r: r) for f in frames) == IMAGES
