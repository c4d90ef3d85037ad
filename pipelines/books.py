"""Books: their work units, their filters, and how a text becomes an example."""

import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..packing.example import TEXT, Draft, Example
from ..packing.ledger import DROPPED, FAILED
from ..packing.report import Reject
from ..packing.row import Row, example_row
from ..recipe import Recipe
from ..sources import BookSource, BooksSource
from ..tokenizers.vocabulary import Vocabulary
from .admission import denied_by, reject, url_of
from .gutenberg import strip
from .models import text_tokenizer, vocabulary_of
from .near import signature
from .reading.columns import column
from .reading.documents import read_part
from .reading.listing import list_parts
from .records import BadRecord, Found, TextDocument
from .units import fraction

Known = Mapping[bytes, np.ndarray]  # ids of texts by the hash of their content
NONE: Known = MappingProxyType({})


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
    """A text that goes on to the tokenizer, its content's hash, and what tells the book: see `book_content`."""

    text: str
    exact: bytes
    content: str


def examine(found: Found, source: BookSource, seed: int, denied: frozenset[str]) -> Admitted | Reject:
    """Decide on a record by all that can be known before its text is tokenized."""
    if denied and (entry := denied_by(denied, found.record, url_of(found))):
        return reject(found, source, "filter", DROPPED, "denied", entry)
    if isinstance(found, BadRecord):
        return reject(found, source, "read", found.status, found.reason, found.error)
    assert isinstance(found, TextDocument)
    text = strip(found.text) if source.strip_gutenberg else found.text
    try:
        exact = content_hash(text)
    except UnicodeEncodeError as error:
        return reject(found, source, "read", FAILED, "not Unicode", str(error))
    if entry := denied_by(denied, exact.hex()):
        return reject(found, source, "filter", DROPPED, "denied", entry, exact)
    if source.sample < 1 and fraction(seed, "sample", source.name, found.record) >= source.sample:
        return reject(found, source, "filter", DROPPED, "not in the sample", "", exact)
    for name, wanted in source.filters.equals.items():
        if (value := column(found.columns, name)) != wanted:
            return reject(found, source, "filter", DROPPED, f"{name} differs", reprlib.repr(value), exact)
    if not text.strip():
        return reject(found, source, "filter", DROPPED, "empty", "", exact)
    if (nul := text.find("\0")) >= 0:
        return reject(found, source, "read", FAILED, "NUL byte", f"at character {nul}", exact)
    return Admitted(text, exact, book_content(found.text, text, exact))


def book_content(whole: str, text: str, exact: bytes) -> str:
    """Return what tells a book however it is read: 32 hexadecimal digits, of the whole file with plain line ends.

    Args:
      text: what is tokenized of it; `exact` is its hash, which will do where that is the whole.
    """
    plain = whole.replace("\r\n", "\n") if "\r\n" in whole else whole
    return exact.hex() if plain == text else content_hash(plain).hex()


def content_hash(text: str) -> bytes:
    """Hash the text that is tokenized: 16 bytes; equal hashes are exact duplicates.

    Raises:
      UnicodeEncodeError: if it holds half a surrogate pair, as JSON escapes can.
    """
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Encoded(NamedTuple):
    """A text that is kept, its ids without BOS and EOS, its content's hash, and what tells the book."""

    ids: np.ndarray
    exact: bytes
    content: str


def encode(
    recipe: Recipe, source: BookSource, found: Found, denied: frozenset[str], known: Known = NONE
) -> Encoded | Reject:
    """Turn one record into ids, or say why not.

    Args:
      known: texts that need not be encoded again.
    """
    admitted = examine(found, source, recipe.seed, denied)
    if isinstance(admitted, Reject):
        return admitted
    ids = known.get(admitted.exact)
    if ids is None:
        ids = text_tokenizer(recipe.vocabulary.text).encode(admitted.text)
    if reason := judge_length(len(ids), source):
        return reject(found, source, "filter", DROPPED, reason, f"{len(ids)} tokens", admitted.exact)
    return Encoded(ids, admitted.exact, admitted.content)


def row(recipe: Recipe, source: BooksSource, found: Found, denied: frozenset[str], known: Known = NONE) -> Row | Reject:
    """Turn one record into an example's row, or say why not; texts that are `known` are not encoded again."""
    encoded = encode(recipe, source, found, denied, known)
    if isinstance(encoded, Reject):
        return encoded
    ids, exact, content = encoded
    vocabulary = vocabulary_of(recipe.vocabulary)
    near = signature(ids) if recipe.duplicates == "near" else np.empty(0, np.uint64)
    told = {"content": content} if content != exact.hex() else {}
    told |= {"url": url} if (url := url_of(found)) else {}
    return example_row(render(ids, source.name, found.record, told, vocabulary), vocabulary, exact, near)


def judge_length(tokens: int, source: BookSource) -> str:
    """Return why a text of so many tokens is dropped, or ""."""
    if not tokens:
        return "empty"
    low, high = source.filters.min_tokens, source.filters.max_tokens
    if low is not None and tokens < low:
        return "below min_tokens"
    if high is not None and tokens >= high:
        return "max_tokens or more"
    return ""


def render(ids: np.ndarray, source: str, record: str, told: dict[str, str], vocabulary: Vocabulary) -> Example:
    """Make a text an example: BOS, which is never trained, the text, EOS. What is told of it goes along as a span."""
    draft = Draft(vocabulary)
    draft.add([vocabulary.bos], trained=False)
    draft.add(ids, trained=True, kind="document" if told else "", ref=json.dumps(told) if told else "")
    draft.add([vocabulary.eos], trained=True)
    return draft.example(TEXT, source, record)
