"""Plans: what a recipe will make, how much and how long, from a sample of its input."""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group
from rich.table import Table

from ..errors import UserError
from ..packing.binpack import plan
from ..packing.example import Span
from ..packing.ledger import KEPT
from ..packing.report import Reject
from ..packing.row import Row
from ..packing.thin import VIDEO, frame_count, plan_thinning
from ..packing.turns import CHUNK, facts
from ..recipe import PackSection, Recipe
from ..sources import BookQuestionsSource, ChatSource, Source, TextSource
from .book_questions import passages
from .chats import IMAGE
from .cost import amount, cost_of, duration, render_cost
from .decoding.decoders import close_kept
from .deny import with_deny_lists
from .models import pictures_of, text_tokenizer
from .pack import LEAST_TOKENS, MOST_TOKENS, PER_UNIT
from .reading.listing import list_parts
from .records import Found
from .rehearsal import REJECTS, TOKENS, pace_of, processor_seconds, rehearse, with_blank_codes
from .sampling import sample
from .scratch import scratch
from .split import Side, content_keys, side_of
from .tokenize import TokenizeJob, tokenize

SAMPLE_SECONDS = 20.0  # spent on each source at the most
PATIENCE = 0.1  # seconds for the next record when the time is over: those encoded in one batch come one upon the other


@dataclass
class SourcePlan:
    """What a sample says of a source; counts are scaled up by bytes from what was read.

    Bytes within a part that was not read to its end are estimated.

    Attributes:
      bytes, parts: of the whole source, as it lies (compressed where it is).
      sampled: the fraction of the bytes that was read; 1 means that the counts are exact.
      records, kept, tokens: estimates for the whole source; tokens are those of the kept.
      seconds: estimated for one worker; where a plan is measured, of a processor, without the model of pictures.
      frames: that are made codes; a clip that several chats ask about counts once.
      chunks, chunk_tokens: of books that questions are asked about.
    """

    bytes: int
    parts: int
    sampled: float
    records: int
    kept: int
    tokens: int
    seconds: float
    reasons: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    chunks: int = 0
    chunk_tokens: int = 0


class Shape(NamedTuple):
    """What packing looks at of an example: its length in tokens, its videos' spans, and its side of the split.

    Attributes:
      frames: that were made codes for it.
      chunks: tokens of each chunk that a question is asked about.
    """

    length: int
    videos: tuple[Span, ...]
    side: Side
    frames: int
    chunks: tuple[int, ...]


@dataclass
class Sample:
    """What was seen of a source.

    Attributes:
      examples: those that were kept.
      scale: how many each stands for.
      complete: was all read that lies here?
      reasons: what became of the records.
      books: ids of the books that passages are of.
      shown: contents of the pictures and clips that were made codes; a chat that shows them again is given those.
      rows, rejected: the first of them in full, where they are to be rehearsed with.
    """

    examples: list[Shape] = field(default_factory=list)
    scale: float = 1.0
    complete: bool = False
    reasons: Counter[str] = field(default_factory=Counter)
    books: set[str] = field(default_factory=set)
    shown: set[str] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    rejected: list[Reject] = field(default_factory=list)

    def of(self, split: str) -> list[Shape]:
        """Take the examples of one side of the split, or of `all`."""
        return self.examples if split == "all" else [e for e in self.examples if e.side == split]


@dataclass
class PackPlan:
    """What a packing section will make: estimates, where the sample is not the whole.

    Attributes:
      share: of the tokens that all packing sections of this length hold.
      mixture: the share of a training mixture that the recipe means it for.
    """

    length: int
    sequences: int
    fill: float
    bytes: int
    tokens: int
    share: float
    mixture: float | None


def plan_recipe(recipe: Recipe, seconds: float = SAMPLE_SECONDS) -> dict[str, Any]:
    """Estimate what a recipe makes: plain data.

    Args:
      seconds: time spent on each source's sample, at the most and roughly: what is being encoded is awaited.
    """
    recipe = with_deny_lists(recipe)
    return told_of(recipe, {source.name: plan_source(recipe, source, seconds) for source in recipe.sources})


def measure_recipe(recipe: Recipe, seconds: float = SAMPLE_SECONDS) -> dict[str, Any]:
    """Estimate what a recipe makes, and with `cost` what that costs: plain data.

    Times are those of processors, so that other work on this machine matters little. The model of pictures is timed
    apart from all else, for which it is left out: it may run elsewhere.

    Args:
      seconds: time spent on each source's sample, roughly: a small one is read again until it is over.
    """
    recipe = with_deny_lists(recipe)
    with scratch() as folder:
        pace = pace_of(pictures_of(recipe.vocabulary)) if recipe.vocabulary.vision else None
        blank = with_blank_codes(recipe, folder)
        planned = {source.name: measure_source(blank, source, seconds) for source in recipe.sources}
        samples = {name: (sample.rows, sample.rejected) for name, (_, sample) in planned.items()}
        rehearsed = rehearse(blank, samples, folder)
    found = told_of(recipe, planned)
    return {**found, "cost": cost_of(recipe, found, rehearsed, pace)}


def told_of(recipe: Recipe, planned: dict[str, tuple[SourcePlan, Sample]]) -> dict[str, Any]:
    """Add what samples say of a recipe's sources up: plain data."""
    width = TokenizeJob(recipe, "").vocabulary.dtype.itemsize
    samples = {name: sample for name, (_, sample) in planned.items()}
    packs = {f"packed-{p.name}": plan_pack(p, recipe, samples, width) for p in recipe.pack}
    tell_shares(packs.values())
    tokens = sum(plan.tokens for plan, _ in planned.values())
    return {
        "sources": {name: asdict(plan) for name, (plan, _) in planned.items()},
        "examples": {"tokens": tokens, "bytes": width * tokens},
        "packs": {name: asdict(p) for name, p in packs.items()},
    }


def render_plan(found: dict[str, Any]) -> Group:
    """Show a plan as tables, large numbers rounded."""
    sources = Table("source", "bytes", "sampled", "records", "kept", "tokens", "one worker", title="Sources")
    for name, s in found["sources"].items():
        counts = (amount(s[key]) for key in ("records", "kept", "tokens"))
        sampled = f"{s['sampled']:.1%}" if s["sampled"] >= 0.001 else f"{s['sampled']:.1e}"
        sources.add_row(name, amount(s["bytes"]), sampled, *counts, duration(s["seconds"]))
    packs = Table("data set", "length", "sequences", "fill", "bytes", "share", "mixture", title="Packed")
    for name, p in found["packs"].items():
        sizes = f"{p['length']:,}", amount(p["sequences"]), f"{p['fill']:.4f}", amount(p["bytes"]), f"{p['share']:.1%}"
        packs.add_row(name, *sizes, "" if p["mixture"] is None else f"{p['mixture']:.1%}")
    reasons = [f"{name}: {reason}: {n:,}" for name, s in found["sources"].items() for reason, n in s["reasons"].items()]
    examples = f"Examples: {found['examples']['tokens']:,} tokens, {found['examples']['bytes']:,} bytes"
    cost = render_cost(found["cost"], found) if "cost" in found else ()
    return Group(sources, *reasons, examples, packs, *cost)


def plan_source(recipe: Recipe, source: Source, seconds: float, keep: int = 0) -> tuple[SourcePlan, Sample]:
    """Tokenize a spread-out sample of a source. Returns the estimate, and the examples seen.

    Args:
      keep: tokens, about which many of the first examples are kept in full.
    """
    parts = list(list_parts(source))
    total = sum(size for _, size in parts)
    text_tokenizer(recipe.vocabulary.text).encode("the model is loaded before the clock runs")
    started = time.monotonic()
    reached: deque[float] = deque()  # bytes of the source, for each record on its way
    found = Sample()
    at = spent = 0.0
    with scratch() as folder:
        records = noted(with_passages(recipe, source, sample(source, parts, folder)), reached, total, started + seconds)
        with closing(tokenize(recipe, source, records, frozenset(source.deny), folder)) as outcomes:
            for outcome in outcomes:
                now = time.monotonic() - started
                if found.reasons and spent >= seconds and now - spent > PATIENCE:
                    break
                at, spent = reached.popleft(), now
                keep -= take(outcome, found, recipe, source, keep > 0)
            else:
                at = reached.popleft() if reached else at
    sampled = at / total if total else 1.0
    more = times(source, found, sampled)
    found.scale, found.complete = more / sampled if sampled else 1.0, at >= total
    return estimate(more * total, more * len(parts), sampled / more, found, spent), found


def take(outcome: Row | Reject, found: Sample, recipe: Recipe, source: Source, keep: bool) -> int:
    """Note what became of a record, and keep it in full if that is wanted. Returns its tokens."""
    if isinstance(outcome, Reject):
        found.reasons[f"{outcome.status}: {outcome.reason}"] += 1
        found.books.add(book_of(source, outcome.record))
        if keep and len(found.rejected) < REJECTS:
            found.rejected.append(outcome)
        return 0
    found.reasons[KEPT] += 1
    found.books.add(book_of(source, outcome.segments[0].record))
    found.examples.append(shape_of(outcome, recipe, source, found.shown))
    if keep:
        found.rows.append(outcome)
    return len(outcome.tokens)


def book_of(source: Source, record: str) -> str:
    """Return the id of the book that a passage is named after, "" where the source has none."""
    return record.rpartition("#")[0] or record if isinstance(source, BookQuestionsSource) else ""


def times(source: Source, found: Sample, sampled: float) -> float:
    """Say how many times what lies here is the whole source, given what a fraction of its bytes has.

    Raises:
      UserError: if the recipe says how many records there are, and here is none to scale up from.
    """
    if source.records is None:
        return 1.0
    read = len(found.books) if isinstance(source, BookQuestionsSource) else found.reasons.total()
    if not read:
        raise UserError(
            f"source {source.name}: records is {source.records:,}, and path holds none to scale up from: "
            "name a sample in path, or leave records out"
        )
    return source.records * sampled / read


def measure_source(recipe: Recipe, source: Source, seconds: float) -> tuple[SourcePlan, Sample]:
    """Plan a source and time it by the processor; one that is read whole is read again until the time is over."""
    plan_source(recipe, source, 0.0)  # what a first call prepares is no part of it
    close_kept()
    begun, deadline, passes = processor_seconds(), time.monotonic() + seconds, 1
    plan, found = plan_source(recipe, source, seconds, TOKENS)
    while found.complete and plan.records and time.monotonic() < deadline:
        read_again(recipe, source)
        passes += 1
    close_kept()  # the time of processes counts when they have ended
    return replace(plan, seconds=(processor_seconds() - begun) / passes * found.scale), found


def read_again(recipe: Recipe, source: Source) -> None:
    """Tokenize all that lies here, for the time that it takes alone."""
    with scratch() as folder:
        found = with_passages(recipe, source, sample(source, list(list_parts(source)), folder))
        for _ in tokenize(recipe, source, (record for record, _ in found), frozenset(source.deny), folder):
            pass


def with_passages(
    recipe: Recipe, source: Source, records: Iterable[tuple[Found, float]]
) -> Iterator[tuple[Any, float]]:
    """Yield records with their places; of books with questions their passages, with questions that cost nothing."""
    if not isinstance(source, BookQuestionsSource):
        yield from records
        return
    from .question_rows import guessed

    asked = guessed(recipe, source)
    for found, place in records:
        for passage in passages(recipe, source, [found], frozenset(source.deny), asked):
            yield passage, place


def noted(records: Iterable[tuple[Any, float]], reached: deque[float], total: int, deadline: float) -> Iterator[Any]:
    """Yield records, no more after the deadline, and note the place of each, and of the end where it is reached."""
    for found, place in records:
        reached.append(place)
        yield found
        if time.monotonic() >= deadline:
            return
    reached.append(total)


def estimate(total: float, parts: float, sampled: float, found: Sample, seconds: float) -> SourcePlan:
    """Scale up what was counted of a sample."""
    seen, reasons, scale = found.examples, found.reasons, found.scale
    chunks = [tokens for e in seen for tokens in e.chunks]
    return SourcePlan(
        bytes=round(total),
        parts=round(parts),
        sampled=sampled,
        records=round(reasons.total() * scale),
        kept=round(len(seen) * scale),
        tokens=round(sum(e.length for e in seen) * scale),
        seconds=seconds * scale,
        reasons={reason: round(n * scale) for reason, n in sorted(reasons.items())},
        frames=round(sum(e.frames for e in seen) * scale),
        chunks=round(len(chunks) * scale),
        chunk_tokens=round(sum(chunks) * scale),
    )


def shape_of(row: Row, recipe: Recipe, source: Source, shown: set[str]) -> Shape:
    """Take from an example what packing looks at, and what it took to make it.

    Args:
      shown: contents of the pictures and clips that were made codes before, in whose place those codes serve again.
    """
    (segment,) = row.segments
    spans = segment.spans
    side = side_of(recipe.seed, recipe.eval, content_keys(spans, row.exact))
    chunks = tuple(s.end - s.start for s in spans if s.kind == CHUNK)
    frames = 0 if isinstance(source, TextSource) else frames_of(spans, shown, isinstance(source, ChatSource))
    return Shape(segment.length, tuple(s for s in spans if s.kind == VIDEO), side, frames, chunks)


def frames_of(spans: Iterable[Span], shown: set[str], once: bool) -> int:
    """Count the frames of pictures and clips; `once` says that each content is made codes a single time."""
    frames = 0
    for span in spans:
        if span.kind in (IMAGE, VIDEO):
            content = str(facts(span.ref).get("content", ""))
            frames += 0 if once and content in shown else frame_count(span) if span.kind == VIDEO else 1
            shown.add(content)
    return frames


def plan_pack(
    section: PackSection,
    recipe: Recipe,
    samples: dict[str, Sample],
    width: int,
) -> PackPlan:
    """Pack the sample's examples and scale the sequences up; duplicates, known only later, are not taken off."""
    names = section.sources or [s.name for s in recipe.sources]
    sequences, tokens = 0.0, 0.0
    for name in names:  # no sequence mixes two sources
        found = samples[name].of(section.split)
        pieces = _windows(found, section.length) if recipe.source(name).kind == "books" else _whole(found, section)
        together = repeats(int(pieces.sum()), section.length, samples[name].scale)
        sequences += plan(np.tile(pieces, together), section.length).bins * samples[name].scale / together
        tokens += float(pieces.sum()) * samples[name].scale
    fill = tokens / (sequences * section.length) if sequences else 0.0
    rows = round(sequences)
    return PackPlan(section.length, rows, fill, rows * section.length * width, round(tokens), 0.0, section.share)


def repeats(tokens: int, length: int, scale: float) -> int:
    """Say how often a small sample stands in one work unit of packing, which fills sequences from all of them."""
    unit = min(max(PER_UNIT * length, LEAST_TOKENS), MOST_TOKENS)
    return max(1, min(int(scale), unit // max(1, tokens)))


def tell_shares(packs: Iterable[PackPlan]) -> None:
    """Note which share of the tokens of its length each data set holds."""
    totals: Counter[int] = Counter()
    for found in packs:
        totals[found.length] += found.tokens
    for found in packs:
        found.share = found.tokens / totals[found.length] if totals[found.length] else 0.0


def _whole(examples: list[Shape], section: PackSection) -> np.ndarray:
    """Return the lengths of the examples with pictures that fit, their videos thinned as the section says."""
    plans = [plan_thinning(e.length, e.videos, section.length, section.frames) for e in examples]
    return np.array([p.length for p in plans if p and p.length <= section.length], np.int64)


def _windows(examples: list[Shape], length: int) -> np.ndarray:
    lengths = np.array([e.length for e in examples], np.int64)
    whole = np.repeat(length, int((lengths // length).sum()))
    rest = lengths % length
    return np.concatenate((whole, rest[rest > 1]))
