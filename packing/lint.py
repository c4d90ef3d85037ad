"""The rules of rows: what no row may break, whoever wrote it. A writer asks before it writes, `verify` afterwards."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..tokenizers.vocabulary import Vocabulary
from .shard import Batch, Kind
from .thin import VIDEO
from .weights import Rule, segment_weights

ANSWERING = ("chat", "image-chat", "video-chat", "book-qa")  # tasks that train on answers alone
ANSWER = "assistant"  # the kind of a span that covers an answer and the end of sequence after it
IMAGE = "image"  # the kind of a span that covers a picture's codes and ending
MOST_FRAMES = 2**31  # of a clip: spans count its tokens in int32
ROUNDING = 1e-6  # of float32, relative
NOWHERE = np.empty(0, np.int64)


class Breach(NamedTuple):
    """Say which row of a batch breaks a rule, how, and the record of the first segment that does."""

    row: int
    what: str
    record: str = ""


def broken_rules(batch: Batch, vocabulary: Vocabulary, kind: Kind) -> list[Breach]:
    """Find the rows of a batch that break a rule.

    Lengths, runs, spans and the range of ids come first: all other rules rely on them.
    """
    return _misshapen(batch, vocabulary, kind) or _misused(View(batch, vocabulary))


def _misshapen(batch: Batch, vocabulary: Vocabulary, kind: Kind) -> list[Breach]:
    lengths, segments = np.diff(batch.token_offsets), np.diff(batch.segment_offsets)
    used = _sums(batch.column("length"), batch.segment_offsets)
    runs = batch.trained
    first = np.zeros(len(runs), bool)
    first[batch.trained_offsets[:-1][np.diff(batch.trained_offsets) > 0]] = True
    wrong_runs = _sums((runs < 0) | ((runs == 0) & ~first), batch.trained_offsets)
    found = []
    if kind.length:
        found += _say(lengths != kind.length, f"does not have the {kind.length:,} tokens that the manifest says")
    else:
        found += _say(segments != 1, "does not have exactly one example")
        found += _say(used != lengths, "has another number of tokens than its example")
    found += _say(_sums(batch.column("length") < 1, batch.segment_offsets), "has a segment without tokens")
    found += _say(used > lengths, "has segments that are longer than the row")
    found += _say(wrong_runs, "has a negative or an empty run of trained tokens")
    found += _say(_sums(runs, batch.trained_offsets) != lengths, "has trained runs that do not sum up to its tokens")
    found += _say(_sums(_bad_spans(batch), batch.segment_offsets), "has a span that leaves its segment")
    if len(batch.tokens) and batch.tokens.max() >= vocabulary.size:
        beyond = _sums(batch.tokens >= vocabulary.size, batch.token_offsets)
        found += _say(beyond, f"has an id beyond the vocabulary's {vocabulary.size:,}")
    return found


def _bad_spans(batch: Batch) -> np.ndarray:
    spans = batch.strings("spans")
    offsets = spans.offsets.to_numpy()
    low, high = (spans.values.field(name).to_numpy() for name in ("start", "end"))
    room = np.repeat(batch.column("length"), np.diff(offsets))
    return _sums((low < 0) | (low > high) | (high > room), offsets) > 0


def _misused(view: "View") -> list[Breach]:
    rows = view.rows
    found = _say(view.runs.before(rows[1:]) > view.runs.before(rows[:-1] + view.used), "trains padding")
    found += _say(_padded_wrongly(view), "has padding other than id 0")
    for rule, what in RULES:
        found += view.say(rule(view), what)
    return found


class Spans(NamedTuple):
    """Spans of one kind: their segments, `[low, high)` among all tokens, and refs."""

    segment: np.ndarray
    low: np.ndarray
    high: np.ndarray
    ref: pa.Array


class View:
    """The tokens of a batch's rows end to end, and where its segments lie in them: those of all rows, in order.

    Attributes:
      rows: borders of the rows, int64 `[rows + 1]`; `used` of a row's tokens are its segments', the rest is padding.
      starts, ends, owner: of each segment its borders and its row; `trained`, `vision`: trained tokens, and those of
        them that are of pictures.
    """

    def __init__(self, batch: Batch, vocabulary: Vocabulary):
        self.batch, self.vocabulary = batch, vocabulary
        self.tokens = batch.tokens[batch.token_offsets[0] : batch.token_offsets[-1]]
        self.rows = batch.token_offsets.astype(np.int64) - batch.token_offsets[0]
        self.lengths = batch.column("length").astype(np.int64)
        self.used = _sums(self.lengths, batch.segment_offsets)
        self.owner = np.repeat(np.arange(batch.rows), np.diff(batch.segment_offsets))
        gaps = self.rows[:-1] - (np.cumsum(self.used) - self.used)
        self.starts = np.cumsum(self.lengths) - self.lengths + gaps[self.owner]
        self.ends = self.starts + self.lengths
        self.runs = _Runs(batch)
        self.trained = self.runs.before(self.ends) - self.runs.before(self.starts)
        self.has_pictures = len(self.tokens) > 0 and bool(vocabulary.is_vision(self.tokens.max()))
        self.vision = self._count(self.pictured & self.flags) if self.has_pictures else np.zeros_like(self.trained)

    @cached_property
    def pictured(self) -> np.ndarray:
        """Is a token a picture's? bool, one for each token."""
        return self.vocabulary.is_vision(self.tokens)

    @cached_property
    def flags(self) -> np.ndarray:
        """Is a token trained? bool, one for each token."""
        return self.batch.flags()

    def _count(self, flags: np.ndarray) -> np.ndarray:
        """Count the flagged tokens of each segment."""
        borders = np.stack((self.starts, self.ends), axis=1).ravel()
        return np.add.reduceat(np.append(flags, False), borders, dtype=np.int32)[::2]

    def spans(self, kind: str) -> Spans:
        """Take the spans of a kind."""
        column = self.batch.strings("spans")
        chosen = np.flatnonzero(pc.equal(column.values.field("kind"), kind).to_numpy(zero_copy_only=False))
        segment = np.searchsorted(column.offsets.to_numpy(), chosen, side="right") - 1
        low, high = (column.values.field(name).to_numpy()[chosen] + self.starts[segment] for name in ("start", "end"))
        return Spans(segment, low, high, column.values.field("ref").take(pa.array(chosen)))

    def mark(self, segments: np.ndarray) -> np.ndarray:
        """Turn numbers of segments into bool `[segments]`."""
        return np.bincount(segments, minlength=len(self.starts)) > 0

    def at(self, places: np.ndarray) -> np.ndarray:
        """Mark the segments in which places lie; what lies in padding is another rule's."""
        segments = np.searchsorted(self.starts, places, side="right") - 1
        ends = np.append(self.ends, 0)  # 0 for those before the first segment, numbered -1
        return self.mark(segments[places < ends[segments]])

    def cover(self, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
        """Mark the tokens inside any `[low, high)`: bool, one for each token."""
        borders = np.concatenate(([0], lows, highs, [len(self.tokens)]))
        deeper = np.repeat([0, 1, -1, 0], [1, len(lows), len(highs), 1])
        order = np.argsort(borders, kind="stable")
        return np.repeat(np.cumsum(deeper[order])[:-1] > 0, np.diff(borders[order]))

    def overlapping(self, segment: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
        """Mark the segments in which one `[low, high)` begins inside another one."""
        order = np.lexsort((highs, lows))
        return self.mark(segment[order[1:]][lows[order[1:]] < highs[order[:-1]]])

    def say(self, segments: np.ndarray, what: str) -> list[Breach]:
        """Name each row that has one of the marked segments, by the first of them."""
        if not segments.any():
            return []
        numbers = np.flatnonzero(segments)
        rows, first = np.unique(self.owner[numbers], return_index=True)
        records = self.batch.strings("record")
        return [Breach(int(r), what, records[int(s)].as_py()) for r, s in zip(rows, numbers[first], strict=True)]

    @cached_property
    def answering(self) -> np.ndarray:
        """Mark the segments that are trained on answers alone: by their task, or because they have some."""
        tasks = pc.is_in(self.batch.strings("task"), pa.array(ANSWERING)).to_numpy(zero_copy_only=False)
        return tasks | self.mark(self.answers.segment)

    @cached_property
    def answers(self) -> Spans:
        return self.spans(ANSWER)

    @cached_property
    def misplaced(self) -> tuple[np.ndarray, np.ndarray]:
        """Find the tokens inside answers that are not trained, and the trained ones outside; none without answers."""
        if not len(self.answers.low):
            return NOWHERE, NOWHERE
        inside = self.cover(self.answers.low, self.answers.high)
        return np.flatnonzero(inside & ~self.flags), np.flatnonzero(self.flags & ~inside)

    @cached_property
    def pictures(self) -> "Pictures":
        return Pictures(self)


def _padded_wrongly(view: View) -> np.ndarray:
    padding = np.diff(view.rows) - view.used
    owner = np.repeat(np.arange(len(padding)), padding)
    places = np.arange(len(owner)) + (view.rows[:-1] + view.used - (np.cumsum(padding) - padding))[owner]
    return np.bincount(owner[view.tokens[places] != 0], minlength=len(padding))


def _nothing_trained(view: View) -> np.ndarray:
    return view.trained == 0


def _first_trained(view: View) -> np.ndarray:
    return view.runs.before(view.starts + 1) > view.runs.before(view.starts)


def _miscounted(view: View) -> np.ndarray:
    text, vision = view.batch.column("trained_text"), view.batch.column("trained_vision")
    return (view.trained - view.vision != text) | (view.vision != vision)


def _weighed_wrongly(view: View) -> np.ndarray:
    """Add up what the loader, which goes by the stored counts, makes each trained token weigh."""
    text, vision = view.trained - view.vision, view.vision
    stored = view.batch.column("trained_text"), view.batch.column("trained_vision")
    modalities = (text > 0).astype(float) + (vision > 0)
    owed = {
        Rule.LWM: modalities * (0.5 if view.vocabulary.codes else 1.0),
        Rule.EXAMPLE: (modalities > 0).astype(float),
        Rule.TOKEN: view.trained.astype(float),
    }
    wrong = np.zeros(len(text), bool)
    for rule in Rule:
        of_text, of_vision = (w.astype(float) for w in segment_weights(rule, *stored, view.vocabulary))
        wrong |= ~np.isclose(of_text * text + of_vision * vision, owed[rule], rtol=ROUNDING, atol=0)
    return wrong


def _all_trained(view: View) -> np.ndarray:
    return view.answering & (view.trained == view.lengths - 1) & (view.trained > 0)


def _unanswered(view: View) -> np.ndarray:
    return view.answering & ~view.mark(view.answers.segment)


def _trained_outside(view: View) -> np.ndarray:
    return view.at(view.misplaced[1]) & view.mark(view.answers.segment)


def _untrained_inside(view: View) -> np.ndarray:
    return view.at(view.misplaced[0])


def _overlapping_answers(view: View) -> np.ndarray:
    return view.overlapping(*view.answers[:3])


def _cut_answer(view: View) -> np.ndarray:
    segment, low, high, _ = view.answers
    return view.mark(segment[(low == high) | (view.tokens[high - 1] != view.vocabulary.eos)])


def _ends_otherwise(view: View) -> np.ndarray:
    last = np.zeros(len(view.starts), np.int64)
    np.maximum.at(last, view.answers.segment, view.answers.high)
    return view.mark(view.answers.segment) & (last != view.ends)


class Pictures:
    """The frames of a batch, as its spans tell them, held against its ids: marks of the segments that differ."""

    def __init__(self, view: View):
        images, clips = view.spans(IMAGE), view.spans(VIDEO)
        self.uneven = self.unended = self.stray = self.bare = self.mixed = self.overlapping = np.zeros(
            len(view.starts), bool
        )
        if not (len(images.low) or len(clips.low) or view.has_pictures):
            return
        segment, low, high = (np.concatenate(pair) for pair in zip(images[:3], clips[:3], strict=True))
        self.overlapping = view.overlapping(segment, low, high)
        told = np.fromiter(map(_frame_count, clips.ref.to_pylist()), np.int64, len(clips.low))
        frames, sizes = np.concatenate((np.ones(len(images.low), np.int64), told)), high - low
        even = (frames > 0) & (sizes > 0) & (sizes % np.maximum(frames, 1) == 0)
        self.uneven = view.mark(segment[~even])
        wanted = np.sort(_endings(low[even], sizes[even], frames[even]))
        places = np.flatnonzero(view.tokens >= view.vocabulary.eof)
        there = 2 * places + (view.tokens[places] == view.vocabulary.eov)
        alike = np.array_equal(wanted, there)  # what is usual, and soon told
        self.unended = view.at(NOWHERE if alike else np.setdiff1d(wanted, there) // 2) & ~self.uneven
        self.stray = view.at(NOWHERE if alike else np.setdiff1d(there, wanted) // 2) & ~self.uneven
        covered = view.cover(low, high)
        self.bare = view.at(np.flatnonzero(view.pictured & ~covered))
        self.mixed = view.at(np.flatnonzero(covered & ~view.pictured))


def _frame_count(ref: str) -> int:
    """Read how many frames a clip's span covers; 0 where it does not tell."""
    try:
        told = json.loads(ref)["frames"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return told if type(told) is int and 0 < told < MOST_FRAMES else 0


def _endings(low: np.ndarray, sizes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Say where frames must end: twice each place, and one more where it is a picture's last."""
    number = np.arange(frames.sum()) - np.repeat(np.cumsum(frames) - frames, frames) + 1
    places = np.repeat(low, frames) + number * np.repeat(sizes // frames, frames) - 1
    return 2 * places + (number == np.repeat(frames, frames))


RULES: Sequence[tuple[Callable[[View], np.ndarray], str]] = (
    (_miscounted, "has a segment that counts other trained tokens than it has"),
    (_first_trained, "trains the first token of a segment, which has no predictor"),
    (_nothing_trained, "has a segment in which nothing is trained"),
    (_all_trained, "trains all of a segment that asks and answers, the question too"),
    (_unanswered, "has a segment without an answer, whose task is to train on answers"),
    (_trained_outside, "trains a token outside an answer"),
    (_untrained_inside, "has an answer that is not trained throughout"),
    (_overlapping_answers, "has answers that overlap"),
    (_cut_answer, "has an answer without the end of sequence after it"),
    (_ends_otherwise, "has a segment whose last answer is not its end"),
    (lambda view: view.pictures.overlapping, "has pictures that overlap"),
    (lambda view: view.pictures.uneven, "has a clip that is not of as many equal frames as its span says"),
    (lambda view: view.pictures.unended, "has a picture or a frame without its end"),
    (lambda view: view.pictures.stray, "has the end of a picture or a frame where none ends"),
    (lambda view: view.pictures.bare, "has ids of pictures outside a picture's span"),
    (lambda view: view.pictures.mixed, "has ids of text inside a picture's span"),
    (_weighed_wrongly, "has a segment whose weights do not add up to its rule's"),
)


class _Runs:
    """The trained runs of all rows of a batch end to end: borders, and trained tokens before each."""

    def __init__(self, batch: Batch):
        offsets = batch.trained_offsets
        runs = batch.trained[offsets[0] : offsets[-1]].astype(np.int64)
        odd = (np.arange(len(runs)) - np.repeat(offsets[:-1] - offsets[0], np.diff(offsets))) % 2 == 1
        self.borders = np.concatenate(([0], np.cumsum(runs)))
        self.trained = np.concatenate(([0], np.cumsum(runs * odd)))

    def before(self, places: np.ndarray) -> np.ndarray:
        """Count the trained tokens before each place: linear in a run, and whole numbers are exact in float64."""
        return np.interp(places, self.borders, self.trained).astype(np.int64)


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Add up the values of each row, int64."""
    total = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    return total[offsets[1:]] - total[offsets[:-1]]


def _say(rows: np.ndarray, what: str) -> list[Breach]:
    return [Breach(int(i), what) for i in np.flatnonzero(rows)]
