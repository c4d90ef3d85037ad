"""From records with pictures or clips to rows, in order: judged, fetched, decoded, encoded, rendered."""

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..packing.ledger import DROPPED
from ..packing.report import Reject
from ..packing.row import Row, example_row
from ..recipe import Recipe
from ..sources import ImageTextSource, MediaSource, VideoTextSource
from ..tokenizers.vision import VisionTokenizer
from .admission import denied_by, url_of
from .ahead import ahead
from .decoding.decoders import Decoders, Request, kept_decoders
from .encoding import Pending, Piece, encode
from .fetching.fetch import Fetched, Fetcher, FetchLimits
from .media import Unfit
from .models import pictures_of, text_tokenizer, vocabulary_of
from .pair_admission import judge_all, reject_unfit
from .pairs import Layout, Marks, render
from .reading.local import local_copy, read_file
from .records import Found, ImageText, Media, VideoText
from .units import fraction

WAITING = 32  # messages of decoded frames that wait for the tokenizer: about 50 MB of 256-pixel frames


def rows(
    recipe: Recipe, source: MediaSource, records: Iterable[Found], denied: frozenset[str], folder: Path
) -> Generator[Row | Reject]:
    """Turn records into examples' rows or rejects, one for each and in their order: the job without the engine.

    Clips that are fetched or copied lie in `folder` meanwhile.
    """
    tokenizer = pictures_of(recipe.vocabulary)
    with contextlib.ExitStack() as stack:
        fetcher = stack.enter_context(Fetcher(fetch_limits(source)))
        decoders = stack.enter_context(kept_decoders(decoder_count(tokenizer)))

        def interrupt() -> None:
            fetcher.interrupt()
            decoders.interrupt()

        judged = judge_all(records, source, recipe.seed, denied)
        local = obtained(judged, source, fetcher, folder)
        decoded = stack.enter_context(
            ahead(decode(local, source, tokenizer.size, recipe.seed, decoders), WAITING, interrupt)
        )
        for done in encode(decoded, tokenizer):
            yield done if isinstance(done, Reject) else finish(done, recipe, source, denied)


def obtained(
    judged: Iterable[ImageText | Reject], source: MediaSource, fetcher: Fetcher, folder: Path
) -> Iterator[tuple[ImageText, Media] | Reject]:
    """Bring each record's bytes here: pictures into memory, clips into local files."""
    clips = isinstance(source, VideoTextSource)

    def link_of(item: ImageText | Reject) -> str | None:
        return (item.media.link or None) if isinstance(item, ImageText) else None

    for item, answer in fetcher.fetch(judged, link_of, folder if clips else None):
        if isinstance(item, Reject):
            yield item
        elif isinstance(answer, Unfit):
            yield reject_unfit(item, source, answer, "fetch")
        else:
            try:
                yield item, brought(item, answer, source, folder)
            except Unfit as unfit:
                yield reject_unfit(item, source, unfit, "read")


def brought(item: ImageText, answer: Fetched | None, source: MediaSource, folder: Path) -> Media:
    """Return a record's media as bytes, or as a local file where it is a clip."""
    if answer is not None:
        return Media(data=answer.data) if answer.path is None else Media(path=str(answer.path), temporary=True)
    if isinstance(source, VideoTextSource):
        return local_copy(item.media, source.record_bytes, folder)
    return Media(data=read_file(item.media.path, source.record_bytes)) if item.media.path else item.media


def decode(
    local: Iterable[tuple[ImageText, Media] | Reject], source: MediaSource, size: int, seed: int, decoders: Decoders
) -> Iterator[Reject | Piece]:
    """Yield the frames of each record; one that is unfit ends with a piece that says so."""

    def request_of(item: tuple[ImageText, Media] | Reject) -> Request | None:
        return None if isinstance(item, Reject) else request(*item, source, size, seed)

    for item, frames in decoders.decode(local, request_of):
        if isinstance(item, Reject):
            yield item
            continue
        pending = Pending(replace(item[0], media=Media(link=item[0].media.link)))  # its bytes have gone to the decoder
        try:
            for part in frames:
                pending.info |= part.info
                yield Piece(pending, part.frames, False)
        except Unfit as unfit:
            pending.unfit = unfit
        finally:
            if item[1].temporary:
                Path(item[1].path).unlink()
        yield Piece(pending, None, True)


def request(found: ImageText, media: Media, source: MediaSource, size: int, seed: int) -> Request:
    """Say what is to be decoded of a record."""
    names = ["min_side", "max_aspect", "min_seconds", "max_seconds", "min_frames"]
    asked = {name: value for name in names if (value := getattr(source.filters, name, None)) is not None}
    limits: dict[str, Any] = {"size": size, **asked}
    if isinstance(source, ImageTextSource):
        return Request("picture", {**limits, "fast": source.fast}, media.data)
    assert isinstance(found, VideoText)
    limits |= {
        "budget": source.frames,
        "sampling": source.sampling,
        "draw": fraction(seed, "window", source.name, found.record),
        "start": found.start,
        "end": found.end,
    }
    return Request("clip", limits, path=media.path)


def finish(pending: Pending, recipe: Recipe, source: MediaSource, denied: frozenset[str]) -> Row | Reject:
    """Make an encoded record an example's row, or say why not."""
    found, exact = pending.found, pending.hash.digest()
    if pending.unfit:
        return reject_unfit(found, source, pending.unfit, "filter" if pending.unfit.status == DROPPED else "decode")
    if entry := denied_by(denied, exact.hex()):
        return reject_unfit(found, source, Unfit(DROPPED, "denied", entry), "filter", exact)
    text, vocabulary = text_tokenizer(recipe.vocabulary.text), vocabulary_of(recipe.vocabulary)
    example = render(
        text.encode(found.text),
        np.concatenate(pending.codes),
        "image" if isinstance(source, ImageTextSource) else "video",
        described(pending, source),
        layout(recipe.seed, source, found.record),
        Marks.of(text),
        vocabulary,
        source.name,
        found.record,
    )
    return example_row(example, vocabulary, exact, np.empty(0, np.uint64))


def layout(seed: int, source: MediaSource, record: str) -> Layout:
    """Draw a record's layout."""
    first = fraction(seed, "order", source.name, record) < 0.5
    dropped = fraction(seed, "caption", source.name, record) < source.render.caption_dropout
    return Layout(first, not dropped, source.render.trained == "all")


def described(pending: Pending, source: MediaSource) -> dict[str, Any]:
    """Say of the stored frames what a reader may ask: where they come from, and of a clip which they are."""
    told = {"width": pending.info["width"], "height": pending.info["height"]}
    if url := url_of(pending.found):  # which a deny list may name
        told["url"] = url
    if isinstance(source, VideoTextSource):
        kept = {name: pending.info[name] for name in ("start", "rate")}
        told |= {**kept, "frames": pending.info["chosen"], "of": pending.info["total"], "sampling": source.sampling}
    return told


def fetch_limits(source: MediaSource) -> FetchLimits:
    """Read a recipe's limits of fetching."""
    section = source.fetch
    return FetchLimits(source.record_bytes, section.seconds, section.retries, section.at_once, section.per_host)


def decoder_count(tokenizer: VisionTokenizer) -> int:
    """Return how many decoder processes feed a tokenizer: one, and more only where a GPU waits for them."""
    return 1 if tokenizer.device == "cpu" else min(8, os.cpu_count() or 1)
