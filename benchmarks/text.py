"""Text encoding against SentencePiece's own `encode`, ids identical."""

import gzip
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from worldloom.pipelines.toy.books import write_corpus
from worldloom.tokenizers.text import TextTokenizer, load
from worldloom.tokenizers.train import train

from benchmarks.measure import Measure, speedup

BOOK = 4_300_000  # characters, as the King James Bible has
DOCUMENT = 4_000  # characters
MANUALS = Path("/usr/share/man")
LANGUAGES = ("de", "fr", "ja", "ru", "zh_CN")


def measures() -> Iterator[Measure]:
    """Yield how many times faster than SentencePiece a whole book and documents of 4,000 characters are encoded."""
    with tempfile.TemporaryDirectory() as folder:
        book, model = material(Path(folder))
        tokenizer, peer = load(str(model)), sentencepiece.SentencePieceProcessor(model_file=str(model))
    print(f"encoder: {tokenizer.encoder}", file=sys.stderr)
    yield Measure("text-book", ratio([book], tokenizer, peer), 6)
    yield Measure("text-documents", ratio(documents(book), tokenizer, peer), 2)
    if manuals := multilingual():
        yield Measure("text-documents-multilingual", ratio(documents(manuals), tokenizer, peer), 2)
    else:
        print(f"skipped: no manual pages in {', '.join(LANGUAGES)} below {MANUALS}", file=sys.stderr)


def ratio(texts: list[str], tokenizer: TextTokenizer, peer: sentencepiece.SentencePieceProcessor) -> float:
    """Return the speedup over the texts; raises AssertionError where a single id differs."""
    if any(tokenizer.encode(text).tolist() != peer.encode(text) for text in texts):
        raise AssertionError("the ids differ from SentencePiece's")
    runs = 5 if len(texts) == 1 else 9  # documents take a second a run, where the machine's moods weigh more
    return speedup(
        lambda: [tokenizer.encode(text) for text in texts], lambda: [peer.encode(text) for text in texts], runs
    )


def documents(text: str) -> list[str]:
    return [text[start : start + DOCUMENT] for start in range(0, len(text), DOCUMENT)]


def material(folder: Path) -> tuple[str, Path]:
    """Find a book and a model: the real ones, or else ones made from the quickstart's corpus."""
    real = Path(os.environ.get("WORLDLOOM_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    book, model = real / "books" / "king-james-bible.txt", real / "models" / "llama-tokenizer.model"
    if book.is_file() and model.is_file():
        return book.read_text(encoding="utf-8"), model
    print(f"no real data in {real}: a book made from the quickstart's corpus stands in", file=sys.stderr)
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in write_corpus(folder / "corpus"))
    train([text], str(folder / "text.model"), 8000)
    return (text * (BOOK // len(text) + 1))[:BOOK], folder / "text.model"


def multilingual() -> str:
    """Join manual pages in five languages, at most as many characters as the book; empty where there are none."""
    pages = [path for language in LANGUAGES for path in sorted(MANUALS.glob(f"{language}/man*/*.gz"))]
    return "\n".join(gzip.decompress(path.read_bytes()).decode("utf-8", "replace") for path in pages)[:BOOK]
