"""An OpenAI-compatible server that answers one text after the other: joins its client with whoever asks."""

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from .errors import UserError
from .packing.storage import Folder
from .pipelines.asking.in_order import in_order
from .pipelines.asking.replies import Replies
from .pipelines.asking.served import keeping
from .pipelines.asking.server import Server
from .pipelines.media import Unfit
from .sources import QuestionsSection

SYSTEM = "You are a helpful assistant."
SECONDS = 600.0  # for one reply: a server reads a million tokens for minutes
LEAST = 16  # tokens of a reply that a server is allowed, at the least
FLAGS = {"url": "--server", "model": "--model", "at_once": "--at-once", "per_minute": "--per-minute"}

log = logging.getLogger(__name__)


def ask(
    texts: Iterable[str],
    url: str,
    model: str,
    new_tokens: int,
    kept: Path,
    at_once: int = 4,
    per_minute: float | None = None,
) -> Iterator[str]:
    """Yield the reply to each text, in order; "" where the server has none for it, which is logged.

    Replies are kept in a folder and never asked for again: a run that was stopped goes on where it was.

    Args:
      url: up to /v1.
      new_tokens: of a reply, at the most.
      at_once: requests in flight.
      per_minute: requests a minute, of all processes of this machine together.

    Raises:
      UserError: if the URL is none, or the server is not there or wants a key; it is read from WORLDLOOM_API_KEY.
    """
    folder = Folder(str(kept))
    folder.make()
    try:
        section = QuestionsSection(
            by="server",
            url=url,
            model=model,
            temperature=0,
            max_tokens=max(LEAST, new_tokens),
            structured="none",
            at_once=at_once,
            per_minute=per_minute,
            seconds=SECONDS,
        )
        yield from in_order(texts, _opened(section, Replies(folder)), at_once, at_once)
    except UserError as error:
        raise type(error)(in_flags(str(error))) from error
    except ValueError as error:
        raise UserError(f"--server {url!r} and --model {model!r}: give an http URL and a model's name") from error


@asynccontextmanager
async def _opened(section: QuestionsSection, replies: Replies) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    async with Server(section) as server:
        reply = keeping(server.reply, replies)

        async def one(text: str) -> str:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
            try:
                return (await reply(server.request(messages, 0))).content
            except Unfit as unfit:
                log.warning("no reply, which counts as wrong: %s", unfit.detail)
                return ""

        yield one


def in_flags(sentence: str) -> str:
    """Name the flags of a command where a sentence names the keys of a recipe."""
    return re.sub(r"questions\.(\w+)", lambda found: FLAGS.get(found[1], found[1]), sentence)
