"""From records with pictures or clips to rows, in order: judged, fetched, decoded, encoded, rendered."""

import contextlib
import hashlib
import os
import reprlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..packing.ledger import DROPPED, FAILED
from ..packing.report import Reject
from ..packing.row import Row, example_row
from ..recipe import Recipe
from ..sources import ImageTextSource, MediaSource, VideoTextSource
from ..tokenizers.vision import VisionTokenizer
from .admission import denied_by, judge_record, reject, url_of
from .ahead import ahead
from .decoding.decoders import Decoders, Request, kept_decoders
from .fetching.fetch import Fetched, Fetcher, FetchLimits
from .media import Unfit
from .models import pictures_of, text_tokenizer, vocabulary_of
from .pairs import Layout, Marks, render
from .reading.columns import column
from .reading.local import local_copy, read_capped
from .reading.samples import discard
from .records import Found, ImageText, Media, VideoText
from .scratch import scratch
from .units import fraction

BATCH = 64  # frames encoded at once; the tokenizer has a batch of its own inside
WAITING = 32  # messages of decoded frames that wait for the tokenizer: about 50 MB of 256-pixel frames
LONGEST_CAPTION = 2**16  # characters
RATE = 4  # frames per second of presentation time (paper §4.2)


@dataclass
class Clip:
    """A record on its way: what was learned of its frames, and their codes as they come."""

    found: ImageText
    info: dict[str, Any] = field(default_factory=dict)
    hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    codes: list[np.ndarray] = field(default_factory=list)
    waiting: int = 0
    whole: bool = False
    unfit: Unfit | None = None


class Piece(NamedTuple):
    """Some frames of a record; `last` also says that no more come."""

    clip: Clip
    frames: np.ndarray | None
    last: bool


def rows(
    recipe: Recipe, source: MediaSource, records: Iterable[Found], denied: frozenset[str]
) -> Generator[Row | Reject]:
    """Turn records into examples' rows or rejects, one for each and in their order: the job without the engine."""
    tokenizer = pictures_of(recipe.vocabulary)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch())
        fetcher = stack.enter_context(Fetcher(fetch_limits(source)))
        decoders = stack.enter_context(kept_decoders(decoder_count(tokenizer)))
        judged = judge_all(records, source, recipe.seed, denied)
        local = obtained(judged, source, fetcher, folder)
        decoded = stack.enter_context(ahead(decode(local, source, tokenizer.size, recipe.seed, decoders), WAITING))
        for clip in encode(decoded, tokenizer):
            yield clip if isinstance(clip, Reject) else finish(clip, recipe, source, denied)


def judge_all(
    records: Iterable[Found], source: MediaSource, seed: int, denied: frozenset[str]
) -> Iterator[ImageText | Reject]:
    """Judge each record, and remove the temporary file of one that is kept out."""
    for found in records:
        outcome = judge(found, source, seed, denied)
        if isinstance(outcome, Reject) and isinstance(found, ImageText):
            discard(found.media)
        yield outcome


def judge(found: Found, source: MediaSource, seed: int, denied: frozenset[str]) -> ImageText | Reject:
    """Decide on a record by all that can be known before its file is opened."""
    if kept_out := judge_record(found, source, seed, denied):
        return kept_out
    assert isinstance(found, ImageText)
    for status, reason, detail in caption_faults(found.text, source):
        return _reject(found, source, Unfit(status, reason, detail), "filter" if status == DROPPED else "read")
    for status, reason, detail in score_faults(found.columns, source):
        return _reject(found, source, Unfit(status, reason, detail), "filter")
    return found


def caption_faults(caption: str, source: MediaSource) -> Iterator[tuple[str, str, str]]:
    """Yield what keeps a caption out."""
    low, high = source.filters.min_caption, source.filters.max_caption
    length = f"{len(caption)} characters"
    if not caption.strip():
        yield DROPPED, "empty caption", ""
    if len(caption) > LONGEST_CAPTION:
        yield FAILED, "caption too long", f"{length}; at most {LONGEST_CAPTION} are read"
    if "\0" in caption:
        yield FAILED, "NUL byte", f"at character {caption.index(chr(0))} of the caption"
    if low is not None and len(caption) < low:
        yield DROPPED, "below min_caption", length
    if high is not None and len(caption) > high:
        yield DROPPED, "above max_caption", length


def score_faults(columns: dict[str, Any], source: MediaSource) -> Iterator[tuple[str, str, str]]:
    """Yield the scores that keep a record out; one that is missing, or no number, does."""
    for bounds, above in ((source.filters.at_least, False), (source.filters.at_most, True)):
        for name, bound in bounds.items():
            value = number(column(columns, name))
            if value is None:
                yield DROPPED, f"no {name}", reprlib.repr(column(columns, name))
            elif not (value <= bound if above else value >= bound):  # NaN is neither
                yield DROPPED, f"{name} {'above' if above else 'below'} {bound:g}", f"{value:g}"


def number(value: Any) -> float | None:
    """Read a score, which tables of text hold as text. None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


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
            yield _reject(item, source, answer, "fetch")
        else:
            try:
                yield item, brought(item, answer, source, folder)
            except Unfit as unfit:
                yield _reject(item, source, unfit, "read")


def brought(item: ImageText, answer: Fetched | None, source: MediaSource, folder: Path) -> Media:
    """Return a record's media as bytes, or as a local file where it is a clip."""
    if answer is not None:
        return Media(data=answer.data) if answer.path is None else Media(path=str(answer.path), temporary=True)
    if isinstance(source, VideoTextSource):
        return local_copy(item.media, source.record_bytes, folder)
    return Media(data=read_capped(item.media.path, source.record_bytes)) if item.media.path else item.media


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
        clip = Clip(replace(item[0], media=Media(link=item[0].media.link)))  # its bytes have gone to the decoder
        try:
            for part in frames:
                clip.info |= part.info
                yield Piece(clip, part.frames, False)
        except Unfit as unfit:
            clip.unfit = unfit
        finally:
            if item[1].temporary:
                Path(item[1].path).unlink()
        yield Piece(clip, None, True)


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


def encode(pieces: Iterable[Reject | Piece], tokenizer: VisionTokenizer) -> Iterator[Clip | Reject]:
    """Encode frames in batches across records. Yields the records whole, in order."""
    order: deque[Clip | Reject] = deque()
    batch: list[Piece] = []
    held = 0
    for piece in pieces:
        if isinstance(piece, Reject):
            order.append(piece)
        else:
            if not order or order[-1] is not piece.clip:
                order.append(piece.clip)
            held += _take(piece, batch)
        if held >= BATCH:
            _encode_batch(batch, tokenizer)
            batch, held = [], 0
        while order and _is_ready(order[0]):
            yield order.popleft()
    _encode_batch(batch, tokenizer)
    yield from order


def _take(piece: Piece, batch: list[Piece]) -> int:
    """Put a piece's frames into the batch. Returns their number."""
    piece.clip.whole |= piece.last
    if piece.frames is None:
        return 0
    piece.clip.hash.update(piece.frames)
    piece.clip.waiting += len(piece.frames)
    batch.append(piece)
    return len(piece.frames)


def _encode_batch(batch: list[Piece], tokenizer: VisionTokenizer) -> None:
    if not batch:
        return
    frames = [piece.frames for piece in batch if piece.frames is not None]
    codes = tokenizer.encode(np.concatenate(frames))
    low = 0
    for piece, part in zip(batch, frames, strict=True):
        piece.clip.codes.append(codes[low : low + len(part)])
        piece.clip.waiting -= len(part)
        low += len(part)


def _is_ready(item: Clip | Reject) -> bool:
    return isinstance(item, Reject) or (item.whole and (not item.waiting or item.unfit is not None))


def finish(clip: Clip, recipe: Recipe, source: MediaSource, denied: frozenset[str]) -> Row | Reject:
    """Make an encoded record an example's row, or say why not."""
    found, exact = clip.found, clip.hash.digest()
    if clip.unfit:
        return _reject(found, source, clip.unfit, "filter" if clip.unfit.status == DROPPED else "decode")
    if entry := denied_by(denied, exact.hex()):
        return _reject(found, source, Unfit(DROPPED, "denied", entry), "filter", exact)
    text, vocabulary = text_tokenizer(recipe.vocabulary.text), vocabulary_of(recipe.vocabulary)
    example = render(
        text.encode(found.text),
        np.concatenate(clip.codes),
        "image" if isinstance(source, ImageTextSource) else "video",
        described(clip, source),
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


def described(clip: Clip, source: MediaSource) -> dict[str, Any]:
    """Say of the stored frames what a reader may ask: where they come from, and of a clip which they are."""
    told = {"width": clip.info["width"], "height": clip.info["height"]}
    if url := url_of(clip.found):  # which a deny list may name
        told["url"] = url
    if isinstance(source, VideoTextSource):
        kept = {name: clip.info[name] for name in ("start", "rate")}
        told |= {**kept, "frames": clip.info["chosen"], "of": clip.info["total"], "sampling": source.sampling}
    return told


def fetch_limits(source: MediaSource) -> FetchLimits:
    """Read a recipe's limits of fetching."""
    section = source.fetch
    return FetchLimits(source.record_bytes, section.seconds, section.retries, section.at_once, section.per_host)


def decoder_count(tokenizer: VisionTokenizer) -> int:
    """Return how many decoder processes feed a tokenizer: one, and more only where a GPU waits for them."""
    return 1 if tokenizer.device == "cpu" else min(8, os.cpu_count() or 1)


def _reject(found: Found, source: MediaSource, unfit: Unfit, stage: str, exact: bytes = b"") -> Reject:
    return reject(found, source, stage, unfit.status, unfit.reason, unfit.detail, exact)
