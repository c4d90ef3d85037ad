"""Text to ids and back: SentencePiece, and a faster encoder where its ids are proven the same.

A long text is cut into parts that are encoded one by one, and the ids equal those of the whole. In a BPE
model without normalization a piece grows only by merging neighbours whose concatenation is itself a piece. So
nothing ever merges across two characters that stand side by side in no piece, and each side of such a place
is encoded as if the other were not there. Each part but the first gets the model's dummy prefix, a space,
anew: where the cut is before a space, that space is left out and the prefix takes its place; elsewhere the
prefix's id is dropped.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any

import numpy as np
import sentencepiece

from ..errors import UserError
from .model_files import local_file
from .vocabulary import Vocabulary

SPACE = "\u2581"  # what SentencePiece writes for a space
PART = 8192  # characters: both encoders are at or near their best here, and memory stays small

# Field numbers of sentencepiece_model.proto. SentencePiece's generated classes need another protobuf than
# Beam's, so the few fields that matter are read by hand.
TRAINER, NORMALIZER = 2, 3
MODEL_TYPE, BPE, SPACE_AS_SUFFIX, BYTE_FALLBACK = 3, 2, 24, 35
CHARACTER_MAP, DUMMY_PREFIX, REMOVE_EXTRA_SPACES, ESCAPE_SPACES = 2, 3, 4, 5

# Where encoders go wrong: spaces, marks of other models, bytes, scripts, long runs.
HARD = (
    *("", " ", "  ", "   a   b ", "a b", " a", "a ", "a  b", "\n", "\n\n", "a\nb", "a \n b", "\t", "a\tb"),
    *("\r\n", "\xa0", "a\xa0b", "a\u2003b", "\u200b", "\ufeffa", "\u2028", "\u3000", "\x01\x1f\x7f\x85"),
    *("\x00", "a\x00b", SPACE, f"a{SPACE}b", f"{SPACE} {SPACE}", f" {SPACE}a", "\u2585", "\u2047", "\ufffd"),
    *("<vision>", "</vision>", "<s>", "</s>", "<unk>", "<pad>", "<0x41>", "<0x0A>", "a</s>b", "[INST] x"),
    *("don't", "we'll", "3.14159", "1,234,567", "2024-01-02T03:04Z", "x=y+z;", "{'a': [1, 2]}", "</p><p>"),
    *("na\xefve", "nai\u0308ve", "\xc5\u212b", "\ufb01", "\u1e9e\xdf", "e\u0301\u0323", "Za\u017c\xf3\u0142"),
    *("\u65e5\u672c\u8a9e\u306e\u6587\u3002", "\u4e2d\u6587\uff0c\u6c49\u5b57", "\ud55c\uad6d", "\U00020000"),
    *("\u0645\u0631\u062d\u0628\u0627 \u0628\u0643", "\u05e9\u05dc\u05d5\u05dd", "\u0939\u093f\u0928\u094d"),
    *("\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440", "\u0395\u03bb\u03ac\u03c2", "\u0e44\u0e17"),
    *("\U0001f600", "\U0001f469\u200d\U0001f4bb", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd!", "\u202ea"),
    *("a" * 300, "ab" * 150, "=" * 200, " " * 100, "\n" * 100, "\t" * 50, "\u4e2d" * 99, "\U0001f600" * 30),
    *("incomprehensibilities" * 5, "https://example.org/a?c=d&e=%20#f", "0123456789" * 10, "\U0010ffff"),
)


class TextTokenizer:
    """Encode and decode text with one SentencePiece model.

    Attributes:
      digest: blake2b of the model's bytes, 32 hexadecimal characters.
      text_size: number of pieces.
      bos, eos: ids of the begin and end of sequence; `encode` adds neither.
      dtype: the smallest unsigned type that holds every text id.
    """

    def __init__(self, model: bytes) -> None:
        """Take the bytes of a SentencePiece model; raises RuntimeError where they are something else."""
        self._model = model
        self._reference = sentencepiece.SentencePieceProcessor()
        self._reference.LoadFromSerializedProto(model)
        self.digest = hashlib.blake2b(model, digest_size=16).hexdigest()
        self.text_size: int = self._reference.get_piece_size()
        self.bos: int = self._reference.bos_id()
        self.eos: int = self._reference.eos_id()
        self.dtype = np.min_scalar_type(self.text_size - 1)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text of any length, `dtype` [n]: those of SentencePiece for the whole text.

        The model's own dummy prefix is there; begin and end of sequence are not. Time is linear in the length
        where the model allows cuts, as LLaMA's does.
        """
        encode = self._encoder[1]
        parts = split(text, self._joins, PART) if self._joins is not None else [(text, False)]
        return np.concatenate([self._array(encode(part))[int(lent) :] for part, lent in parts])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids in `[0, text_size)`; begin and end of sequence are silent."""
        return self._reference.decode(np.asarray(ids, np.int64).tolist())

    def piece(self, token: int) -> str:
        """Return one id's piece, with spaces as U+2581."""
        return self._reference.id_to_piece(int(token))

    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary of this model alone: no pictures."""
        return Vocabulary(self.text_size, self.bos, self.eos, self.digest)

    @property
    def encoder(self) -> str:
        """Name the encoder in use, `kitoken` or `sentencepiece`."""
        return self._encoder[0]

    def _array(self, ids: list[int]) -> np.ndarray:
        return np.fromiter(ids, self.dtype, len(ids))

    @cached_property
    def _pieces(self) -> list[str]:
        return [self.piece(token) for token in range(self.text_size)]

    @cached_property
    def _joins(self) -> frozenset[str] | None:
        return joins(self._pieces) if SPACE in self._pieces and merges_only(self._model) else None

    @cached_property
    def _encoder(self) -> tuple[str, Callable[[str], list[int]]]:
        reference = self._reference.encode
        # kitoken aborts the process on some models that it cannot read: it gets only those it is made for.
        faster = kitoken(self._model) if self._joins is not None else None
        if faster and all(faster(text) == reference(text) for text in probes(self._pieces)):
            return "kitoken", faster
        return "sentencepiece", reference


def load(path: str) -> TextTokenizer:
    """Read a SentencePiece model from a path or URL that fsspec knows; raises UserError for anything else."""
    remedy = "give a SentencePiece model, or make one with `worldloom train-tokenizer`"
    try:
        model = local_file(str(path)).read_bytes()
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The text model {path} cannot be read ({error}): {remedy}.") from error
    try:
        tokenizer = TextTokenizer(model)
    except RuntimeError as error:
        raise UserError(f"{path} ({len(model):,} bytes) is not a SentencePiece model: {remedy}.") from error
    if min(tokenizer.bos, tokenizer.eos) < 0:
        found = f"bos {tokenizer.bos} and eos {tokenizer.eos}"
        raise UserError(f"The text model {path} has {found}, where both must be defined: {remedy}.")
    return tokenizer


def split(text: str, joins: AbstractSet[str], size: int) -> Iterator[tuple[str, bool]]:
    """Cut a text into parts whose ids, one after the other, are those of the whole.

    A part is `size` characters long and then as many more as it takes to reach a place where a cut is exact.
    Yields the part and whether its dummy prefix is not of the text, so that its first id must be dropped.
    """
    start, lent = 0, False
    for end in cuts(text, joins, size):
        yield text[start:end], lent
        lent = text[end] not in (" ", SPACE)
        start = end if lent else end + 1
    yield text[start:], lent


def cuts(text: str, joins: AbstractSet[str], size: int) -> Iterator[int]:
    """Yield places at least `size` characters apart where a text can be cut exactly, in order.

    Never before the last character: were it a space, the part after it would be empty and have no prefix.
    """
    end = size
    while end < len(text) - 1:
        pair = text[end - 1 : end + 1].replace(" ", SPACE)
        if pair in joins or (pair[1] != SPACE and SPACE + pair[1] in joins):
            end += 1
        else:
            yield end
            end += size + 1  # the part after a cut may begin one later, and must not be empty


def joins(pieces: Iterable[str]) -> frozenset[str]:
    """Return every two characters that stand side by side in a piece, spaces as U+2581."""
    marked = (piece.replace(" ", SPACE) for piece in pieces)
    return frozenset(piece[at : at + 2] for piece in marked for at in range(len(piece) - 1))


def merges_only(model: bytes) -> bool:
    """Say whether a model only puts a space before a text, marks spaces, merges, and falls back to bytes.

    Without byte fallback SentencePiece would join unknown pieces on either side of a cut.
    """
    parts = dict(fields(model))
    trainer, normalizer = (dict(fields(parts.get(part, b""))) for part in (TRAINER, NORMALIZER))
    return (
        trainer.get(MODEL_TYPE) == BPE
        and trainer.get(BYTE_FALLBACK) == 1
        and not trainer.get(SPACE_AS_SUFFIX)
        and not normalizer.get(CHARACTER_MAP)
        and normalizer.get(DUMMY_PREFIX, 1) == 1
        and normalizer.get(REMOVE_EXTRA_SPACES, 1) == 0
        and normalizer.get(ESCAPE_SPACES, 1) == 1
    )


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and value of a protobuf message's fields: int where it is a varint, else bytes."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        if key & 7 == 0:
            value, at = varint(message, at)
            yield key >> 3, value
        else:
            length, at = varint(message, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            yield key >> 3, message[at : at + length]
            at += length


def varint(message: bytes, at: int) -> tuple[int, int]:
    """Read a base-128 integer, lowest digits first, at an offset; return it and the offset behind it."""
    value = shift = 0
    while message[at] & 128:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1


def kitoken(model: bytes) -> Callable[[str], list[int]] | None:
    """Return kitoken's encoder of a model, or None where kitoken is missing or refuses."""
    try:
        from kitoken import Kitoken

        encoder = Kitoken.from_sentencepiece(model)
    except (ImportError, ValueError, RuntimeError):
        return None
    return lambda text: encoder.encode(text, False)


def probes(pieces: Sequence[str]) -> Iterator[str]:
    """Yield texts that an encoder must get right: the hard ones, and every piece between random others."""
    yield from HARD
    chance = random.Random(0)
    shuffled = chance.sample([piece.replace(SPACE, " ") for piece in pieces], len(pieces))
    for start in range(0, len(shuffled), 50):
        words = shuffled[start : start + 50] + chance.sample(HARD, 2)
        yield "".join(chance.sample(words, len(words)))
