"""Books: their work units, their filters, and how a text becomes an example."""

import hashlib
import json
import reprlib
from collections.abc import Iterator
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..packing.example import TEXT, Draft, Example
from ..packing.ledger import DROPPED, FAILED
from ..packing.report import Reject
from ..recipe import BooksSource, Recipe
from ..tokenizers.vocabulary import Vocabulary
from .documents import (
    DAMAGE,
    BadRecord,
    Found,
    TextDocument,
    column,
    is_saved_dataset,
    load_hugging_face,
    missing_column,
    read_part,
    storable,
)
from .files import File, codec_of, form_of, is_storage_trouble, list_files, open_raw
from .gutenberg import strip
from .units import Part, fraction

SPLITTABLE = ("jsonl", "parquet")


def list_parts(source: BooksSource) -> Iterator[tuple[Part, int]]:
    """Yield the parts of a source in order, each with the bytes that it makes a worker read.

    Raises:
      UserError: if a path matches nothing, or a dataset or the first parquet file is not as the recipe says.
    """
    if source.dataset or (len(source.paths) == 1 and is_saved_dataset(source.paths[0])):
        yield from _dataset_parts(source)
        return
    files = list_files(source.paths)
    _check_columns(source, next((f for f in files if form_of(f.url) == "parquet"), None))
    for file in files:
        yield from _file_parts(file, source.unit_bytes)


def _check_columns(source: BooksSource, file: File | None) -> None:
    """Refuse before the start what the first parquet file already shows; later ones that differ are rejects."""
    if file is None:
        return
    try:
        with open_raw(file.url) as raw:
            lack = missing_column(source, pq.read_schema(pa.PythonFile(raw, mode="r")))
    except DAMAGE as error:
        if is_storage_trouble(error):
            raise
        return  # a damaged file is a reject of the job, not the recipe's fault
    if lack:
        raise UserError(f"source {source.name}: {file.url} has {lack}: set columns or filters.equals")


def _file_parts(file: File, unit_bytes: int) -> Iterator[tuple[Part, int]]:
    form = form_of(file.url)
    if form not in SPLITTABLE or codec_of(file.url) or file.size <= unit_bytes:
        yield Part(file.id, file.url, 0, -1, file.size, file.version), file.size
    elif form == "jsonl":
        for low in range(0, file.size, unit_bytes):
            high = min(low + unit_bytes, file.size)
            yield Part(file.id, file.url, low, high, file.size, file.version), high - low
    else:
        yield from _row_groups(file, unit_bytes)


def _row_groups(file: File, unit_bytes: int) -> Iterator[tuple[Part, int]]:
    """Yield runs of row groups of about `unit_bytes`: each part reads the footer again."""
    try:
        with open_raw(file.url) as raw:
            footer = pq.read_metadata(pa.PythonFile(raw, mode="r"))
    except DAMAGE as error:
        if is_storage_trouble(error):
            raise
        yield Part(file.id, file.url, 0, -1, file.size, file.version), file.size
        return
    low = size = 0
    for number in range(footer.num_row_groups):
        size += footer.row_group(number).total_byte_size
        if size >= unit_bytes or number == footer.num_row_groups - 1:
            yield Part(file.id, file.url, low, number + 1, file.size, file.version), size
            low, size = number + 1, 0


def _dataset_parts(source: BooksSource) -> Iterator[tuple[Part, int]]:
    dataset = load_hugging_face(source)
    if lack := missing_column(source, dataset.features.arrow_schema):
        raise UserError(f"source {source.name}: the dataset has {lack}: set columns or filters.equals")
    name = source.dataset or source.paths[0].rstrip("/").rsplit("/", 1)[-1]
    row_bytes = max(1, dataset.data.nbytes // max(1, len(dataset)))
    step = max(1, source.unit_bytes // row_bytes)
    for low in range(0, len(dataset), step):
        high = min(low + step, len(dataset))
        part = Part(f"{name}.{source.split}", source.dataset or source.paths[0], low, high, len(dataset), "")
        yield part._replace(version=dataset._fingerprint), (high - low) * row_bytes


def texts(paths: list[str]) -> Iterator[str]:
    """Yield the texts of files, folders and globs, as a tokenizer is trained on them.

    Raises:
      UserError: if a path matches nothing, or a record cannot be read.
    """
    source = BooksSource(name="texts", kind="books", path=paths)
    for part, _ in list_parts(source):
        for found in read_part(source, part):
            if isinstance(found, BadRecord):
                raise UserError(f"{found.where}: {found.reason}, {found.error}")
            yield found.text


class Admitted(NamedTuple):
    """A text that goes on to the tokenizer, and its content's hash."""

    text: str
    exact: bytes


def examine(found: Found, source: BooksSource, seed: int, denied: frozenset[str]) -> Admitted | Reject:
    """Decide on a record by all that can be known before its text is tokenized."""
    if denied and (entry := denied_by(denied, found.record, url_of(found))):
        return _reject(found, source, "filter", DROPPED, "denied", entry)
    if isinstance(found, BadRecord):
        return _reject(found, source, "read", found.status, found.reason, found.error)
    text = strip(found.text) if source.strip_gutenberg else found.text
    try:
        exact = content_hash(text)
    except UnicodeEncodeError as error:
        return _reject(found, source, "read", FAILED, "not Unicode", str(error))
    if entry := denied_by(denied, exact.hex()):
        return _reject(found, source, "filter", DROPPED, "denied", entry, exact)
    if source.sample < 1 and fraction(seed, "sample", source.name, found.record) >= source.sample:
        return _reject(found, source, "filter", DROPPED, "not in the sample", "", exact)
    for name, wanted in source.filters.equals.items():
        if (value := column(found.columns, name)) != wanted:
            return _reject(found, source, "filter", DROPPED, f"{name} differs", reprlib.repr(value), exact)
    if not text.strip():
        return _reject(found, source, "filter", DROPPED, "empty", "", exact)
    if (nul := text.find("\0")) >= 0:
        return _reject(found, source, "read", FAILED, "NUL byte", f"at character {nul}", exact)
    return Admitted(text, exact)


def _reject(
    found: Found, source: BooksSource, stage: str, status: str, reason: str, error: str, exact: bytes = b""
) -> Reject:
    return Reject(source.name, found.record, stage, status, reason, error, found.where, exact.hex(), url_of(found))


def url_of(found: Found) -> str:
    """Return what a record's `url` column says, or ""."""
    columns = found.columns if isinstance(found, TextDocument) else {}
    return next((storable(str(value)) for name, value in columns.items() if name.lower() == "url" and value), "")


def content_hash(text: str) -> bytes:
    """Hash the text that is tokenized: 16 bytes; equal hashes are exact duplicates.

    Raises:
      UnicodeEncodeError: if it holds half a surrogate pair, as JSON escapes can.
    """
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def denied_by(denied: frozenset[str], *names: str) -> str:
    """Return the entry of a deny list that is one of a record's names: id, content hash or URL. "" where none is."""
    return next((name for name in names if name in denied), "")


def judge_length(tokens: int, source: BooksSource) -> str:
    """Return why a text of so many tokens is dropped, or ""."""
    if not tokens:
        return "empty"
    low, high = source.filters.min_tokens, source.filters.max_tokens
    if low is not None and tokens < low:
        return "below min_tokens"
    if high is not None and tokens >= high:
        return "max_tokens or more"
    return ""


def render(ids: np.ndarray, source: str, record: str, url: str, vocabulary: Vocabulary) -> Example:
    """Make a text an example: BOS, which is never trained, the text, EOS. Its URL, if any, goes along as a span."""
    draft = Draft(vocabulary)
    draft.add([vocabulary.bos], trained=False)
    draft.add(ids, trained=True, kind="document" if url else "", ref=json.dumps({"url": url}) if url else "")
    draft.add([vocabulary.eos], trained=True)
    return draft.example(TEXT, source, record)


def with_deny_lists(recipe: Recipe) -> Recipe:
    """Put the entries of deny files into a recipe: lists are read once, in the submitter, and workers agree on them.

    A file has one entry a line; # begins a comment.

    Raises:
      UserError: if a file cannot be read.
    """
    sources = [s.model_copy(update={"deny": _deny_entries(s.deny)}) for s in recipe.sources]
    return recipe.model_copy(update={"sources": sources})


def _deny_entries(deny: str | list[str]) -> list[str]:
    if not isinstance(deny, str):
        return sorted(set(deny))
    try:
        with fsspec.open(deny, "r", encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except FileNotFoundError:
        raise UserError(f"the deny list {deny} does not exist: mend the path, or leave deny out") from None
    except (OSError, UnicodeError) as error:
        raise UserError(f"the deny list {deny} cannot be read: {error}") from error
    return sorted({line for line in lines if line and not line.startswith("#")})


def key_facts(recipe: Recipe, source: BooksSource) -> dict[str, object]:
    """Return what a unit's rows depend on besides its input and the vocabulary: not paths, not the deny list."""
    section = source.model_dump(mode="json", exclude={"path", "deny", "licence", "unit_bytes"})
    return {"source": section, "seed": recipe.seed, "near": recipe.duplicates == "near"}
