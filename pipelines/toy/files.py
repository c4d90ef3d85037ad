"""The toy world on disk, in the shapes in which image and video data sets are published."""

import csv
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .world import Scene, caption, clip, draw, questions, scene

PAGE = 50  # clips in a folder, as WebVid's pages
FIRST = 1_000_001  # WebVid's ids are numbers of seven digits and more
HOST = "https://toy-world.invalid"  # a name that can never be resolved (RFC 6761)


def write_images(folder: str | Path, count: int, seed: int = 0, size: int = 256) -> list[Path]:
    """Write scenes 0 to count - 1 as NAME.png with NAME.txt, the caption, to a folder; return the pictures' paths."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    paths = [root / image_name(number) for number in range(count)]
    for number, path in enumerate(paths):
        shown = scene(seed, number)
        path.write_bytes(encode(draw(shown, size), "png"))
        _write_text(path.with_suffix(".txt"), caption(shown))
    return paths


def write_tar(path: str | Path, count: int, seed: int = 0, size: int = 256, form: str = "jpg") -> None:
    """Write scenes 0 to count - 1 as one of img2dataset's tars: KEY.jpg or .png, KEY.json and KEY.txt.

    The same arguments make the same bytes.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(count):
            shown, key = scene(seed, number), f"{number:09d}"
            picture, text = encode(draw(shown, size), form), caption(shown)
            sidecar = json.dumps(_sidecar(key, text, picture, size), indent=4)
            # webdataset's writer sorts a sample's members
            for suffix, content in sorted({form: picture, "json": sidecar.encode(), "txt": text.encode()}.items()):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size, member.mode = len(content), 0o444
                archive.addfile(member, io.BytesIO(content))


def _sidecar(key: str, text: str, picture: bytes, size: int) -> dict[str, Any]:
    """Return what img2dataset says of a picture (its downloader.py)."""
    return {
        "caption": text,
        "url": f"{HOST}/{key}",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": size,
        "height": size,
        "original_width": size,
        "original_height": size,
        "exif": "{}",
        "sha256": hashlib.sha256(picture).hexdigest(),
    }


def write_clips(
    folder: str | Path, count: int, seed: int = 0, size: int = 256, seconds: float = 2.0, rate: int = 24
) -> list[Path]:
    """Write moving scenes 0 to count - 1 as clips; return their paths.

    Each is PAGE_DIR/VIDEOID.mp4 with its caption beside it in .txt, as video2dataset writes them, and a row in
    FOLDER/webvid.csv with WebVid's columns.
    """
    root = Path(folder)
    paths = [root / clip_name(number) for number in range(count)]
    rows = []
    for number, path in enumerate(paths):
        shown = scene(seed, number, moving=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip(shown, size, seconds, rate))
        _write_text(path.with_suffix(".txt"), caption(shown))
        rows.append(_row(path, number, caption(shown), round(seconds)))
    _write_table(root / "webvid.csv", rows)
    return paths


def _row(path: Path, number: int, text: str, seconds: int) -> dict[str, str | int]:
    duration = f"PT{seconds // 3600:02d}H{seconds // 60 % 60:02d}M{seconds % 60:02d}S"
    page, name = path.parent.name, path.name
    return {
        "videoid": path.stem,
        "name": text,
        "page_idx": number // PAGE,
        "page_dir": page,
        "duration": duration,
        "contentUrl": f"{HOST}/{page}/{name}",
    }


def _write_table(path: Path, rows: list[dict[str, str | int]]) -> None:
    if rows:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)


def write_questions(path: str | Path, count: int, seed: int = 0, clips: bool = False, folder: str = "") -> None:
    """Write a conversation for each of scenes 0 to count - 1, as JSONL in the shape of OpenAI's messages.

    The questions stand in an order drawn for each scene, so that each of them is somewhere the first one, which none
    before it helps to answer. The first turn holds the picture or clip, by the name that `write_images` or
    `write_clips` gave it, below `folder`.
    """
    kind, name = ("video", clip_name) if clips else ("image", image_name)
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    lines = []
    for number in range(count):
        messages = list(_messages(scene(seed, number, moving=clips), {"type": kind, kind: prefix + name(number)}))
        lines.append(json.dumps({"id": f"{kind}-{number:06d}", "messages": messages}))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")


def _messages(shown: Scene, medium: dict[str, str]) -> Iterator[dict[str, Any]]:
    asked, rng = questions(shown), random.Random(f"toy turns {shown.seed} {shown.number}")
    for turn, (question, answer) in enumerate(rng.sample(asked, len(asked))):
        words = {"type": "text", "text": question}
        yield {"role": "user", "content": [words] if turn else [medium, words]}
        yield {"role": "assistant", "content": [{"type": "text", "text": answer}]}


def image_name(number: int) -> str:
    """Return the name of a scene's picture."""
    return f"{number:06d}.png"


def clip_name(number: int) -> str:
    """Return the name of a scene's clip, with its page's folder."""
    first = number // PAGE * PAGE + 1
    return f"{first:06d}_{first + PAGE - 1:06d}/{FIRST + number}.mp4"


def encode(picture: np.ndarray, form: str) -> bytes:
    """Return the bytes of a picture uint8[height, width, 3] as `png`, or as `jpg` in img2dataset's quality."""
    from PIL import Image

    file = io.BytesIO()
    quality = {"quality": 95} if form == "jpg" else {}
    Image.fromarray(picture).save(file, "jpeg" if form == "jpg" else form, **quality)
    return file.getvalue()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
