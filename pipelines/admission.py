"""What keeps a record out whatever it holds: a damaged file, a deny list, the sample, or a column's value."""

import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ..packing.ledger import DROPPED
from ..packing.report import Reject
from ..sources import Source
from .media import Unfit
from .reading.columns import column
from .reading.samples import discard
from .records import BadRecord, Chat, Found, ImageText, Media, storable
from .units import fraction

Kept = TypeVar("Kept")


def judged(records: Iterable[Found], judge: Callable[[Found], Kept | Reject]) -> Iterator[Kept | Reject]:
    """Judge each record, and remove the temporary files of one that is kept out."""
    for found in records:
        outcome = judge(found)
        if isinstance(outcome, Reject):
            for media in media_of(found):
                discard(media)
        yield outcome


def media_of(found: Found) -> list[Media]:
    """List the pictures and clips of a record."""
    if isinstance(found, ImageText):
        return [found.media]
    return [medium.media for medium in found.media] if isinstance(found, Chat) else []


def judge_record(found: Found, source: Source, seed: int, denied: frozenset[str]) -> Reject | None:
    """Decide on a record by its names and columns alone. None where nothing speaks against it."""
    if denied and (entry := denied_by(denied, found.record, url_of(found))):
        return reject(found, source, "filter", DROPPED, "denied", entry)
    if isinstance(found, BadRecord):
        return reject(found, source, "read", found.status, found.reason, found.error)
    if source.sample < 1 and fraction(seed, "sample", source.name, found.record) >= source.sample:
        return reject(found, source, "filter", DROPPED, "not in the sample", "")
    for name, wanted in source.filters.equals.items():
        value = column(found.columns, name)
        if value != wanted and value != str(wanted):  # CSV holds numbers as text
            return reject(found, source, "filter", DROPPED, f"{name} differs", reprlib.repr(value))
    return None


def reject(
    found: Found, source: Source, stage: str, status: str, reason: str, error: str, exact: bytes = b""
) -> Reject:
    """List a record that becomes no example."""
    return Reject(source.name, found.record, stage, status, reason, error, found.where, exact.hex(), url_of(found))


def reject_unfit(found: Found, source: Source, unfit: Unfit, stage: str, exact: bytes = b"") -> Reject:
    """List a record whose caption, scores or file keep it out."""
    return reject(found, source, stage, unfit.status, unfit.reason, unfit.detail, exact)


def url_of(found: Found) -> str:
    """Return the URL that a record was, or would be, fetched from, or what its `url` column says, or ""."""
    if isinstance(found, ImageText) and found.media.link:
        return storable(found.media.link)
    columns = {} if isinstance(found, BadRecord) else found.columns
    return next((storable(str(value)) for name, value in columns.items() if name.lower() == "url" and value), "")


def denied_by(denied: frozenset[str], *names: str) -> str:
    """Return the entry of a deny list that is one of a record's names: id, content hash or URL. "" where none is."""
    return next((name for name in names if name in denied), "")
