"""Plans: what a recipe will make, how much and how long, from a sample of its input."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group
from rich.table import Table

from ..packing.binpack import plan
from ..packing.ledger import KEPT
from ..packing.report import Reject
from ..recipe import PackSection, Recipe
from ..sources import Source
from .deny import with_deny_lists
from .models import text_tokenizer
from .pack import in_eval
from .reading.listing import list_parts
from .records import Found
from .tokenize import TokenizeJob, read, tokenize
from .units import Part

SAMPLE_SECONDS = 20.0  # spent on each source at the most
SAMPLE_PARTS = 64


@dataclass
class SourcePlan:
    """What a sample says of a source; counts are scaled up by bytes from what was read.

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


class Lengths(NamedTuple):
    """Lengths of the examples that a sample kept, which are on the eval side, and how many each stands for."""

    tokens: np.ndarray
    in_eval: np.ndarray
    scale: float

    def of(self, split: str) -> np.ndarray:
        """Take the lengths of one side of the split, or of `all`."""
        return self.tokens if split == "all" else self.tokens[self.in_eval == (split == "eval")]


@dataclass
class PackPlan:
    """What a packing section will make: estimates, where the sample is not the whole."""

    length: int
    sequences: int
    fill: float
    bytes: int


def plan_recipe(recipe: Recipe, seconds: float = SAMPLE_SECONDS) -> dict[str, Any]:
    """Estimate what a recipe makes: plain data.

    Args:
      seconds: time spent on each source's sample, at the most and roughly.
    """
    recipe = with_deny_lists(recipe)
    job = TokenizeJob(recipe, "")
    width = job.vocabulary.dtype.itemsize
    sources: dict[str, SourcePlan] = {}
    lengths: dict[str, Lengths] = {}
    for source in recipe.sources:
        sources[source.name], lengths[source.name] = plan_source(recipe, source, seconds)
    packs = {f"packed-{p.name}": plan_pack(p, recipe, lengths, width) for p in recipe.pack}
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
    packs = Table("data set", "length", "sequences", "fill", "bytes", title="Packed")
    for name, p in found["packs"].items():
        packs.add_row(name, f"{p['length']:,}", f"{p['sequences']:,}", f"{p['fill']:.4f}", f"{p['bytes']:,}")
    reasons = [f"{name}: {reason}: {n:,}" for name, s in found["sources"].items() for reason, n in s["reasons"].items()]
    examples = f"Examples: {found['examples']['tokens']:,} tokens, {found['examples']['bytes']:,} bytes"
    return Group(sources, *reasons, examples, packs)


def plan_source(recipe: Recipe, source: Source, seconds: float) -> tuple[SourcePlan, Lengths]:
    """Tokenize a spread-out sample of a source. Returns the estimate, and the lengths of the examples seen."""
    parts = list(list_parts(source))
    total = sum(size for _, size in parts)
    text_tokenizer(recipe.vocabulary.text).encode("the model is loaded before the clock runs")
    started = time.monotonic()
    seen = [0, 0]  # bytes, records

    def sample() -> Iterator[Found]:
        for part, size in _spread(parts):
            for found in read(source, part):
                seen[1] += 1
                yield found
            seen[0] += size
            if time.monotonic() - started > seconds:
                return

    lengths: list[int] = []
    sides: list[bool] = []
    reasons: dict[str, int] = {}
    for outcome in tokenize(recipe, source, sample(), frozenset(source.deny)):
        reason = f"{outcome.status}: {outcome.reason}" if isinstance(outcome, Reject) else KEPT
        reasons[reason] = reasons.get(reason, 0) + 1
        if not isinstance(outcome, Reject):
            lengths.append(len(outcome.tokens))
            sides.append(in_eval(recipe.seed, recipe.eval, source.name, outcome.segments[0].record))
    records = seen[1]
    sampled = seen[0] / total if total else 1.0
    scale = 1 / sampled if sampled else 1.0
    spent = (time.monotonic() - started) * scale
    counted = {reason: round(n * scale) for reason, n in sorted(reasons.items())}
    tokens = round(sum(lengths) * scale)
    whole = SourcePlan(
        total, len(parts), sampled, round(records * scale), round(len(lengths) * scale), tokens, spent, counted
    )
    return whole, Lengths(np.array(lengths, np.int64), np.array(sides, bool), scale)


def _spread(parts: list[tuple[Part, int]]) -> Iterator[tuple[Part, int]]:
    """Yield parts from all over a source: every 64th first, then those between, until all were."""
    order = np.argsort(np.arange(len(parts)) % max(1, len(parts) // SAMPLE_PARTS), kind="stable")
    return (parts[i] for i in islice(order, len(parts)))


def plan_pack(
    section: PackSection,
    recipe: Recipe,
    lengths: dict[str, Lengths],
    width: int,
) -> PackPlan:
    """Pack the sample's lengths and scale the sequences up; duplicates, known only later, are not taken off."""
    names = section.sources or [s.name for s in recipe.sources]
    sequences, tokens = 0.0, 0.0
    for name in names:  # no sequence mixes two sources
        found = lengths[name].of(section.split)
        pieces = _windows(found, section.length) if recipe.source(name).kind == "books" else _whole(found, section)
        bins = plan(pieces, section.length).bins
        sequences += bins * lengths[name].scale
        tokens += float(pieces.sum()) * lengths[name].scale
    fill = tokens / (sequences * section.length) if sequences else 0.0
    return PackPlan(section.length, round(sequences), fill, round(sequences) * section.length * width)


def _whole(lengths: np.ndarray, section: PackSection) -> np.ndarray:
    """Take the examples with pictures that fit, or, where videos are thinned, come to fit."""
    return np.minimum(lengths, section.length) if section.frames else lengths[lengths <= section.length]


def _windows(lengths: np.ndarray, length: int) -> np.ndarray:
    whole = np.repeat(length, int((lengths // length).sum()))
    rest = lengths % length
    return np.concatenate((whole, rest[rest > 1]))
