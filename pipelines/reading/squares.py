"""Squares of pictures and of clips' frames, as a codebook is trained on them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..media import Unfit
from .files import FORMS, WILD

PICTURES, CLIPS = ({suffix for suffix, form in FORMS.items() if form == kind} for kind in ("picture", "clip"))
FRAMES = 30  # of a clip, from all over its length: LWM's budget


def squares(paths: list[str], size: int, unread: list[str]) -> Iterator[np.ndarray]:
    """Yield uint8[size, size, 3] of every picture and clip that local paths, folders and globs name, sorted by name.

    Those that cannot be read are passed over and noted in `unread`, each with the reason.

    Raises:
      UserError: if a path names none.
    """
    for path in paths:
        found = [file for file in _files(path) if file.suffix.lower() in PICTURES | CLIPS and file.is_file()]
        if not found:
            raise UserError(f"{path} names no picture or clip ({', '.join(sorted(PICTURES | CLIPS))}): mend the path")
        for file in found:
            try:
                yield from _of(file, size)
            except (Unfit, OSError) as error:
                unread.append(f"{file}: {error}")


def _files(path: str) -> list[Path]:
    if Path(path).is_dir():
        return sorted(Path(path).rglob("*"))
    if WILD.search(path):
        anchor = Path(path).anchor or "."
        return sorted(Path(anchor).glob(str(Path(path).relative_to(anchor) if anchor != "." else path)))
    return [Path(path)]


def _of(file: Path, size: int) -> Iterator[np.ndarray]:
    if file.suffix.lower() in CLIPS:
        from ..decoding.clips import ClipLimits, read_clip

        _, batches = read_clip(str(file), ClipLimits(size=size, budget=FRAMES, sampling="uniform"))
        for frames in batches:
            yield from frames
    else:
        from ..decoding.pictures import PictureLimits, decode_picture

        yield decode_picture(file.read_bytes(), PictureLimits(size=size)).frame
