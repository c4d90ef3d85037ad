"""Plans: what a recipe will make, how much and how long, from a sample of its input."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from ..packing.binpack import lower_bound, plan
from ..packing.ledger import KEPT
from ..packing.report import Reject
from ..recipe import BooksSource, PackSection, Recipe
from .books import list_parts
from .tokenize import TokenizeJob, tokenize
from .units import Part, Unit

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
    job = TokenizeJob(recipe, "")
    width = job.vocabulary.dtype.itemsize
    sources: dict[str, SourcePlan] = {}
    lengths: dict[str, np.ndarray] = {}
    for source in recipe.sources:
        sources[source.name], lengths[source.name] = plan_source(recipe, source, seconds)
    packs = {f"packed-{p.name}": plan_pack(p, recipe, sources, lengths, width) for p in recipe.pack}
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


def plan_source(recipe: Recipe, source: BooksSource, seconds: float) -> tuple[SourcePlan, np.ndarray]:
    """Tokenize a spread-out sample of a source. Returns the estimate, and the lengths of the examples seen."""
    parts = list(list_parts(source))
    total = sum(size for _, size in parts)
    started = time.monotonic()
    read = records = 0
    lengths: list[int] = []
    reasons: dict[str, int] = {}
    for part, size in _spread(parts):
        for outcome in tokenize(recipe, Unit("sample", source.name, (part,), "")):
            records += 1
            reason = f"{outcome.status}: {outcome.reason}" if isinstance(outcome, Reject) else KEPT
            reasons[reason] = reasons.get(reason, 0) + 1
            if not isinstance(outcome, Reject):
                lengths.append(len(outcome.tokens))
        read += size
        if time.monotonic() - started > seconds:
            break
    sampled = read / total if total else 1.0
    scale = 1 / sampled if sampled else 1.0
    spent = (time.monotonic() - started) * scale
    counted = {reason: round(n * scale) for reason, n in sorted(reasons.items())}
    tokens = round(sum(lengths) * scale)
    whole = SourcePlan(
        total, len(parts), sampled, round(records * scale), round(len(lengths) * scale), tokens, spent, counted
    )
    return whole, np.array(lengths, np.int64)


def _spread(parts: list[tuple[Part, int]]) -> Iterator[tuple[Part, int]]:
    """Yield parts from all over a source: every 64th first, then those between, until all were."""
    order = np.argsort(np.arange(len(parts)) % max(1, len(parts) // SAMPLE_PARTS), kind="stable")
    return (parts[i] for i in islice(order, len(parts)))


def plan_pack(
    section: PackSection,
    recipe: Recipe,
    sources: dict[str, SourcePlan],
    lengths: dict[str, np.ndarray],
    width: int,
) -> PackPlan:
    """Pack the sample's lengths and scale the sequences up; duplicates, known only later, are not taken off."""
    names = section.sources or [s.name for s in recipe.sources]
    seen = np.concatenate([lengths[name] for name in names])
    share = {"all": 1.0, "eval": recipe.eval, "train": 1 - recipe.eval}[section.split]
    pieces = _windows(seen, section.length)
    bins = plan(pieces, section.length).bins if len(pieces) else 0
    scale = share * sum(sources[n].tokens for n in names) / max(1, int(seen.sum()))
    fill = float(pieces.sum() / (bins * section.length)) if bins else 0.0
    sequences = max(round(bins * scale), lower_bound(pieces[:1], section.length))
    return PackPlan(section.length, sequences, fill, sequences * section.length * width)


def _windows(lengths: np.ndarray, length: int) -> np.ndarray:
    whole = np.repeat(length, int((lengths // length).sum()))
    rest = lengths % length
    return np.concatenate((whole, rest[rest > 1]))
