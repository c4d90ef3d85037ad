"""Samples of WebDataset tars: members that stand together and share a key are one picture or clip with its caption."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tarfile import TarInfo
from typing import BinaryIO

from ...packing.ledger import FAILED
from ..media import Unfit
from ..records import Media
from .archive import is_outside, members
from .files import BLOCK, FORMS, Content

TEXT_BYTES = 2**20  # of a caption or sidecar: more is no caption
OTHERS = 8  # names are enough to say what is there
CAPTION, SIDECAR = "caption", "sidecar"
ROLES = {".txt": CAPTION, ".json": SIDECAR}


@dataclass
class Sample:
    """A picture or clip, what stands beside it, and the first thing that is wrong with it.

    Attributes:
      name: the key; of a key that came before, with the place of its second coming.
      media: the picture or clip, if there is one.
      texts: bytes of the `caption` and the `sidecar`, as far as there are.
      others: the first suffixes of members that are neither.
    """

    name: str
    key: str
    media: Media | None = None
    texts: dict[str, bytes] = field(default_factory=dict)
    flaw: Unfit | None = None
    others: list[str] = field(default_factory=list)

    def spoil(self, status: str, reason: str, detail: str) -> None:
        """Note what is wrong, unless something was before."""
        self.flaw = self.flaw or Unfit(status, reason, detail)


def read_samples(stream: BinaryIO, form: str, most: int, folder: Path | None = None) -> Iterator[Sample]:
    """Yield every sample of a tar, in order, each key once. Clips become temporary files, which are the reader's.

    Args:
      form: `picture` or `clip`: which members are the media.
      most: bytes of a picture or clip.
      folder: of the temporary files; by default the system's.

    Raises:
      tarfile.TarError, OSError: if the archive is damaged; the sample that is not complete then is left out.
    """
    seen: set[str] = set()
    sample: Sample | None = None
    try:
        for member, content in members(stream):
            key, suffix = key_of(member.name)
            if sample is None or sample.key != key:
                if sample:
                    done, sample = sample, None
                    yield done
                sample = _begin(key, member, seen)
            _take(sample, member, suffix, content, form, most, folder)
        if sample:
            done, sample = sample, None
            yield done
    finally:
        if sample:
            discard(sample.media)


def key_of(name: str) -> tuple[str, str]:
    """Split a member's name into its key and its suffix, in lower case, as webdataset does: at its first dot.

    The suffix is "" where there is none, or nothing in front of it.
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return (folder + slash + stem, dot + suffix.lower()) if stem else (name, "")


def _begin(key: str, member: TarInfo, seen: set[str]) -> Sample:
    if key not in seen:
        seen.add(key)
        return Sample(key, key)
    again = Sample(f"{key}@{member.offset}", key)
    again.spoil(FAILED, "duplicate key", f"{key} stands in the archive before, apart from this one")
    return again


def _take(
    sample: Sample, member: TarInfo, suffix: str, content: Content | None, form: str, most: int, folder: Path | None
) -> None:
    """Add a member to its sample."""
    role = ROLES.get(suffix) or FORMS.get(suffix, "")
    if content is None or is_outside(member.name):
        sample.spoil(FAILED, "no plain member", f"{member.name}: a link, a device, or a path outside the archive")
    elif sample.flaw:
        return
    elif role not in (form, CAPTION, SIDECAR):
        sample.others = [*sample.others, suffix][:OTHERS]
    elif member.size > (limit := most if role == form else TEXT_BYTES):
        sample.spoil(FAILED, "too large", f"{member.name} has {member.size} bytes, over {limit}")
    elif role in sample.texts or (role == form and sample.media):
        sample.spoil(FAILED, f"two {role}s", f"{member.name} is the second")
    elif role == form:
        sample.media = hold(content, suffix, most, form, folder)
    else:
        sample.texts[role] = content.read(limit)


def hold(content: Content, suffix: str, most: int, form: str, folder: Path | None) -> Media:
    """Keep the bytes of a picture in memory, and those of a clip in a temporary file."""
    if form == "picture":
        return Media(data=content.read(most))
    handle, path = tempfile.mkstemp(suffix, "worldloom-", folder)
    held = Media(path=path, temporary=True)
    try:
        with os.fdopen(handle, "wb") as file:
            while block := content.read(BLOCK):
                file.write(block)
    except BaseException:
        discard(held)
        raise
    return held


def hold_bytes(data: bytes, form: str, folder: Path | None) -> Media:
    """The same for bytes at hand."""
    return Media(data=data) if form == "picture" else hold(BytesIO(data), "", len(data), form, folder)


def discard(media: Media | None) -> None:
    """Remove a temporary file that nobody will read."""
    if media and media.temporary:
        Path(media.path).unlink(missing_ok=True)
