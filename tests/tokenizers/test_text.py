"""The text tokenizer against SentencePiece's encoding of the whole string."""

import dataclasses
import hashlib
import io
import random
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.tokenizers import text as subject
from worldloom.tokenizers.text import HARD, SPACE, TextTokenizer, cuts, fields, joins, load, merges_only, split

CORPUS = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of "
    "a wife.  However little known the feelings or views of such a man may be on his first entering a "
    "neighbourhood, this truth is so well fixed in the minds of the surrounding families.\n"
    "    def fit(self, x):\n        return self.a * x + self.b\n日本語の文。中文汉字。日本語の文。 naïve café 12 345\n"
) * 20
LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}


def trained(**options: object) -> bytes:
    """Train a small model by the plain trainer, independent of worldloom.tokenizers.train."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n")),
        model_writer=model,
        vocab_size=600,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **(LLAMA | options),
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def small() -> bytes:
    return trained()


@pytest.fixture(scope="module")
def marked() -> bytes:
    """A model with whole symbols that begin with, hold and end with spaces, so that cuts get scarce."""
    return trained(user_defined_symbols=["<vision>", f"{SPACE}{SPACE}x", f"a{SPACE}b", "e f", f"z{SPACE}", "\n\n"])


def whole(model: bytes, text: str) -> list[int]:
    return sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)


def pieces(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(token) for token in range(processor.get_piece_size())]


def in_parts(encode, text: str, allowed: frozenset[str], size: int) -> list[int]:
    """Encode by parts, as plainly as it can be said."""
    ids: list[int] = []
    for part, lent in split(text, allowed, size):
        ids += encode(part)[1 if lent else 0 :]
    return ids


WORDS = [
    "the",
    "a",
    "b",
    "e",
    "f",
    "x",
    "z",
    "in",
    "universally",
    "12",
    ".",
    ",",
    "日本語",
    "の",
    "。",
    "中",
    "é",
    "<vision>",
    "</s>",
    "<0x41>",
]
words = st.sampled_from([*WORDS, *"\u0301\U0001f600\u200d\x00\x01\ufffd\ufeff"])
gaps = st.sampled_from(
    ["", *[" "] * 3, "  ", "   ", "\n", " \n", "\n ", "\n\n", "\t", "\xa0", "\u3000", SPACE, f" {SPACE}"]
)
texts = st.lists(st.one_of(words, gaps, st.text(max_size=4)), max_size=40).map("".join)


@pytest.mark.parametrize("kind", ["small", "marked", "llama"])
@pytest.mark.parametrize("by", ["sentencepiece", "kitoken"])
def test_parts_have_the_ids_of_the_whole(kind: str, by: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue("llama_model").read_bytes() if kind == "llama" else request.getfixturevalue(kind)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    encode = reference.encode
    if by == "kitoken":
        pytest.importorskip("kitoken")
        encode = subject.kitoken(model)
    allowed = joins(pieces(model))

    @settings(max_examples=300, deadline=None)
    @given(texts, st.integers(1, 12))
    def check(text: str, size: int) -> None:
        assert in_parts(encode, text, allowed, size) == reference.encode(text)

    check()


def test_the_property_is_not_empty(small: bytes) -> None:
    allowed = joins(pieces(small))
    parts = list(split(CORPUS, allowed, 10))
    assert len(parts) > len(CORPUS) / 30
    assert any(lent for _, lent in parts) and any(not lent for _, lent in parts[1:])


def test_splitting_puts_the_text_together_again(small: bytes) -> None:
    allowed = joins(pieces(small))

    @given(texts, st.integers(1, 12))
    def check(text: str, size: int) -> None:
        parts = list(split(text, allowed, size))
        again = parts[0][0] + "".join(part if lent else " " + part for part, lent in parts[1:])
        assert again.replace(SPACE, " ") == text.replace(SPACE, " ")
        assert all(part for part, _ in parts[1:]) and all(len(part) >= size for part, _ in parts[:-1])

    check()


def test_joins_are_pairs_with_spaces_marked() -> None:
    assert joins(["abc", "e f", f"{SPACE}g", "h"]) == {"ab", "bc", f"e{SPACE}", f"{SPACE}f", f"{SPACE}g"}


def test_no_cut_where_two_characters_share_a_piece() -> None:
    assert list(cuts("abcabc", joins(["ab", "bc"]), 1)) == [3]
    assert list(cuts("abcabc", joins(["ab", "bc", f"{SPACE}a"]), 1)) == []  # the lent prefix would merge
    assert list(cuts("ab ab ", joins(["ab", f"{SPACE}a"]), 1)) == [2]  # nothing would follow the last space
    assert list(cuts("ab  ab", joins(["ab", SPACE * 2, f"{SPACE}a"]), 1)) == [2]


@pytest.mark.parametrize("book", ["alice.txt", "pride-and-prejudice.txt"])
def test_a_real_book_is_encoded_as_the_whole(real_data: Path, llama_model: Path, book: str) -> None:
    text = (real_data / "books" / book).read_text(encoding="utf-8")
    tokenizer = load(str(llama_model))
    ids = tokenizer.encode(text)
    assert len(list(split(text, tokenizer._joins, subject.PART))) > 10
    assert ids.dtype == np.uint16
    assert ids.tolist() == whole(llama_model.read_bytes(), text)
    assert tokenizer.decode(ids) == text


def test_lwm_marks(llama_model: Path) -> None:
    tokenizer = load(str(llama_model))
    assert tokenizer.encode("<vision>").tolist() == [529, 4924, 29958]  # design §3
    assert tokenizer.encode("</vision>").tolist() == [1533, 4924, 29958]
    assert tokenizer.piece(529) == f"{SPACE}<"
    assert (tokenizer.text_size, tokenizer.bos, tokenizer.eos) == (32000, 1, 2)
    assert tokenizer.encode("").shape == (0,)


def test_hard_texts_by_the_public_method(small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(small)
    for size in (1, 7, subject.PART):
        monkeypatch.setattr(subject, "PART", size)
        for text in (*HARD, "".join(HARD), " ".join(HARD)):
            assert tokenizer.encode(text).tolist() == whole(small, text), repr(text)


OTHER_KINDS = {
    "unigram": {"model_type": "unigram"},
    "word": {"model_type": "word"},
    "char": {"model_type": "char"},
    "normalized": {"normalization_rule_name": "nmt_nfkc"},
    "without bytes": {"byte_fallback": False},
    "without prefix": {"add_dummy_prefix": False},
    "space behind": {"treat_whitespace_as_suffix": True},
    "spaces removed": {"remove_extra_whitespaces": True},
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_model_are_encoded_whole_by_the_reference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "PART", 10)
    model = trained(**OTHER_KINDS[kind])
    tokenizer = TextTokenizer(model)
    assert not merges_only(model)
    assert tokenizer.encoder == "sentencepiece"
    assert tokenizer.encode(CORPUS[:3000]).tolist() == whole(model, CORPUS[:3000])


def test_the_faster_encoder_is_used_where_it_agrees(small: bytes, marked: bytes) -> None:
    pytest.importorskip("kitoken")
    assert merges_only(small) and TextTokenizer(small).encoder == "kitoken"
    tokenizer = TextTokenizer(marked)
    text = "a b e f   x<vision>z  the\n\na"
    assert tokenizer.encode(text).tolist() == whole(marked, text)


def test_one_wrong_id_is_enough_to_refuse_the_faster_encoder(small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=small)
    wrong_on = random.Random(1).choice(HARD[30:])
    monkeypatch.setattr(subject, "kitoken", lambda _: lambda text: [] if text == wrong_on else reference.encode(text))
    tokenizer = TextTokenizer(small)
    assert tokenizer.encoder == "sentencepiece"
    assert tokenizer.encode(wrong_on).tolist() == reference.encode(wrong_on)


def test_every_piece_is_probed(small: bytes) -> None:
    probed = "".join(subject.probes(pieces(small)))
    assert all(piece.replace(SPACE, " ") in probed for piece in pieces(small))


def test_without_kitoken_the_ids_are_the_same(small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kitoken", None)
    tokenizer = TextTokenizer(small)
    assert tokenizer.encoder == "sentencepiece"
    monkeypatch.setattr(subject, "PART", 50)
    assert tokenizer.encode(CORPUS).tolist() == whole(small, CORPUS)


@pytest.mark.parametrize("seed", range(3))
def test_decode_gives_the_text_back(small: bytes, seed: int) -> None:
    tokenizer = TextTokenizer(small)
    chance = random.Random(seed)
    text = "".join(chance.choice(CORPUS) for _ in range(200)).replace(SPACE, " ")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("a b").tolist(), tokenizer.eos]) == "a b"


def test_properties_and_vocabulary(small: bytes) -> None:
    tokenizer = TextTokenizer(small)
    assert tokenizer.digest == hashlib.blake2b(small, digest_size=16).hexdigest()
    vocabulary = tokenizer.vocabulary()
    assert dataclasses.astuple(vocabulary) == (tokenizer.text_size, 1, 2, tokenizer.digest, 0, "")
    assert vocabulary.size == len(pieces(small))
    assert tokenizer.dtype == vocabulary.dtype == np.uint16


def test_load_by_local_path_and_by_url(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "text.model").write_bytes(small)
    with fsspec.open("memory://models/text.model", "wb") as file:
        file.write(small)
    local, remote = load(str(tmp_path / "text.model")), load("memory://models/text.model")
    assert local.digest == remote.digest
    assert local.encode("a wife").tolist() == remote.encode("a wife").tolist() == whole(small, "a wife")


@pytest.mark.parametrize("content", [b"", b"no model", b"\0" * 50, None])
def test_a_wrong_file_is_a_users_error(small: bytes, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "wrong.model"
    path.write_bytes(small[: len(small) // 2] if content is None else content)
    with pytest.raises(UserError, match=r"wrong\.model .* is not a SentencePiece model"):
        load(str(path))


@pytest.mark.parametrize("path", ["/nowhere/text.model", "/", "nosuch://text.model", "memory://nowhere"])
def test_a_missing_file_is_a_users_error(path: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load(path)


def test_a_model_without_bos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.model").write_bytes(trained(bos_id=-1))
    with pytest.raises(UserError, match="bos -1"):
        load(str(tmp_path / "text.model"))


def test_protobuf_fields_of_every_wire_type() -> None:
    # 1: varint 300; 2: "hi"; 3: fixed32; 4: fixed64; 1000: varint 2^64 - 1 (protobuf's encoding guide)
    message = (
        b"\x08\xac\x02"
        + b"\x12\x02hi"
        + b"\x1d"
        + b"abcd"
        + b"\x21"
        + b"12345678"
        + b"\xc0\x3e"
        + b"\xff" * 9
        + b"\x01"
    )
    assert list(fields(message)) == [(1, 300), (2, b"hi"), (3, b"abcd"), (4, b"12345678"), (1000, 2**64 - 1)]


def test_what_llama_says_of_itself(llama_model: Path) -> None:
    model = llama_model.read_bytes()
    assert merges_only(model)
    assert sum(number == 1 for number, _ in fields(model)) == 32000
