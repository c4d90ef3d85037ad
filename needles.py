"""`worldloom needles`: writes chats that teach a model to find needles, for a recipe's chat source."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from .errors import UserError
from .pipelines.books import texts
from .pipelines.toy.books import write_corpus
from .tokenizers.text import load
from .training.evaluation.needle import Coder, make_haystack
from .training.evaluation.needle_data import Form, make_chats, make_words

ROLES = "user", "assistant"


def run_needles(options: argparse.Namespace, console: Console) -> None:
    """Write chats about pieces of books as JSON lines; to a .txt, only the words for a tokenizer to learn.

    The books are those that are named, or else those that Python carries, which are put beside the file.

    Raises:
      UserError: if there is not enough of books, a length is too short, or the file cannot be written.
    """
    out = Path(options.out)
    if not options.books:
        write_corpus(out.parent / "books")
    lines = make_words(options.count, options.seed) if out.suffix == ".txt" else chats(options, out)
    try:
        with out.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}: choose another place") from error
    console.print(f"{options.count:,} written: {out}", soft_wrap=True)


def chats(options: argparse.Namespace, out: Path) -> Iterator[str]:
    """Yield chats as rows of OpenAI's shape.

    Raises:
      UserError: if no tokenizer or no length is given.
    """
    if not (options.tokenizer and options.length):
        raise UserError("chats need --tokenizer and --length, in its tokens: or name a .txt, for words alone")
    text = load(options.tokenizer)
    coder, form = Coder(text.encode, text.decode, text.bos), Form(options.length, options.needles, options.asked)
    haystack = make_haystack(texts(options.books or [str(out.parent / "books")]), coder)
    for number, turns in enumerate(make_chats(haystack, coder, form, options.count, options.seed)):
        said = [pair for turn in turns for pair in zip(ROLES, turn, strict=True)]
        messages = [{"role": role, "content": content} for role, content in said]
        yield json.dumps({"id": f"{options.length}-{options.seed}-{number}", "messages": messages}, ensure_ascii=False)
