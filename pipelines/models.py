"""The models of a recipe, each loaded once in a process, and the vocabulary that they make together."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

from ..recipe import VocabularySection
from ..tokenizers import vision
from ..tokenizers.text import TextTokenizer, load
from ..tokenizers.vision import VisionTokenizer
from ..tokenizers.vocabulary import Vocabulary

Arguments = ParamSpec("Arguments")
Loaded = TypeVar("Loaded")


def once(most: int) -> Callable[[Callable[Arguments, Loaded]], Callable[Arguments, Loaded]]:
    """Keep what a function returns, and call it once even where the threads of an engine's worker ask at once."""

    def decorate(call: Callable[Arguments, Loaded]) -> Callable[Arguments, Loaded]:
        kept, turn = lru_cache(maxsize=most)(call), threading.RLock()

        @wraps(call)
        def wrapped(*args: Arguments.args, **named: Arguments.kwargs) -> Loaded:
            with turn:
                return kept(*args, **named)  # type: ignore[arg-type]

        return wrapped

    return decorate


@once(4)
def text_tokenizer(path: str) -> TextTokenizer:
    """Load a text model once in a process."""
    return load(path)


@once(2)
def vision_tokenizer(kind: str, path: str, pixel_range: str | None, device: str | None) -> VisionTokenizer:
    """Load a model of pictures once in a process."""
    return vision.load(kind, path, pixel_range, device)


def pictures_of(section: VocabularySection) -> VisionTokenizer:
    """Return the tokenizer of pictures that a recipe names; it must name one."""
    assert section.vision is not None
    named = section.vision
    return vision_tokenizer(named.kind, named.path, named.pixel_range, named.device)


@once(4)
def vocabulary_of(section: VocabularySection) -> Vocabulary:
    """Return the vocabulary of a recipe's models."""
    text = text_tokenizer(section.text).vocabulary()
    if section.vision is None:
        return text
    pictures = pictures_of(section)
    return replace(text, codes=pictures.codes, vision_digest=pictures.digest)
