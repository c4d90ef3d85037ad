"""The models of a recipe, each loaded once in a process, and the vocabulary that they make together."""

from dataclasses import replace
from functools import lru_cache

from ..recipe import VocabularySection
from ..tokenizers import vision
from ..tokenizers.text import TextTokenizer, load
from ..tokenizers.vision import VisionTokenizer
from ..tokenizers.vocabulary import Vocabulary


@lru_cache(maxsize=4)
def text_tokenizer(path: str) -> TextTokenizer:
    """Load a text model once in a process."""
    return load(path)


@lru_cache(maxsize=2)
def vision_tokenizer(kind: str, path: str, pixel_range: str | None) -> VisionTokenizer:
    """Load a model of pictures once in a process."""
    return vision.load(kind, path, pixel_range)


def pictures_of(section: VocabularySection) -> VisionTokenizer:
    """Return the tokenizer of pictures that a recipe names; it must name one."""
    assert section.vision is not None
    return vision_tokenizer(section.vision.kind, section.vision.path, section.vision.pixel_range)


@lru_cache(maxsize=4)
def vocabulary_of(section: VocabularySection) -> Vocabulary:
    """Return the vocabulary of a recipe's models."""
    text = text_tokenizer(section.text).vocabulary()
    if section.vision is None:
        return text
    pictures = pictures_of(section)
    return replace(text, codes=pictures.codes, vision_digest=pictures.digest)
