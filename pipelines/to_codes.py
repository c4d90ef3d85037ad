"""Pictures and clips to codes: fetched, decoded and encoded, in order and ahead of who waits for them."""

import contextlib
import hashlib
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..packing.report import Reject
from ..recipe import Recipe
from ..sources import ChatSource, MediaSource
from ..tokenizers.vision import VisionTokenizer
from .admission import reject_unfit
from .ahead import ahead
from .decoding.decoders import Decoders, Request, kept_decoders
from .encoding import Pending, Piece, encode
from .fetching.fetch import Fetched, Fetcher, FetchLimits
from .media import Unfit
from .models import pictures_of
from .reading.local import local_copy, read_file
from .reading.samples import discard
from .records import ImageText, Media, VideoText
from .units import fraction

WAITING = 32  # messages of decoded frames that wait for the tokenizer: about 50 MB of 256-pixel frames
PICTURE_BYTES = 2**25  # of a picture that stands beside clips, whose own limit is higher

FileSource = MediaSource | ChatSource
Other = TypeVar("Other")


class Local(NamedTuple):
    """A record, its media as bytes or as a file of this machine, and of a clip the digest of its whole file."""

    found: ImageText
    media: Media
    content: str


def to_codes(
    recipe: Recipe, source: FileSource, items: Iterable[ImageText | Other], folder: Path
) -> Generator[Pending | Reject | Other]:
    """Turn records into their codes or rejects, one for each and in their order; anything else passes as it is.

    Clips that are fetched or copied lie in `folder` meanwhile.
    """
    tokenizer = pictures_of(recipe.vocabulary)
    with contextlib.ExitStack() as stack:
        fetcher = stack.enter_context(Fetcher(fetch_limits(source)))
        decoders = stack.enter_context(kept_decoders(decoder_count(tokenizer)))

        def interrupt() -> None:
            fetcher.interrupt()
            decoders.interrupt()

        local = obtained(items, source, fetcher, folder)
        pieces: Iterator[Piece | Reject | Other] = decode(local, source, tokenizer.size, recipe.seed, decoders)
        decoded = stack.enter_context(ahead(pieces, WAITING, interrupt))
        coded: Iterator[Pending | Reject | Other] = encode(decoded, tokenizer)
        yield from coded


def obtained(
    items: Iterable[ImageText | Other], source: FileSource, fetcher: Fetcher, folder: Path
) -> Iterator[Local | Reject | Other]:
    """Bring each record's bytes here: pictures into memory, clips into local files."""

    def link_of(item: ImageText | Other) -> str | None:
        return (item.media.link or None) if isinstance(item, ImageText) else None

    for item, answer in fetcher.fetch(items, link_of, None if source.kind == "image-text" else folder):
        if not isinstance(item, ImageText):
            yield item
        elif isinstance(answer, Unfit):
            yield reject_unfit(item, source, answer, "fetch")
        else:
            try:
                media = brought(item, answer, source, folder)
                yield Local(item, media, file_digest(Path(media.path)) if isinstance(item, VideoText) else "")
            except Unfit as unfit:
                yield reject_unfit(item, source, unfit, "read")


def brought(item: ImageText, answer: Fetched | None, source: FileSource, folder: Path) -> Media:
    """Return a record's media as bytes, or as a local file where it is a clip."""
    media = item.media
    if answer is not None:
        media = Media(data=answer.data) if answer.path is None else Media(path=str(answer.path), temporary=True)
    if isinstance(item, VideoText):
        return media if media.temporary else local_copy(media, source.record_bytes, folder)
    if not media.path:
        return media
    try:
        return Media(data=read_file(media.path, picture_bytes(source)))
    finally:
        discard(media)


def file_digest(path: Path) -> str:
    """Digest a clip's file: what tells a clip, whichever of its frames are chosen."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def picture_bytes(source: FileSource) -> int:
    """Return how many bytes a picture may have."""
    return min(source.record_bytes, PICTURE_BYTES) if isinstance(source, ChatSource) else source.record_bytes


def decode(
    local: Iterable[Local | Other], source: FileSource, size: int, seed: int, decoders: Decoders
) -> Iterator[Piece | Other]:
    """Yield the frames of each record; one that is unfit ends with a piece that says so."""

    def request_of(item: Local | Other) -> Request | None:
        return request(item.found, item.media, source, size, seed) if isinstance(item, Local) else None

    for item, frames in decoders.decode(local, request_of):
        if not isinstance(item, Local):
            yield item
            continue
        found = replace(item.found, media=Media(link=item.found.media.link))  # the decoder has its bytes
        pending = Pending(found, item.content)
        try:
            for part in frames:
                pending.info |= part.info
                yield Piece(pending, part.frames, False)
        except Unfit as unfit:
            pending.unfit = unfit
        finally:
            if item.media.temporary:
                Path(item.media.path).unlink()
        yield Piece(pending, None, True)


def request(found: ImageText, media: Media, source: FileSource, size: int, seed: int) -> Request:
    """Say what is to be decoded of a record."""
    names = ["min_side", "max_aspect", "min_seconds", "max_seconds", "min_frames"]
    asked = {name: value for name in names if (value := getattr(source.filters, name, None)) is not None}
    limits: dict[str, Any] = {"size": size, **asked}
    if not isinstance(found, VideoText):
        return Request("picture", {**limits, "fast": source.kind != "video-text" and source.fast}, media.data)
    assert source.kind != "image-text"
    limits |= {
        "budget": source.frames,
        "sampling": source.sampling,
        "draw": fraction(seed, "window", source.name, found.record),
        "start": found.start,
        "end": found.end,
    }
    return Request("clip", limits, path=media.path)


def fetch_limits(source: FileSource) -> FetchLimits:
    """Read a recipe's limits of fetching."""
    section = source.fetch
    return FetchLimits(source.record_bytes, section.seconds, section.retries, section.at_once, section.per_host)


def decoder_count(tokenizer: VisionTokenizer) -> int:
    """Return how many decoder processes feed a tokenizer: one, and more only where a GPU waits for them."""
    return 1 if tokenizer.device == "cpu" else min(8, os.cpu_count() or 1)
