"""The tokenize job: units of sources become shards of examples."""

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version

import numpy as np

from .. import __version__
from ..packing.ledger import DROPPED, KEPT
from ..packing.report import Reject, Report, UnitWriter, read_rejects, report_name
from ..packing.row import Row, example_row
from ..packing.shard import EXAMPLES, Shard
from ..packing.storage import Folder
from ..recipe import BooksSource, Recipe
from ..tokenizers.text import TextTokenizer, load
from ..tokenizers.vocabulary import Vocabulary
from .books import denied_by, examine, judge_length, key_facts, list_parts, render, url_of
from .documents import Found, read_part
from .near import signature
from .units import Unit, digest, group


@lru_cache(maxsize=4)
def text_tokenizer(path: str) -> TextTokenizer:
    """Load a text model once in a process."""
    return load(path)


@dataclass(frozen=True)
class TokenizeJob:
    """Turn a recipe's sources into examples under `url`.

    Raises:
      ValueError: if a deny list is still a file's name: `with_deny_lists` reads it once, for all workers.
    """

    recipe: Recipe
    url: str

    def __post_init__(self) -> None:
        if any(isinstance(source.deny, str) for source in self.recipe.sources):
            raise ValueError("the recipe's deny lists must be read first: use with_deny_lists")

    @property
    def folder(self) -> Folder:
        return Folder(self.url)

    @property
    def vocabulary(self) -> Vocabulary:
        return text_tokenizer(self.recipe.vocabulary.text).vocabulary()

    def parts(self) -> list[str]:
        return sorted((source.name for source in self.recipe.sources), key=lambda name: f"{name}-0")  # as units sort

    def units(self, part: str) -> Iterator[Unit]:
        source = self.recipe.source(part)
        facts = digest(key_facts(self.recipe, source), self.vocabulary.fingerprint, versions())
        for number, parts in enumerate(group(list_parts(source), source.unit_bytes)):
            inputs = [(p.id, p.start, p.end, p.size, p.version) for p in parts]
            yield Unit(f"{part}-{number:07d}", part, parts, digest(facts, inputs))

    def agrees(self, unit: Unit, report: Report) -> bool:
        entries, mark = deny_list(tuple(self.recipe.source(unit.source).deny))
        return report.deny == mark or self._unchanged(entries, report)

    def _unchanged(self, entries: frozenset[str], report: Report) -> bool:
        """Does a deny list that changed since the unit was done leave its rows and rejects as they are?"""
        rejects = read_rejects(self.folder, report)
        if any((r.reason == "denied") != bool(denied_by(entries, r.record, r.exact, r.url)) for r in rejects):
            return False
        return not any(denied_by(entries, *_names(row)) for row in Shard(self.folder, report.shard.path).rows())

    def settle(self, report: Report) -> Report:
        """Note the present deny list in a report that agrees with it, so that it is compared only once."""
        _, mark = deny_list(tuple(self.recipe.source(report.source).deny))
        if report.deny == mark:
            return report
        settled = replace(report, deny=mark)
        self.folder.replace(report_name(report.unit), report.to_bytes(), settled.to_bytes())
        return settled

    def run(self, unit: Unit) -> None:
        source = self.recipe.source(unit.source)
        entries, mark = deny_list(tuple(source.deny))
        stale = self.folder.read(report_name(unit.name))
        with UnitWriter(self.folder, unit.name, self.vocabulary, EXAMPLES) as writer:
            for found in read_unit(source, unit):
                writer.ledger.read += 1
                outcome = tokenize(self.recipe, source, found, entries)
                if isinstance(outcome, Reject):
                    writer.reject(outcome)
                else:
                    writer.ledger.count(KEPT)
                    writer.add(outcome)
            writer.commit(unit.source, unit.key, mark, stale)


@lru_cache(maxsize=64)
def deny_list(entries: tuple[str, ...]) -> tuple[frozenset[str], str]:
    """Make a deny list quick to ask, and digest it: once in a process."""
    return frozenset(entries), digest(list(entries))


def read_unit(source: BooksSource, unit: Unit) -> Iterator[Found]:
    """Yield every record of a unit, in order."""
    for part in unit.parts:
        yield from read_part(source, part)


def tokenize(recipe: Recipe, source: BooksSource, found: Found, entries: frozenset[str]) -> Row | Reject:
    """Turn one record into an example's row, or say why not: the job without the engine.

    Args:
      entries: the source's deny list.
    """
    admitted = examine(found, source, recipe.seed, entries)
    if isinstance(admitted, Reject):
        return admitted
    text, exact = admitted
    tokenizer, url = text_tokenizer(recipe.vocabulary.text), url_of(found)
    ids = tokenizer.encode(text)
    if reason := judge_length(len(ids), source):
        detail, hashed = f"{len(ids)} tokens", exact.hex()
        return Reject(source.name, found.record, "filter", DROPPED, reason, detail, found.where, hashed, url)
    near = signature(ids) if recipe.duplicates == "near" else np.empty(0, np.uint64)
    example = render(ids, source.name, found.record, url, tokenizer.vocabulary())
    return example_row(example, tokenizer.vocabulary(), exact, near)


def _names(row: Row) -> tuple[str, ...]:
    """Return what a deny list may call an example: its id, its content hash, its URL."""
    segment = row.segments[0]
    return segment.record, row.exact.hex(), *(json.loads(s.ref)["url"] for s in segment.spans if s.kind == "document")


def surroundings() -> dict[str, str]:
    """Return the versions that should not matter to the rows, for the manifest."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("kitoken", "numpy", "pyarrow")}}


def versions() -> dict[str, str]:
    """Return the versions that the rows depend on; a faster encoder's ids are proven equal when it is loaded."""
    return {"worldloom": __version__, "sentencepiece": version("sentencepiece")}
