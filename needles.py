"""`worldloom needles`: writes chats that teach a model to find needles, for a recipe's chat source."""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from .errors import UserError
from .pipelines.books import texts
from .tokenizers.text import load
from .training.evaluation.needle import Coder, make_haystack
from .training.evaluation.needle_data import Form, make_chats, make_words

ROLES = "user", "assistant"


def run_needles(options: argparse.Namespace, console: Console) -> None:
    """Write chats about pieces of books as JSON lines; to a .txt, only the words for a tokenizer to learn.

    Raises:
      UserError: if there is not enough of books, a length is too short, or the file cannot be written.
    """
    if Path(options.out).suffix == ".txt":
        lines: Iterable[str] = make_words(options.count, options.seed)
    else:
        lines = chats(options)
    try:
        with Path(options.out).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise UserError(f"cannot write {options.out}: {error.strerror}: choose another place") from error
    console.print(f"{options.count:,} written: {options.out}", soft_wrap=True)


def chats(options: argparse.Namespace) -> Iterator[str]:
    """Yield chats as rows of OpenAI's shape."""
    if not (options.tokenizer and options.books and options.length):
        raise UserError("chats need --tokenizer, --books and --length: or name a .txt, for words alone")
    text = load(options.tokenizer)
    coder, form = Coder(text.encode, text.decode, text.bos), Form(options.length, options.needles, options.asked)
    haystack = make_haystack(texts(options.books), coder)
    for number, turns in enumerate(make_chats(haystack, coder, form, options.count, options.seed)):
        said = [pair for turn in turns for pair in zip(ROLES, turn, strict=True)]
        messages = [{"role": role, "content": content} for role, content in said]
        yield json.dumps({"id": f"{options.length}-{options.seed}-{number}", "messages": messages}, ensure_ascii=False)
