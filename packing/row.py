"""The row of a shard: whole examples end to end, their table, and the bytes that its checksum covers."""

import json
import struct
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..tokenizers.vocabulary import Vocabulary
from .example import Example, Span

_AS_STORED = "<|=" if sys.byteorder == "little" else "<|"  # NumPy's marks of byte orders that need no swap
_COMPACT = json.JSONEncoder(separators=(",", ":"))


class Segment(NamedTuple):
    """One example inside a row: what it is, and how many of its tokens of each modality are trained."""

    length: int
    task: str
    source: str
    record: str
    start: int
    trained_text: int
    trained_vision: int
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, eq=False)
class Row:
    """Hold one row of a shard, of one example or of many.

    Attributes:
      tokens: ids `[n]`; a sequence's padding is stored as id 0 at the end.
      segments: the examples in order; tokens that they do not cover are padding.
      trained: alternating run lengths over all tokens, int32, beginning with an untrained run, maybe of 0.
      exact, near: the record's hashes (example rows only): 16 bytes, and uint64 `[bands]`.
    """

    tokens: np.ndarray
    segments: tuple[Segment, ...]
    trained: np.ndarray
    exact: bytes = b""
    near: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))


def encode_runs(flags: np.ndarray) -> np.ndarray:
    """Turn bool `[n]` into alternating run lengths, int32, beginning with a run of False."""
    runs: list[int] = []
    data, at, ends = flags.tobytes(), 0, (b"\1", b"\0")  # bytes.find is far quicker than NumPy here
    while at < len(data) or not runs:
        end = data.find(ends[len(runs) % 2], at)
        end = len(data) if end < 0 else end
        runs.append(end - at)
        at = end
    return np.array(runs, np.int32)


def decode_runs(runs: np.ndarray, low: int = 0, high: int | None = None) -> np.ndarray:
    """Turn alternating run lengths back into bool `[n]`, or into the flags `[low, high)` alone."""
    ends = np.concatenate(([0], np.cumsum(runs)))
    lengths = np.diff(np.clip(ends, low, ends[-1] if high is None else high))
    return np.repeat(np.arange(len(runs)) % 2 == 1, lengths)


def segment_of(example: Example, vocabulary: Vocabulary) -> Segment:
    """Describe an example, counting its trained tokens by modality."""
    trained = int(np.count_nonzero(example.trained))
    vision = int(np.count_nonzero(vocabulary.is_vision(example.tokens[example.trained]))) if vocabulary.codes else 0
    return Segment(
        len(example.tokens),
        example.task,
        example.source,
        example.record,
        example.start,
        trained - vision,
        vision,
        example.spans,
    )


def example_row(example: Example, vocabulary: Vocabulary, exact: bytes, near: np.ndarray) -> Row:
    """Store one example with its record's hashes."""
    runs = encode_runs(example.trained)
    return Row(example.tokens, (segment_of(example, vocabulary),), runs, exact, near)


def sequence_row(examples: Iterable[Example], length: int, vocabulary: Vocabulary) -> Row:
    """Lay whole examples end to end and pad with id 0 to `length`.

    Raises:
      ValueError: if they do not fit.
    """
    examples = list(examples)
    used = sum(len(e.tokens) for e in examples)
    if used > length:
        raise ValueError(f"{used} tokens do not fit into a sequence of {length}")
    padding = length - used
    tokens = [e.tokens for e in examples] + [np.zeros(padding, vocabulary.dtype)]
    flags = [e.trained for e in examples] + [np.zeros(padding, bool)]
    segments = tuple(segment_of(e, vocabulary) for e in examples)
    return Row(np.concatenate(tokens), segments, encode_runs(np.concatenate(flags)))


def row_examples(row: Row) -> list[Example]:
    """Take a row apart into its examples again."""
    flags, examples, low = decode_runs(row.trained), [], 0
    for s in row.segments:
        high = low + s.length
        examples.append(Example(row.tokens[low:high], flags[low:high], s.task, s.source, s.record, s.start, s.spans))
        low = high
    return examples


def payload(row: Row) -> bytes:
    """Return the bytes that a row's checksum and a shard's content digest cover.

    In order: the byte lengths of the five parts as little-endian uint64; tokens; segments as compact
    ASCII JSON arrays in the order of the fields; trained runs; exact hash; near hashes. All little-endian.
    """
    parts = (
        _little(row.tokens),
        _COMPACT.encode(row.segments).encode(),
        _little(row.trained),
        row.exact,
        _little(row.near),
    )
    return struct.pack("<5Q", *map(len, parts)) + b"".join(parts)


def crc32(row: Row) -> int:
    """Checksum of a row over all its other fields."""
    return zlib.crc32(payload(row))


def _little(array: np.ndarray) -> bytes:
    return (array if array.dtype.byteorder in _AS_STORED else array.byteswap()).tobytes()
