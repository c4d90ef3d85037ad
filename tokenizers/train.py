"""Make a SentencePiece model from a corpus, in the manner of LLaMA's."""

import io
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

import fsspec
import sentencepiece

from ..errors import UserError

SENTENCES = 1_000_000  # the trainer holds them all: lines of prose make 100 MB, 1 GB at the very most
LONGEST = 1000  # characters of a sentence: at most 4,000 bytes, where the trainer's own limit is 4,192

# What LLaMA's model says of its own training (read from tokenizer.model), and what its ids need.
LLAMA: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "character_coverage": 0.99995,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "unk_surface": " \u2047 ",
}


def train(texts: Iterable[str], out: str, size: int, seed: int = 0) -> None:
    """Write a SentencePiece model of `size` pieces, made from texts of any length, to a path or URL.

    The same texts in the same order, size and seed make the same bytes. Raises UserError where the corpus is
    empty, where it has too little text or too many characters for `size`, or where `out` cannot be written.
    """
    model = fit(sample((line for text in texts for line in sentences(text)), SENTENCES, seed), size)
    try:
        with fsspec.open(str(out), "wb", auto_mkdir=True) as file:
            file.write(model)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The text model cannot be written to {out} ({error}): give another path.") from error


def fit(lines: Iterable[str], size: int) -> bytes:
    """Return the bytes of a SentencePiece model of `size` pieces; raises UserError as `train` does."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=size,
            num_threads=1,  # the model records it
            minloglevel=2,  # errors, which are raised as well
            **LLAMA,
        )
    except RuntimeError as error:
        raise UserError(explain(str(error), size)) from error
    return model.getvalue()


def explain(trouble: str, size: int) -> str:
    """Turn the trainer's complaint into a sentence with a remedy."""
    if "!sentences_.empty()" in trouble:
        return "The corpus has no text to make a text model from: give files with text."
    if most := re.search(r"value <= (\d+)", trouble):
        return (
            f"The corpus has too little text for {size:,} pieces, at most {int(most[1]):,} are possible: "
            "lower the size or give more text."
        )
    if least := re.search(r"required_chars\. \d+ vs (\d+)", trouble):
        return (
            f"{size:,} pieces are too few for the bytes and characters of the corpus, at least {int(least[1]):,} "
            "are needed: raise the size."
        )
    return f"SentencePiece made no model of {size:,} pieces from the corpus: {trouble}."


def sample(items: Iterable[str], most: int, seed: int) -> list[str]:
    """Return at most so many items, each with the same chance, in memory of that many (Vitter's algorithm R)."""
    chance, kept = random.Random(seed), []
    for number, item in enumerate(items):
        if number < most:
            kept.append(item)
        elif (place := chance.randrange(number + 1)) < most:
            kept[place] = item
    return kept


def sentences(text: str) -> Iterator[str]:
    """Yield a text's lines that hold anything, long ones cut before a space, or anywhere where none is near.

    The space at a cut is left out, as the dummy prefix stands in for it. NUL, which the trainer refuses with
    the whole line, ends a line.
    """
    for line in re.split(r"[\n\x00]", text):
        start = 0
        while len(line) - start > LONGEST:
            space = line.rfind(" ", start + 1, start + LONGEST)
            yield line[start : space if space > 0 else start + LONGEST]
            start = space + 1 if space > 0 else start + LONGEST
        if line[start:]:
            yield line[start:]
