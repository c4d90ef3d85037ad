"""Builds of pictures and clips end to end: each form of source, any number of workers, any kill, the same root."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from worldloom.cli import main
from worldloom.packing.dataset import open_dataset
from worldloom.packing.verify import verify
from worldloom.tokenizers.codebook import Codebook

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
SIZE, IMAGES, TARS, CLIPS = 32, 48, 16, 6


def pixels(number: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)


def png(number: int, size: int = SIZE) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(number, size)).save(out, "PNG")
    return out.getvalue()


def clip(path: Path, number: int, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"bf": "2", "threads": "1"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            still = np.full((SIZE, SIZE, 3), (37 * number + 9 * i) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(still)))
        container.mux(stream.encode())


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """Tars of pictures, some damaged, a folder of clips, a codebook, and the recipe that names them."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "tars").mkdir()
    for number in range(TARS):
        with tarfile.open(folder / "tars" / f"{number:05d}.tar", "w") as archive:
            for i in range(number, IMAGES, TARS):
                add(archive, f"{i:09d}.png", b"damaged" if i == 20 else png(i % 40))
                add(archive, f"{i:09d}.txt", b"" if i == 13 else f"a fox, number {i}".encode())
                add(archive, f"{i:09d}.json", json.dumps({"url": f"http://x/{i}", "status": "success"}).encode())
    (folder / "clips").mkdir()
    for number in range(CLIPS):
        clip(folder / "clips" / f"{number}.mp4", number, 5 + 9 * number)
        (folder / "clips" / f"{number}.txt").write_text(f"the sun, for {number} hours")
    Codebook(np.unique(np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), np.uint8), axis=0), SIZE).save(
        str(folder / "codebook.npz")
    )
    recipe = {
        "vocabulary": {"text": str(small_model), "vision": {"kind": "codebook", "path": "codebook.npz"}},
        "sources": [
            {"name": "images", "kind": "image-text", "path": "tars/*.tar", "unit_bytes": 1},
            {"name": "clips", "kind": "video-text", "path": "clips", "unit_bytes": 1, "frames": 20},
        ],
        "pack": [
            {"name": "images", "length": 64, "weights": "lwm", "sources": ["images"]},
            {"name": "clips", "length": 64, "weights": "lwm", "sources": ["clips"], "frames": "fit"},
        ],
        "limits": {"failed": 0.1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def build(world: Path, out: Path, *flags: str) -> None:
    assert main(["build", str(world / "recipe.yaml"), "--out", str(out), *flags]) == 0


def roots(out: Path) -> dict[str, str]:
    return {name: open_dataset(str(out / name)).root for name in ("examples", "packed-images", "packed-clips")}


@pytest.fixture(scope="module")
def built(world: Path) -> Path:
    build(world, world / "built")
    return world / "built"


def test_the_ledger_adds_up_and_every_shard_is_right(built: Path) -> None:
    assert verify(str(built)) == []
    examples = open_dataset(str(built / "examples")).manifest
    assert {name: (s["read"], s["kept"], s["dropped"], s["failed"]) for name, s in examples["sources"].items()} == {
        "images": (IMAGES, IMAGES - 2, 1, 1),
        "clips": (CLIPS, CLIPS, 0, 0),
    }
    images = open_dataset(str(built / "packed-images")).manifest["ledger"]
    assert images["reasons"] == {"dropped: exact duplicate": 8}  # 40 to 47 repeat 0 to 7
    assert images["kept"] + images["dropped"] == images["read"] == IMAGES - 2


def test_clips_are_thinned_to_what_fits(built: Path) -> None:
    dataset = open_dataset(str(built / "packed-clips"))
    spans = [s for row in range(dataset.rows) for seg in dataset.row(row).segments for s in seg.spans]
    told: list[dict[str, Any]] = [json.loads(s.ref) for s in spans if s.kind == "video"]
    of = sorted(t["of"] for t in told)
    assert of == [(4 + 9 * n) // 2 + 1 for n in range(CLIPS)]  # every second frame of 5 + 9n, at 8 a second
    assert all(t["frames"] == min(t["of"], 20) or t["thinned_from"] == min(t["of"], 20) for t in told)
    assert any("thinned_from" in t for t in told)


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_makes_the_same_bytes(world: Path, built: Path, tmp_path: Path, workers: int) -> None:
    build(world, tmp_path / "out", "--workers", str(workers))
    assert roots(tmp_path / "out") == roots(built)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """Tars of two pictures each, a small VQGAN of random weights, and the recipe that names them."""
    torch = pytest.importorskip("torch", reason="SKIPPED FOR LACK OF TORCH: pip install 'worldloom[vision]'")
    from diffusers.models.autoencoders.vq_model import VQModel

    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    sizes = {"block_out_channels": [8] * 5, "norm_num_groups": 4, "latent_channels": 8, "num_vq_embeddings": 64}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 5, "up_block_types": ["UpDecoderBlock2D"] * 5}
    VQModel(**sizes, **blocks).save_pretrained(folder / "vqgan")
    for number in range(3):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for i in (2 * number, 2 * number + 1):
                add(archive, f"{i}.png", png(i, 256))
                add(archive, f"{i}.txt", b"a fox")
    vision = {"kind": "vqgan", "path": "vqgan", "pixel_range": "-1..1"}
    recipe = {
        "vocabulary": {"text": str(small_model), "vision": vision},
        "sources": [{"name": "s", "kind": "image-text", "path": "*.tar", "unit_bytes": 1}],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_the_codes_of_a_network_are_the_same_for_any_number_of_workers(network: Path) -> None:
    from worldloom.tokenizers.vision import load

    found = []
    for workers in (1, 2):  # each process loads torch
        build(network, network / str(workers), "--workers", str(workers))
        found.append(open_dataset(str(network / str(workers) / "examples")))
    assert len({data.root for data in found}) == 1
    model = load("vqgan", str(network / "vqgan"), "-1..1")
    expected = sorted(model.encode(pixels(i, 256)[None])[0].tobytes() for i in range(6))
    tokens = [found[0].row(i).tokens.astype(int) - found[0].vocabulary.text_size for i in range(6)]
    assert sorted(ids[(ids >= 0) & (ids < 64)].astype(np.uint16).tobytes() for ids in tokens) == expected


def test_kills_leave_the_root_as_it_is(world: Path, built: Path, tmp_path: Path, kill_often) -> None:
    out = tmp_path / "out"
    kill_often(world / "recipe.yaml", out, 7)
    build(world, out)
    assert roots(out) == roots(built)
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files == {str(p.relative_to(built)) for p in built.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["http://x/5", "00003.tar/000000003"])
def test_what_is_denied_later_is_taken_out(world: Path, built: Path, tmp_path: Path, name: str) -> None:
    """By its URL in a tar's sidecar, or its id: of the units that are there, one alone is made anew."""
    out = tmp_path / "out"
    shutil.copytree(built, out)
    units = out / "examples" / "units"
    before = {path.name: json.loads(path.read_bytes())["shard"] for path in units.iterdir()}
    build(world, out, "--set", f"sources.images.deny=[{name}]")
    after = {path.name: json.loads(path.read_bytes())["shard"] for path in units.iterdir()}
    assert sum(before[name] != after[name] for name in before) == 1
    assert open_dataset(str(out / "examples")).manifest["ledger"]["reasons"]["dropped: denied"] == 1
    build(world, tmp_path / "fresh", "--set", f"sources.images.deny=[{name}]")
    assert roots(out) == roots(tmp_path / "fresh")


def test_a_plan_of_the_whole_is_what_is_built(
    world: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["plan", str(world / "recipe.yaml"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    examples = open_dataset(str(built / "examples")).manifest
    for name, source in plan["sources"].items():
        made = examples["sources"][name]
        assert (source["records"], source["kept"], source["sampled"]) == (made["read"], made["kept"], 1)
    assert plan["examples"]["tokens"] == examples["tokens"]
    for frames in ("fit", "3", "8"):
        few = ["--set", f"pack.clips.frames={frames}"]
        assert main(["plan", str(world / "recipe.yaml"), "--json", *few]) == 0
        planned = json.loads(capsys.readouterr().out)["packs"]["packed-clips"]
        out = tmp_path / frames
        assert main(["pack", str(built / "examples"), "--out", str(out), "--length", "64", "--frames", frames]) == 0
        capsys.readouterr()
        index = open_dataset(str(out)).index.to_pylist()
        assert planned["sequences"] == sum(shard["rows"] for shard in index if shard["source"] == "clips") > 0
