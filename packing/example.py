"""The noun that flows: tokens of one example, which of them are trained, and what a reader may ask for."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..tokenizers.vocabulary import Vocabulary

TEXT = "text"  # the only task whose examples may be cut into windows


class Span(NamedTuple):
    """Tokens `[start, end)` of an example that a reader may ask for; `ref` is small JSON, or empty."""

    start: int
    end: int
    kind: str
    ref: str = ""


@dataclass(frozen=True, eq=False)
class Example:
    """Hold one example, or one window of a long text.

    Attributes:
      tokens: ids, the vocabulary's dtype, `[n]` with n >= 1.
      trained: is predicting *this* token trained? bool `[n]`; never the first, since nothing predicts it.
      task, source, record: the kind of example and where it comes from.
      start: offset of the first token in the record's tokens.
      spans: what a reader may ask for, offsets relative to this example.
    """

    tokens: np.ndarray
    trained: np.ndarray
    task: str
    source: str
    record: str
    start: int = 0
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if self.tokens.shape != self.trained.shape or not len(self.tokens):
            raise ValueError(f"example {self.record}: {self.tokens.shape} tokens, {self.trained.shape} flags")
        if self.trained[0]:
            raise ValueError(f"example {self.record}: its first token has no predictor and cannot be trained")


class Draft:
    """Append tokens, flags and spans together, so that they cannot drift apart."""

    def __init__(self, vocabulary: Vocabulary):
        self._dtype = vocabulary.dtype
        self._tokens: list[np.ndarray] = []
        self._trained: list[bool] = []
        self._spans: list[Span] = []
        self.length = 0

    def add(self, tokens: np.ndarray | list[int], trained: bool, kind: str = "", ref: str = "") -> None:
        """Append tokens that are all trained or all not; a `kind` makes them a span."""
        ids = np.asarray(tokens, self._dtype)
        if kind:
            self._spans.append(Span(self.length, self.length + len(ids), kind, ref))
        self._tokens.append(ids)
        self._trained.append(trained)
        self.length += len(ids)

    def span(self, start: int, kind: str, ref: str = "") -> None:
        """Make a span of all tokens appended since `start`; it may hold other spans."""
        self._spans.append(Span(start, self.length, kind, ref))

    def example(self, task: str, source: str, record: str) -> Example:
        """Close the draft. The first token is marked untrained whatever was asked."""
        tokens = np.concatenate(self._tokens)
        trained, low = np.empty(len(tokens), bool), 0
        for part, flag in zip(self._tokens, self._trained, strict=True):
            trained[low : low + len(part)] = flag
            low += len(part)
        trained[:1] = False
        spans = sorted(self._spans, key=lambda s: (s.start, -s.end))  # a span stands before those that it holds
        return Example(tokens, trained, task, source, record, 0, tuple(spans))


def clip_spans(spans: tuple[Span, ...], low: int, high: int) -> tuple[Span, ...]:
    """Keep the parts of spans inside `[low, high)`, relative to `low`."""
    return tuple(
        s._replace(start=max(s.start, low) - low, end=min(s.end, high) - low)
        for s in spans
        if s.start < high and s.end > low
    )
