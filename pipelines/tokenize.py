"""The tokenize job: units of sources become shards of examples."""

import json
import platform
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from .. import __version__
from ..packing.ledger import KEPT, Ledger
from ..packing.report import Reject, Report, UnitWriter, read_rejects, read_report, report_name
from ..packing.row import Row
from ..packing.shard import EXAMPLES, Shard
from ..packing.storage import Folder
from ..recipe import Recipe
from ..sources import BookQuestionsSource, BooksSource, ChatSource, LwmSource, Source, TextSource
from ..tokenizers.vocabulary import Vocabulary
from . import books, lwm_rows
from .admission import denied_by
from .deny import deny_list
from .inputs import Input, marked, written
from .models import vocabulary_of
from .reading import documents
from .reading.listing import list_parts
from .records import Found
from .scratch import scratch
from .units import Part, Unit, digest, group

Record = TypeVar("Record")
Outcomes = Callable[[Unit, frozenset[str], Path, Ledger, list[int]], Generator[Row | Reject]]


@dataclass(frozen=True)
class TokenizeJob:
    """Turn a recipe's sources into examples under `url`.

    Attributes:
      questions: folder of the question job's examples, which sources of book questions are made from.
      replies: makes this the question job, of those sources alone: folder of a language model's replies.

    Raises:
      ValueError: if a deny list is still a file's name: `with_deny_lists` reads it once, for all workers.
    """

    recipe: Recipe
    url: str
    questions: str = ""
    replies: str = ""

    def __post_init__(self) -> None:
        if any(isinstance(source.deny, str) for source in self.recipe.sources):
            raise ValueError("the recipe's deny lists must be read first: use with_deny_lists")

    @property
    def folder(self) -> Folder:
        return Folder(self.url)

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.recipe.vocabulary)

    def parts(self) -> list[str]:
        asked = [s.name for s in self.recipe.sources if not self.replies or isinstance(s, BookQuestionsSource)]
        return sorted(asked, key=lambda name: f"{name}-0")  # as units sort

    def units(self, part: str) -> Iterator[Unit]:
        source = self.recipe.source(part)
        settings = self.settings(source)
        for name, parts in self._groups(part):
            inputs = [facts_of(source, p) for p in parts]
            yield Unit(name, part, parts, self.key(source, name, settings, inputs))

    def settings(self, source: Source) -> str:
        """Digest all that the rows of a source depend on besides its input."""
        facts = key_facts(self.recipe, source, asking=bool(self.replies))
        return digest(facts, self.vocabulary.fingerprint, versions(self.recipe, source))

    def key(self, source: Source, unit: str, settings: str, inputs: list[list[Any]]) -> str:
        """Digest all that a unit's rows depend on; `inputs` as `facts_of` tells them."""
        return digest(settings, inputs, *self._asked(source, unit))

    def _asked(self, source: Source, unit: str) -> list[str]:
        """Return the digest of a unit's questions, which its rows depend on as well."""
        if not isinstance(source, BookQuestionsSource) or not self.questions:
            return []
        report = read_report(Folder(self.questions), unit)
        return [report.shard.content if report else ""]

    def names(self, part: str) -> Iterator[str]:
        return (name for name, _ in self._groups(part))

    def _groups(self, part: str) -> Iterator[tuple[str, tuple[Part, ...]]]:
        source = self.recipe.source(part)
        for number, parts in enumerate(group(list_parts(source), source.unit_bytes)):
            yield f"{part}-{number:07d}", parts

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
        self.write(unit, self.folder.read(report_name(unit.name)), self._outcomes)

    def write(self, unit: Unit, stale: bytes | None, outcomes: Outcomes) -> None:
        """Write the shard of a unit and commit it.

        Args:
          stale: the bytes of the report that is to be replaced, and only if it is still there.
          outcomes: gives what becomes of each record, in order, and counts in a list how many each part has.
        """
        source, records = self.recipe.source(unit.source), [0] * len(unit.parts)
        entries, mark = deny_list(tuple(source.deny))
        with scratch() as folder, UnitWriter(self.folder, unit.name, self.vocabulary, EXAMPLES) as writer:
            with closing(outcomes(unit, entries, folder, writer.ledger, records)) as found:
                for outcome in found:
                    if isinstance(outcome, Reject):
                        writer.reject(outcome)
                    else:
                        writer.ledger.count(KEPT)
                        writer.add(outcome)
            inputs = written(_inputs(source, unit, records)) if writer.ledger.failed else ""
            writer.commit(unit.source, unit.key, mark, stale, self.settings(source), inputs)

    def _outcomes(
        self, unit: Unit, denied: frozenset[str], folder: Path, ledger: Ledger, records: list[int]
    ) -> Generator[Row | Reject]:
        """Yield what becomes of each record of a unit, all counted in `ledger` as they are read."""
        source = self.recipe.source(unit.source)
        found = read_unit(source, unit, folder, records)
        if not isinstance(source, BookQuestionsSource):
            return tokenize(self.recipe, source, counted(found, ledger), denied, folder)
        from . import question_rows
        from .book_questions import passages

        if not self.replies:
            asked = question_rows.recorded(Folder(self.questions), unit.name)
            items = counted(passages(self.recipe, source, found, denied, asked), ledger)
            return tokenize(self.recipe, source, items, denied, folder)
        pieces = counted(question_rows.pieces(self.recipe, source, found, denied), ledger)
        return question_rows.rows(self.recipe, source, pieces, Folder(self.replies), ledger)


def facts_of(source: Source, part: Part) -> list[Any]:
    """Say what tells a part from all others, and its present content from another, as a unit's key digests it."""
    return [*file_facts(part), *_named(source, part)]


def file_facts(part: Part) -> list[Any]:
    """The same without what its rows name."""
    return [part.id, part.start, part.end, part.size, part.version]


def file_marks(source: Source, part: Part) -> list[str]:
    """Mark the content of the files that each row of a part names; no marks where they name none."""
    if isinstance(source, TextSource) or not any(_named(source, part)):
        return []
    if isinstance(source, ChatSource):
        from .conversations import file_versions as of_chats

        return [marked(versions) for versions in of_chats(source, part)]
    from .captioned import file_versions

    return [marked(version) for version in file_versions(source, part)]


def _inputs(source: Source, unit: Unit, records: list[int]) -> list[Input]:
    """Say what a unit read, given how many records each part had."""
    return [
        Input(facts_of(source, part), n, file_marks(source, part)) for part, n in zip(unit.parts, records, strict=True)
    ]


def _named(source: Source, part: Part) -> list[str]:
    """Return the versions of the files that a part names, which its rows depend on as well."""
    if isinstance(source, TextSource):
        return []
    if isinstance(source, ChatSource):
        from . import conversations

        return [conversations.named_versions(source, part)]
    from .captioned import named_versions

    return [named_versions(source, part)]


def counted(records: Iterator[Record], ledger: Ledger) -> Iterator[Record]:
    """Count the records as they are read, apart from what becomes of them."""
    for found in records:
        ledger.read += 1
        yield found


def read_unit(
    source: Source, unit: Unit, folder: Path | None = None, records: list[int] | None = None
) -> Iterator[Found]:
    """Yield every record of a unit, in order; temporary files are made in `folder`, and each part's counted."""
    for number, part in enumerate(unit.parts):
        for found in read(source, part, folder):
            if records is not None:
                records[number] += 1
            yield found


def read(source: Source, part: Part, folder: Path | None = None) -> Iterator[Found]:
    """Yield every record of a part, in order; temporary files are made in `folder`."""
    if isinstance(source, LwmSource):
        return lwm_rows.read_part(source, part)
    if isinstance(source, TextSource):
        return documents.read_part(source, part)
    if isinstance(source, ChatSource):
        from . import conversations

        return conversations.read_part(source, part, folder)
    from .captioned import read_part

    return read_part(source, part, folder)


def tokenize(
    recipe: Recipe, source: Source, records: Iterable[Any], denied: frozenset[str], folder: Path
) -> Generator[Row | Reject]:
    """Turn records into examples' rows, or say why not, one for each and in order: the job without the engine.

    Args:
      records: as `read` yields them; of book questions, passages.
      denied: the source's deny list.
      folder: temporary files are made there.
    """
    if isinstance(source, LwmSource):
        return lwm_rows.rows(recipe, source, records, denied)
    if isinstance(source, BooksSource):
        return (books.row(recipe, source, found, denied) for found in records)
    if isinstance(source, BookQuestionsSource):
        from . import book_questions

        return book_questions.rows(recipe, source, records, denied)
    if isinstance(source, ChatSource):
        from . import chats

        return chats.rows(recipe, source, records, denied, folder)
    from .pictured import rows  # what reads pictures is needed where there are some

    return rows(recipe, source, records, denied, folder)


def _names(row: Row) -> tuple[str, ...]:
    """Return what a deny list may call an example: ids, content hashes and URLs of it, its pictures and its book."""
    segment = row.segments[0]
    refs = (json.loads(span.ref) for span in segment.spans if span.ref and span.kind in DENIABLE)
    named = (ref[key] for ref in refs for key in ("url", "content", "record") if ref.get(key))
    return segment.record, row.exact.hex(), *named


def key_facts(recipe: Recipe, source: Source, asking: bool = False) -> dict[str, object]:
    """Return what a unit's rows depend on besides its input and the vocabulary: not paths, not the deny list.

    Nor how URLs are fetched, or a language model is reached: what the world answers is fixed by the first commit.
    """
    outside: dict[str, Any] = dict.fromkeys(OUTSIDE, True)
    if isinstance(source, BookQuestionsSource):  # its questions are told by the digest of what the question job wrote
        outside |= {"length": True, "trained": True, "questions": REACHED} if asking else {"questions": True}
    section = source.model_dump(mode="json", exclude=outside)
    return {"source": section, "seed": recipe.seed, "near": recipe.duplicates == "near"}


def surroundings() -> dict[str, str]:
    """Return the versions that should not matter to the rows, for the manifest."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("kitoken", "numpy", "pyarrow")}}


OUTSIDE = ("path", "deny", "licence", "unit_bytes", "records", "fetch", "media_root")
REACHED = {"url", "key", "limited_by", "at_once", "per_minute", "seconds", "retries", "dollars_in", "dollars_out"}
DENIABLE = {"document", "image", "video", "book"}
PICTURES, CLIPS = ["pillow", "simplejpeg"], ["av"]
DECODERS = {"image-text": PICTURES, "video-text": CLIPS, "chat": [*PICTURES, *CLIPS]}
NETWORKS = ["diffusers", "torch"]


def versions(recipe: Recipe, source: Source) -> dict[str, str]:
    """Return the versions that a source's rows depend on; a faster text encoder's ids are proven equal at load."""
    vision = recipe.vocabulary.vision if not isinstance(source, TextSource) else None
    names = ["sentencepiece", *(DECODERS[source.kind] if vision else [])]
    names += NETWORKS if vision and vision.kind == "vqgan" else []
    if isinstance(source, ChatSource):
        names += ["py3langid"] * bool(source.filters.languages) + ["google-re2"] * bool(source.filters.patterns)
    return {"worldloom": __version__, **{name: _installed(name) for name in names}}


@lru_cache(maxsize=64)
def _installed(name: str) -> str:
    return version(name)
