"""Books: their work units, their filters, and how a text becomes an example."""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..packing.example import TEXT, Draft, Example
from ..packing.ledger import DROPPED, FAILED
from ..packing.report import Reject
from ..recipe import BooksSource, Limits, Recipe
from ..tokenizers.vocabulary import Vocabulary
from .documents import (
    BadRecord,
    Found,
    TextDocument,
    column,
    is_saved_dataset,
    load_hugging_face,
    read_part,
    top_columns,
)
from .files import File, codec_of, form_of, list_files, open_raw
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
            names = pq.read_schema(pa.PythonFile(raw, mode="r")).names
    except (OSError, pa.ArrowException):
        return  # a damaged file is a reject of the job, not the recipe's fault
    if missing := sorted(set(top_columns(source, names)) - set(names)):
        raise UserError(
            f"source {source.name}: {file.url} has no column {missing[0]}; it has {', '.join(names)}: set columns"
        )


def _file_parts(file: File, unit_bytes: int) -> Iterator[tuple[Part, int]]:
    form = form_of(file.url)
    if form not in SPLITTABLE or codec_of(file.url) or file.size <= unit_bytes:
        yield Part(file.id, file.url, 0, -1, file.size, file.version), file.size
    elif form == "jsonl":
        for low in range(0, file.size, unit_bytes):
            high = min(low + unit_bytes, file.size)
            yield Part(file.id, file.url, low, high, file.size, file.version), high - low
    else:
        yield from _row_groups(file)


def _row_groups(file: File) -> Iterator[tuple[Part, int]]:
    try:
        with open_raw(file.url) as raw:
            footer = pq.read_metadata(pa.PythonFile(raw, mode="r"))
    except (OSError, pa.ArrowException):
        yield Part(file.id, file.url, 0, -1, file.size, file.version), file.size
        return
    for number in range(footer.num_row_groups):
        size = footer.row_group(number).total_byte_size
        yield Part(file.id, file.url, number, number + 1, file.size, file.version), size


def _dataset_parts(source: BooksSource) -> Iterator[tuple[Part, int]]:
    dataset = load_hugging_face(source)
    if missing := sorted(set(top_columns(source, dataset.column_names)) - set(dataset.column_names)):
        have = ", ".join(dataset.column_names)
        raise UserError(f"source {source.name}: the dataset has no column {missing[0]}; it has {have}: set columns")
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
        for found in read_part(source, part, Limits().record_bytes):
            if isinstance(found, BadRecord):
                raise UserError(f"{found.where}: {found.reason}, {found.error}")
            yield found.text


class Outcome(NamedTuple):
    """What became of a record before it is tokenized: a document whose text goes on, or a reject."""

    document: TextDocument | None
    reject: Reject | None
    exact: bytes = b""


def examine(found: Found, source: BooksSource, seed: int, denied: frozenset[str]) -> Outcome:
    """Decide on a record by all that can be known before its text is tokenized."""
    if isinstance(found, BadRecord):
        if found.record in denied:
            return Outcome(None, _reject(found, source, "read", DROPPED, "denied", found.record))
        return Outcome(None, _reject(found, source, "read", FAILED, found.reason, found.error))
    try:
        exact = content_hash(found.text)
    except UnicodeEncodeError as error:
        return Outcome(None, _reject(found, source, "read", FAILED, "not Unicode", str(error)))
    if entry := denied_by(denied, found.record, exact.hex(), url_of(found)):
        return Outcome(None, _reject(found, source, "filter", DROPPED, "denied", entry, exact))
    if source.sample < 1 and fraction(seed, "sample", source.name, found.record) >= source.sample:
        return Outcome(None, _reject(found, source, "filter", DROPPED, "not in the sample", "", exact))
    for name, wanted in source.filters.equals.items():
        if (value := column(found.columns, name)) != wanted:
            return Outcome(None, _reject(found, source, "filter", DROPPED, f"{name} differs", f"{value!r:.200}", exact))
    if not found.text.strip():
        return Outcome(None, _reject(found, source, "filter", DROPPED, "empty", "", exact))
    if (nul := found.text.find("\0")) >= 0:
        return Outcome(None, _reject(found, source, "read", FAILED, "NUL byte", f"at character {nul}", exact))
    return Outcome(found, None, exact)


def _reject(
    found: Found, source: BooksSource, stage: str, status: str, reason: str, error: str, exact: bytes = b""
) -> Reject:
    return Reject(source.name, found.record, stage, status, reason, error, found.where, exact.hex(), url_of(found))


def url_of(found: Found) -> str:
    """Return what a record's `url` column says, or ""."""
    columns = found.columns if isinstance(found, TextDocument) else {}
    return next((str(value) for name, value in columns.items() if name.lower() == "url" and value), "")


def content_hash(text: str) -> bytes:
    """Hash a text as it was read: 16 bytes; equal hashes are exact duplicates.

    Raises:
      UnicodeEncodeError: if it holds half a surrogate pair, as JSON escapes can.
    """
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def denied_by(denied: frozenset[str], *names: str) -> str:
    """Return the entry of a deny list that is one of a record's names: id, content hash or URL. "" where none is."""
    return next((name for name in names if name in denied), "") if denied else ""


def judge_length(tokens: int, source: BooksSource) -> str:
    """Return why a text of so many tokens is dropped, or ""."""
    low, high = source.filters.min_tokens, source.filters.max_tokens
    if low is not None and tokens < low:
        return "below min_tokens"
    if high is not None and tokens >= high:
        return "max_tokens or more"
    return ""


def prepare(text: str, source: BooksSource) -> str:
    """Return the text that is tokenized."""
    return strip(text) if source.strip_gutenberg else text


def render(ids: np.ndarray, source: str, record: str, url: str, vocabulary: Vocabulary) -> Example:
    """Make a text an example: BOS, which is never trained, the text, EOS. Its URL, if any, goes along as a span."""
    draft = Draft(vocabulary)
    draft.add([vocabulary.bos], trained=False)
    draft.add(ids, trained=True, kind="document" if url else "", ref=json.dumps({"url": url}) if url else "")
    draft.add([vocabulary.eos], trained=True)
    return draft.example(TEXT, source, record)


@lru_cache(maxsize=64)
def deny_list(deny: tuple[str, ...] | str) -> frozenset[str]:
    """Read a deny list: its entries, or a file with one entry a line, # for comments.

    Raises:
      UserError: if the file is missing.
    """
    if not isinstance(deny, str):
        return frozenset(deny)
    try:
        with fsspec.open(deny, "r", encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except FileNotFoundError:
        raise UserError(f"the deny list {deny} does not exist: mend the path, or leave deny out") from None
    return frozenset(line for line in lines if line and not line.startswith("#"))


def denied(source: BooksSource) -> frozenset[str]:
    """Return the entries of a source's deny list."""
    return deny_list(source.deny if isinstance(source.deny, str) else tuple(source.deny))


def key_facts(recipe: Recipe, source: BooksSource) -> dict[str, object]:
    """Return what a unit's rows depend on besides its input and the vocabulary: not paths, not the deny list."""
    section = source.model_dump(mode="json", exclude={"path", "deny", "licence", "unit_bytes"})
    return {"source": section, "seed": recipe.seed, "near": recipe.duplicates == "near"}
