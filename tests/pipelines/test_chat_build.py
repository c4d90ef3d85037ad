"""Builds of chats end to end: any number of workers, the same root; every record counted; thinned to what fits."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from worldloom.cli import main
from worldloom.packing.dataset import open_dataset
from worldloom.packing.verify import verify
from worldloom.tokenizers.codebook import Codebook

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
SIZE, CHATS = 32, 24


def png(number: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def clip(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"threads": "1"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 9 * i % 256, np.uint8))))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """UltraChat as JSONL, ShareGPT4V as one array with files beside it, some of them missing or damaged, and clips."""
    folder = tmp_path_factory.mktemp("chats")
    (folder / "media").mkdir()
    for number in range(8):
        (folder / "media" / f"{number}.png").write_bytes(b"damaged" if number == 3 else png(number))
    clip(folder / "media" / "v_long.mp4", 40)
    lines = [{"id": str(n), "data": [f"Good morning, fox {n % 20}?", "Nobody answers."]} for n in range(CHATS)]
    (folder / "ultra.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = [
        {
            "id": f"s{n}",
            "image": f"{n % 8}.png" if n != 9 else "nowhere.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nWho is it, {n}?"},
                {"from": "gpt", "value": "" if n == 10 else "The fox."},
            ],
        }
        for n in range(CHATS)
    ]
    (folder / "share.json").write_text(json.dumps(shown, indent=1))
    asked = [{"q": f"What came {n}?", "a": "A lantern.", "video_id": "v_long"} for n in range(3)]
    (folder / "clips.json").write_text(json.dumps(asked))
    patches = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), np.uint8)
    Codebook(np.unique(patches, axis=0), SIZE).save(str(folder / "codebook.npz"))
    chat = {"kind": "chat", "unit_bytes": 500, "media_root": "media", "filters": {"min_side": SIZE}}
    recipe = {
        "vocabulary": {"text": str(small_model), "vision": {"kind": "codebook", "path": "codebook.npz"}},
        "sources": [
            chat | {"name": "ultra", "path": "ultra.jsonl"},
            chat | {"name": "share", "path": "share.json"},
            chat | {"name": "clips", "path": "clips.json", "frames": 30},
        ],
        "pack": [
            {"name": "all", "length": 160, "weights": "lwm", "frames": "fit"},
            {"name": "train", "length": 160, "split": "train", "frames": "fit"},
            {"name": "eval", "length": 160, "split": "eval", "frames": "fit"},
        ],
        "eval": 0.4,
        "limits": {"failed": 0.3},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def build(world: Path, out: Path, *flags: str) -> dict[str, str]:
    assert main(["build", str(world / "recipe.yaml"), "--out", str(out), *flags]) == 0
    names = ("examples", "packed-all", "packed-train", "packed-eval")
    return {name: open_dataset(str(out / name)).root for name in names}


@pytest.fixture(scope="module")
def built(world: Path) -> dict[str, str]:
    return build(world, world / "built")


def test_every_record_is_accounted_for(world: Path, built: dict[str, str]) -> None:
    assert verify(str(world / "built")) == []
    sources = open_dataset(str(world / "built" / "examples")).manifest["sources"]
    assert {name: (s["read"], s["kept"], s["dropped"], s["failed"]) for name, s in sources.items()} == {
        "ultra": (CHATS, CHATS, 0, 0),
        "share": (CHATS, CHATS - 5, 1, 4),  # an empty answer; three of a damaged picture, and one of none
        "clips": (3, 3, 0, 0),
    }
    packed = open_dataset(str(world / "built" / "packed-all")).manifest["ledger"]
    assert packed["reasons"] == {"dropped: exact duplicate": 4}  # foxes 20 to 23 are 0 to 3 again


def test_clips_that_are_asked_about_are_thinned(world: Path, built: dict[str, str]) -> None:
    dataset = open_dataset(str(world / "built" / "packed-all"))
    segments = [s for row in range(dataset.rows) for s in dataset.row(row).segments if s.task == "video-chat"]
    frames = [json.loads(span.ref) for s in segments for span in s.spans if span.kind == "video"]
    assert len(frames) == 3 and all(f["of"] == 40 and f["thinned_from"] == 30 for f in frames)
    assert all(s.length <= 160 and s.trained_text > 0 and s.trained_vision == 0 for s in segments)


def test_any_number_of_workers_makes_the_same_bytes(world: Path, built: dict[str, str], tmp_path: Path) -> None:
    assert build(world, tmp_path / "out", "--workers", "2") == built


def test_what_is_shown_is_on_one_side_of_the_split(world: Path, built: dict[str, str]) -> None:
    """Three chats ask about each picture, and three about one clip: none of those is on both sides."""
    sides = []
    for name in ("packed-train", "packed-eval"):
        dataset = open_dataset(str(world / "built" / name))
        segments = [s for row in range(dataset.rows) for s in dataset.row(row).segments]
        sides.append({json.loads(p.ref)["content"] for s in segments for p in s.spans if p.kind in ("image", "video")})
    assert len(sides[0] | sides[1]) == 8 and not sides[0] & sides[1] and all(sides)


def test_a_replaced_picture_makes_its_chats_anew(world: Path, built: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(world, out)
    before = {path.name: path.read_bytes() for path in (out / "examples" / "units").iterdir()}
    kept = (world / "media" / "5.png").read_bytes()
    try:
        (world / "media" / "5.png").write_bytes(png(99))
        build(world, out)
        after = {path.name: path.read_bytes() for path in (out / "examples" / "units").iterdir()}
        changed = {name for name in before if before[name] != after[name]}
        assert changed and all(name.startswith("share-") for name in changed)
    finally:
        (world / "media" / "5.png").write_bytes(kept)
