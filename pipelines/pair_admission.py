"""What keeps a pair out before its file is opened: names, sample and columns as for all records, caption and scores."""

import reprlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from ..packing.ledger import DROPPED, FAILED
from ..packing.report import Reject
from ..sources import MediaSource
from .admission import judge_record, judged, reject_unfit
from .media import Unfit
from .reading.columns import column
from .records import Found, ImageText

LONGEST_CAPTION = 2**16  # characters


def judge_all(
    records: Iterable[Found], source: MediaSource, seed: int, denied: frozenset[str]
) -> Iterator[ImageText | Reject]:
    """Judge each record, and remove the temporary file of one that is kept out."""
    return judged(records, lambda found: judge(found, source, seed, denied))


def judge(found: Found, source: MediaSource, seed: int, denied: frozenset[str]) -> ImageText | Reject:
    """Decide on a record by all that can be known before its file is opened."""
    if kept_out := judge_record(found, source, seed, denied):
        return kept_out
    assert isinstance(found, ImageText)
    if fault := next(chain(caption_faults(found.text, source), score_faults(found.columns, source)), None):
        return reject_unfit(found, source, Unfit(*fault), "filter" if fault[0] == DROPPED else "read")
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
