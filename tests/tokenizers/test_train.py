"""The text model's trainer: the same bytes for the same corpus, LLaMA's manner, and plain refusals."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldloom.errors import UserError
from worldloom.tokenizers import train as subject
from worldloom.tokenizers.text import TextTokenizer, load, merges_only
from worldloom.tokenizers.train import LONGEST, sample, sentences, train

chance = random.Random(0)
LETTERS = "etaoinshrdlucmfw"
WORDS = ["".join(chance.choices(LETTERS, k=chance.randint(2, 8))) for _ in range(300)]
TEXTS = ["\n".join(" ".join(chance.choices(WORDS, k=12)) for _ in range(40)) + "\n" for _ in range(5)]


def test_the_same_corpus_makes_the_same_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        train(iter(TEXTS), str(tmp_path / name / "text.model"), 400)
    assert (tmp_path / "a" / "text.model").read_bytes() == (tmp_path / "b" / "text.model").read_bytes()
    assert capfd.readouterr() == ("", "")


def test_the_model_is_in_llamas_manner(tmp_path: Path) -> None:
    train(TEXTS, str(tmp_path / "text.model"), 400)
    tokenizer = load(str(tmp_path / "text.model"))
    assert (tokenizer.text_size, tokenizer.bos, tokenizer.eos) == (400, 1, 2)
    assert [tokenizer.piece(token) for token in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    text = f"{WORDS[0]}  {WORDS[1]}\n\t2024 \u65e5\U0001f600"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("\u65e5").tolist()[-3:] == [3 + byte for byte in "\u65e5".encode()]
    assert merges_only(tokenizer._model) and tokenizer._joins is not None


def test_common_words_become_single_pieces() -> None:
    train(["weaver loom " * 500], "memory://train/text.model", 278)
    assert len(load("memory://train/text.model").encode("loom weaver loom")) == 3


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 400, "no text"),
        (["", "\n\n"], 400, "no text"),
        (["tea at noon"], 4000, r"at most \d+ are possible"),
        (TEXTS, 20, "at least 27[0-9] are needed"),
    ],
)
def test_refusals(tmp_path: Path, texts: list[str], size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(texts, str(tmp_path / "text.model"), size)
    assert not (tmp_path / "text.model").exists()


def test_the_largest_size_named_is_possible(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        train(TEXTS, str(tmp_path / "text.model"), 100_000)
    most = int(str(refusal.value).split("at most ")[1].split()[0].replace(",", ""))
    train(TEXTS, str(tmp_path / "text.model"), most)
    assert TextTokenizer((tmp_path / "text.model").read_bytes()).text_size == most


def test_an_unwritable_path_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        train(TEXTS, str(tmp_path), 400)


@given(st.text(alphabet="ab  \n\x00\u65e5", max_size=200), st.integers(2, 9))
def test_sentences_lose_only_separators(text: str, longest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "LONGEST", longest)
        lines = list(sentences(text))
    assert all(0 < len(line) <= longest and "\n" not in line and "\x00" not in line for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(text.replace("\x00", "").split("\n")).replace(" ", "")


def test_long_lines_are_cut_before_a_space() -> None:
    line = "weaver " * LONGEST
    lines = list(sentences(line))
    assert " ".join(lines) == line
    assert all(part.startswith("weaver") and len(part) <= LONGEST for part in lines[:-1])
    assert [len(part) for part in sentences("x" * (2 * LONGEST + 1))] == [LONGEST, LONGEST, 1]


def test_long_characters_stay_below_the_trainers_limit() -> None:
    assert max(len(line.encode()) for line in sentences("\U0001f600" * 5000)) <= 4192


def test_samples_are_fair_and_repeatable() -> None:
    items = [str(number) for number in range(50)]
    assert sample(items, 50, 0) == items and sample(items, 99, 0) == items
    assert sample(items, 10, 3) == sample(iter(items), 10, 3)
    assert sample(items, 10, 3) != sample(items, 10, 4)
    drawn = [item for seed in range(2000) for item in sample(items, 10, seed)]
    counts = sorted(drawn.count(item) for item in items)
    # Each count is binomial with mean 400 and deviation 18: five deviations either way.
    assert len(drawn) == 20_000 and counts[0] > 310 and counts[-1] < 490


def test_sampling_bounds_what_the_trainer_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SENTENCES", 20)
    seen = []
    monkeypatch.setattr(subject, "fit", lambda lines, size: seen.append(list(lines)) or b"")
    for seed in (0, 0, 1):
        train(TEXTS, str(tmp_path / "text.model"), 400, seed)
    assert [len(lines) for lines in seen] == [20, 20, 20]
    assert seen[0] == seen[1] != seen[2]
