"""What a server makes of chunks: asked once, asked again where its reply is not valid, and checked."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any
from weakref import WeakValueDictionary

from ...packing.storage import Folder
from ...sources import QuestionsSection
from ..media import Unfit
from .in_order import in_order
from .outcome import Chunk, Outcome, Pair, Usage
from .prompt import PROMPT, digest, first_messages, read_pair, repair_messages
from .replies import Replies, Reply, name_of
from .scripts import words
from .server import Server
from .worth import check

AHEAD = 8  # chunks begun before the one whose turn it is, in multiples of `at_once`


def outcomes(chunks: Iterable[Chunk], section: QuestionsSection, seed: int, folder: Folder) -> Generator[Outcome]:
    """Yield what a server makes of each chunk, in order; see `ask`."""
    folder.make()
    return in_order(chunks, _asking(section, seed, Replies(folder)), AHEAD * section.at_once, section.at_once)


@asynccontextmanager
async def _asking(
    section: QuestionsSection, seed: int, replies: Replies
) -> AsyncIterator[Callable[[Chunk], Awaitable[Outcome]]]:
    places = asyncio.Semaphore(section.at_once)
    async with Server(section) as server:
        reply = keeping(server.reply, replies)

        async def one(chunk: Chunk) -> Outcome:
            async with places:
                return await ask_one(chunk, section, seed, server.request, reply)

        yield one


def keeping(
    reply: Callable[[dict[str, Any]], Awaitable[Reply]], replies: Replies
) -> Callable[[dict[str, Any]], Awaitable[Reply]]:
    """Look for each reply among those that were kept, and keep it before it is used."""
    locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # a passage may stand in two places

    async def kept(request: dict[str, Any]) -> Reply:
        name = name_of(request)
        async with locks.setdefault(name, asyncio.Lock()):
            if found := await asyncio.to_thread(replies.find, name):
                return found
            return await asyncio.to_thread(replies.keep, name, await reply(request))

    return kept


async def ask_one(
    chunk: Chunk,
    section: QuestionsSection,
    seed: int,
    request: Callable[..., dict[str, Any]],
    reply: Callable[[dict[str, Any]], Awaitable[Reply]],
) -> Outcome:
    """Ask about a chunk, and once more where the reply is not valid."""
    usage, flaw, prompt, drawn = Usage(), "", section.prompt or PROMPT, _draw(seed, chunk.text)
    messages = first_messages(prompt, chunk.text)
    try:
        for _ in range(2):
            got = await reply(request(messages, drawn))
            usage += got.usage
            try:
                question, answer = read_pair(got.content)
            except ValueError as error:
                flaw = str(error)
                messages = repair_messages(messages, got.content, flaw)
                continue
            check(question, answer, set(words(chunk.text)), section.support)
            told = {"model": section.model, "prompt": digest(prompt), "seed": drawn, "usage": asdict(usage)}
            return Outcome(chunk, Pair(question, answer, told), usage)
        raise Unfit("failed", "no valid reply", flaw)
    except Unfit as unfit:
        return Outcome(chunk, unfit.with_traceback(None), usage)


def _draw(seed: int, text: str) -> int:
    """Return the seed of a chunk's requests: one for all would draw alike for each."""
    drawn = hashlib.blake2b(f"{seed} {text}".encode(errors="replace"), digest_size=4).digest()
    return int.from_bytes(drawn) & 0x7FFFFFFF  # servers take 31 bits
