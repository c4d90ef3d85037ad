"""The tokenize job: units of sources become shards of examples."""

import json
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
from .books import denied, denied_by, examine, judge_length, key_facts, list_parts, prepare, render, url_of
from .documents import Found, read_part
from .near import signature
from .units import Unit, digest, group


@lru_cache(maxsize=4)
def text_tokenizer(path: str) -> TextTokenizer:
    """Load a text model once in a process."""
    return load(path)


@dataclass(frozen=True)
class TokenizeJob:
    """Turn a recipe's sources into examples under `url`."""

    recipe: Recipe
    url: str

    @property
    def folder(self) -> Folder:
        return Folder(self.url)

    @property
    def vocabulary(self) -> Vocabulary:
        return text_tokenizer(self.recipe.vocabulary.text).vocabulary()

    def parts(self) -> list[str]:
        return sorted(source.name for source in self.recipe.sources)

    def units(self, part: str) -> Iterator[Unit]:
        source = self.recipe.source(part)
        facts = digest(key_facts(self.recipe, source), self.vocabulary.fingerprint, versions())
        for number, parts in enumerate(group(list_parts(source), source.unit_bytes)):
            inputs = [(p.id, p.start, p.end, p.size, p.version) for p in parts]
            yield Unit(f"{part}-{number:07d}", part, parts, digest(facts, inputs))

    def agrees(self, unit: Unit, report: Report) -> bool:
        source = self.recipe.source(unit.source)
        return report.deny == digest(sorted(denied(source))) or self._deny_unchanged(source, report)

    def _deny_unchanged(self, source: BooksSource, report: Report) -> bool:
        """Does a deny list that changed since the unit was done leave its rows and rejects as they are?"""
        entries = denied(source)
        rejects = read_rejects(self.folder, report)
        if any((r.reason == "denied") != bool(denied_by(entries, r.record, r.exact, r.url)) for r in rejects):
            return False
        return not any(denied_by(entries, *_names(row)) for row in Shard(self.folder, report.shard.path).rows())

    def settle(self, report: Report) -> Report:
        """Note the present deny list in a report that agrees with it, so that it is compared only once."""
        current = digest(sorted(denied(self.recipe.source(report.source))))
        if report.deny == current:
            return report
        settled = replace(report, deny=current)
        self.folder.replace(report_name(report.unit), report.to_bytes(), settled.to_bytes())
        return settled

    def run(self, unit: Unit) -> None:
        source = self.recipe.source(unit.source)
        stale = self.folder.read(report_name(unit.name))
        with UnitWriter(self.folder, unit.name, self.vocabulary, EXAMPLES) as writer:
            for outcome in tokenize(self.recipe, unit):
                if isinstance(outcome, Reject):
                    writer.reject(outcome)
                else:
                    writer.ledger.count(KEPT)
                    writer.add(outcome)
            writer.commit(unit.source, unit.key, digest(sorted(denied(source))), stale)


def tokenize(recipe: Recipe, unit: Unit) -> Iterator[Row | Reject]:
    """Turn every record of a unit into an example's row, or a reject, in order: the job without the engine."""
    source = recipe.source(unit.source)
    entries = denied(source)
    for part in unit.parts:
        for found in read_part(source, part, recipe.limits.record_bytes):
            yield tokenize_record(recipe, source, found, entries)


def tokenize_record(recipe: Recipe, source: BooksSource, found: Found, entries: frozenset[str]) -> Row | Reject:
    """Turn one record into an example's row, or say why not."""
    document, reject, exact = examine(found, source, recipe.seed, entries)
    if document is None:
        assert reject is not None
        return reject
    tokenizer = text_tokenizer(recipe.vocabulary.text)
    ids = tokenizer.encode(prepare(document.text, source))
    if reason := judge_length(len(ids), source):
        detail = f"{len(ids)} tokens"
        names = (exact.hex(), url_of(found))
        return Reject(source.name, found.record, "filter", DROPPED, reason, detail, found.where, *names)
    url = url_of(found)
    near = signature(ids) if recipe.duplicates == "near" else np.empty(0, np.uint64)
    vocabulary = tokenizer.vocabulary()
    return example_row(render(ids, source.name, found.record, url, vocabulary), vocabulary, exact, near)


def _names(row: Row) -> tuple[str, ...]:
    """Return what a deny list may call an example: its id, its content hash, its URL."""
    segment = row.segments[0]
    return segment.record, row.exact.hex(), *(json.loads(s.ref)["url"] for s in segment.spans if s.kind == "document")


def versions() -> dict[str, str]:
    """Return the versions that the rows may depend on."""
    return {"worldloom": __version__, "sentencepiece": version("sentencepiece")}
