"""Plans: what a recipe will make, how much and how long, from a sample of its input."""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group
from rich.table import Table

from ..packing.binpack import plan
from ..packing.example import Span
from ..packing.ledger import KEPT
from ..packing.report import Reject
from ..packing.row import Row
from ..packing.thin import VIDEO, plan_thinning
from ..recipe import PackSection, Recipe
from ..sources import BookQuestionsSource, Source
from .book_questions import passages
from .deny import with_deny_lists
from .models import text_tokenizer
from .reading.listing import list_parts
from .records import Found
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
      seconds: estimated for one worker.
    """

    bytes: int
    parts: int
    sampled: float
    records: int
    kept: int
    tokens: int
    seconds: float
    reasons: dict[str, int] = field(default_factory=dict)


class Shape(NamedTuple):
    """What packing looks at of an example: its length in tokens, its videos' spans, and its side of the split."""

    length: int
    videos: tuple[Span, ...]
    side: Side


class Sample(NamedTuple):
    """The examples that were kept of a sample, and how many each stands for."""

    examples: list[Shape]
    scale: float

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
    job = TokenizeJob(recipe, "")
    width = job.vocabulary.dtype.itemsize
    sources: dict[str, SourcePlan] = {}
    samples: dict[str, Sample] = {}
    for source in recipe.sources:
        sources[source.name], samples[source.name] = plan_source(recipe, source, seconds)
    packs = {f"packed-{p.name}": plan_pack(p, recipe, samples, width) for p in recipe.pack}
    tell_shares(packs.values())
    tokens = sum(p.tokens for p in sources.values())
    return {
        "sources": {name: asdict(p) for name, p in sources.items()},
        "examples": {"tokens": tokens, "bytes": width * tokens},
        "packs": {name: asdict(p) for name, p in packs.items()},
    }


def render_plan(found: dict[str, Any]) -> Group:
    """Show a plan as tables."""
    sources = Table("source", "bytes", "sampled", "records", "kept", "tokens", "one worker", title="Sources")
    for name, s in found["sources"].items():
        minutes = f"{s['seconds'] / 60:,.1f} min"
        counts = (f"{s[key]:,}" for key in ("records", "kept", "tokens"))
        sources.add_row(name, f"{s['bytes']:,}", f"{s['sampled']:.1%}", *counts, minutes)
    packs = Table("data set", "length", "sequences", "fill", "bytes", "share", "mixture", title="Packed")
    for name, p in found["packs"].items():
        sizes = f"{p['length']:,}", f"{p['sequences']:,}", f"{p['fill']:.4f}", f"{p['bytes']:,}", f"{p['share']:.1%}"
        packs.add_row(name, *sizes, "" if p["mixture"] is None else f"{p['mixture']:.1%}")
    reasons = [f"{name}: {reason}: {n:,}" for name, s in found["sources"].items() for reason, n in s["reasons"].items()]
    examples = f"Examples: {found['examples']['tokens']:,} tokens, {found['examples']['bytes']:,} bytes"
    return Group(sources, *reasons, examples, packs)


def plan_source(recipe: Recipe, source: Source, seconds: float) -> tuple[SourcePlan, Sample]:
    """Tokenize a spread-out sample of a source. Returns the estimate, and the examples seen."""
    parts = list(list_parts(source))
    total = sum(size for _, size in parts)
    text_tokenizer(recipe.vocabulary.text).encode("the model is loaded before the clock runs")
    started = time.monotonic()
    reached: deque[float] = deque()  # bytes of the source, for each record on its way
    examples: list[Shape] = []
    reasons: Counter[str] = Counter()
    at = spent = 0.0
    with scratch() as folder:
        records = noted(with_passages(recipe, source, sample(source, parts, folder)), reached, total, started + seconds)
        with closing(tokenize(recipe, source, records, frozenset(source.deny), folder)) as outcomes:
            for outcome in outcomes:
                now = time.monotonic() - started
                if reasons and spent >= seconds and now - spent > PATIENCE:
                    break
                at, spent = reached.popleft(), now
                reasons[f"{outcome.status}: {outcome.reason}" if isinstance(outcome, Reject) else KEPT] += 1
                if not isinstance(outcome, Reject):
                    examples.append(shape_of(outcome, recipe))
            else:
                at = reached.popleft() if reached else at
    sampled = at / total if total else 1.0
    found = Sample(examples, 1 / sampled if sampled else 1.0)
    return estimate(total, len(parts), sampled, reasons, found, spent), found


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


def estimate(
    total: int, parts: int, sampled: float, reasons: Counter[str], found: Sample, seconds: float
) -> SourcePlan:
    """Scale up what was counted of a sample."""
    scaled = {reason: round(n * found.scale) for reason, n in sorted(reasons.items())}
    tokens = round(sum(e.length for e in found.examples) * found.scale)
    records, kept = round(reasons.total() * found.scale), round(len(found.examples) * found.scale)
    return SourcePlan(total, parts, sampled, records, kept, tokens, seconds * found.scale, scaled)


def shape_of(row: Row, recipe: Recipe) -> Shape:
    """Take from an example what packing looks at."""
    (segment,) = row.segments
    side = side_of(recipe.seed, recipe.eval, content_keys(segment.spans, row.exact))
    return Shape(segment.length, tuple(s for s in segment.spans if s.kind == VIDEO), side)


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
        sequences += plan(pieces, section.length).bins * samples[name].scale
        tokens += float(pieces.sum()) * samples[name].scale
    fill = tokens / (sequences * section.length) if sequences else 0.0
    rows = round(sequences)
    return PackPlan(section.length, rows, fill, rows * section.length * width, round(tokens), 0.0, section.share)


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
