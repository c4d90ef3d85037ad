"""Loss weights: what one trained token counts, so that packed rows train like padded ones."""

from enum import StrEnum

import numpy as np

from ..errors import UserError
from ..tokenizers.vocabulary import Vocabulary


class Rule(StrEnum):
    """How trained tokens are weighed and what the weighted sum is divided by.

    `lwm`: what LWM's padded training computes, the mean over examples of ½ text and ½ vision means
    (paper §4.3.1; tux loss.py:29-53, lwm train.py:192-202), divided by the number of examples.
    `example`: the mean over examples of each one's mean, divided by the number of examples.
    `token`: the mean over tokens, divided by the sum of weights.
    """

    LWM = "lwm"
    EXAMPLE = "example"
    TOKEN = "token"

    @property
    def by_examples(self) -> bool:
        """Is the weighted sum divided by the number of examples (else by the sum of weights)?"""
        return self is not Rule.TOKEN


def rule_named(name: Rule | str) -> Rule:
    """Return a rule by its name.

    Raises:
      UserError: if there is none of that name.
    """
    try:
        return Rule(name)
    except ValueError:
        raise UserError(f"unknown rule of weights {name!r}: choose one of {', '.join(Rule)}") from None


def segment_weights(
    rule: Rule, trained_text: np.ndarray, trained_vision: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Weigh a trained text token and a trained vision token of each segment.

    Args:
      trained_text, trained_vision: trained tokens of each segment, integers `[segments]`.
      vocabulary: with picture codes the model has two heads, and `lwm` gives each one half.

    Returns:
      Two float32 `[segments]`; 0 where a segment has no trained token of the kind.
    """
    if rule is Rule.TOKEN:
        ones = np.ones(len(trained_text), np.float32)
        return ones, ones
    if rule is Rule.EXAMPLE:
        each = _inverse(trained_text + trained_vision)
        return each, each
    half = np.float32(0.5 if vocabulary.codes else 1.0)
    return half * _inverse(trained_text), half * _inverse(trained_vision)


def _inverse(counts: np.ndarray) -> np.ndarray:
    return np.where(counts > 0, 1.0 / np.maximum(counts, 1), 0.0).astype(np.float32)
