"""`worldloom generate … chat`: conversations about pictures, clips and books, at the terminal or in a file.

A conversation is written out by the very function that writes training's, and what was said stays in the cache.
"""

import json
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from .errors import UserError
from .packing.report import Reject
from .pipelines import chats
from .pipelines.chat_layout import ASSISTANT, USER, Context, Ids, Line, Said, render
from .pipelines.chats import End
from .pipelines.conversations import read_part
from .pipelines.encoding import Pending
from .pipelines.recent import Recent
from .pipelines.records import BadRecord, Chat
from .pipelines.to_codes import to_codes
from .pipelines.units import Part
from .recipe import Recipe
from .sources import ChatFilters, ChatSource
from .studio import Studio
from .training.generation.generate import State
from .training.generation.sample import Sampling

WANTED = "?"  # stands for an answer that is wanted, in rows that are read
HELP = "/image FILE, /video FILE, /book FILE: what the next question is about; /new: begin anew; /quit"

Row = dict[str, Any]
Books = dict[int, list[Any]]  # their paths, by the number of the turn that they stand in


def prompts_of(lines: Sequence[Line], studio: Studio) -> list[list[int]]:
    """Write a conversation out: what stands before each answer that is wanted, back to the one before it.

    Args:
      lines: answers that are wanted are trained ones, whose words are not looked at.
    """
    blank = [line._replace(said=[]) if line.role == ASSISTANT and line.trained else line for line in lines]
    vocabulary = studio.generator.vocabulary
    example = render(blank, studio.manner.template, studio.text, vocabulary, "chat", "", "")
    return [example.tokens[span.start : span.end].tolist() for span in example.spans if span.kind == USER]


def completed(row: Row) -> tuple[Row, Books]:
    """Put a mark where an answer is wanted: behind each user's turn that none follows. Answers that are there stay.

    Returns:
      the row as training reads it, without books, and those.

    Raises:
      UserError: it holds no messages, or none that wants an answer.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError("a conversation is a row with `messages`, a list of role and content each")
    made: list[Row] = []
    books: Books = {}
    for message, after in zip(messages, [*messages[1:], {}], strict=True):
        content = message.get("content")
        if isinstance(content, list):
            named = [part for part in content if isinstance(part, dict) and part.get("type") == "book"]
            message = {**message, "content": [part for part in content if part not in named]}
            if named:
                books[len(made)] = [part.get("book") for part in named]
        made.append({**message, "weight": 0} if message.get("role") == ASSISTANT else message)
        if message.get("role") == USER and after.get("role") != ASSISTANT:
            made.append({"role": ASSISTANT, "content": WANTED})
    if not any(message.get("content") == WANTED and "weight" not in message for message in made):
        raise UserError("a conversation ends with an answer, and wants none: let it end with a user's message")
    return {**row, "messages": made}, books


def read(rows: Sequence[Row], root: str, studio: Studio) -> Iterator[list[Line]]:
    """Turn rows of messages into lines, their pictures and clips into codes, as the job of a data set does.

    Args:
      root: the folder that paths in the rows lie below.

    Raises:
      UserError: a row is no conversation, or a file in it cannot be read.
    """
    whole = [completed(row) for row in rows]
    given: dict[str, Any] = {"media_root": root, "filters": ChatFilters(min_side=1), "template": studio.manner.template}
    source = ChatSource(name="chat", kind="chat", path=[root], **given)
    recipe = Recipe(vocabulary=studio.section, sources=[source])
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder) / "rows.jsonl", [row for row, _ in whole])
        part = Part("rows", str(path), 0, -1, path.stat().st_size, "")
        found = [_sound(chat) for chat in read_part(source, part, Path(folder))]
        for chat, frames, (_, books) in zip(found, _shown(found, recipe, source, folder), whole, strict=True):
            codes, lines = iter(frames), list[Line]()
            for n, turn in enumerate(chat.turns):
                said = [part if isinstance(part, str) else next(codes) for part in turn.parts]
                lines.append(Line(turn.role, [*_books(books.get(n, []), root, studio), *said], None, turn.trained))
            yield lines


def _sound(chat: Chat | BadRecord) -> Chat:
    if isinstance(chat, BadRecord):
        raise UserError(f"conversation {chat.where}: {chat.reason}{', ' * bool(chat.error)}{chat.error}")
    return chat


def _shown(found: Sequence[Chat], recipe: Recipe, source: ChatSource, folder: str) -> Iterator[list[Any]]:
    """Yield the pictures and clips of each chat, in order."""
    if not any(chat.media for chat in found):
        yield from ([] for _ in found)
        return
    if recipe.vocabulary.vision is None:
        raise UserError("a conversation shows pictures, and no tokenizer for them is named: name it by --vision")
    made, done = deque[Pending](), Recent[Pending](source)
    with closing(to_codes(recipe, source, chats.taken_apart(found, source), Path(folder))) as coded:
        for item in coded:
            if isinstance(item, Reject):
                raise UserError(f"{item.where}: {item.reason}, {item.error}")
            if isinstance(item, Pending):
                if item.unfit:
                    raise UserError(f"{item.found.where}: {item.unfit}")
                made.append(item)
            elif isinstance(item, End) and isinstance(item.of, Chat):
                pending = [done.find(medium) or done.hold(medium, made.popleft()) for medium in item.of.media]
                yield [chats.described(one, source) for one in pending]


def _books(paths: Sequence[Any], root: str, studio: Studio) -> Iterator[Said]:
    """Yield books as training has them: ids of their own, before the question about them."""
    for path in paths:
        try:
            text = (Path(root) / path).read_text("utf-8")
        except (OSError, TypeError, UnicodeDecodeError) as error:
            raise UserError(f"the book {path} cannot be read ({error}): give a text file") from error
        yield Context([Ids(studio.text.encode(text), "chunk", {})], "book", {})


class Talk:
    """Conversations that go on side by side, each a row of one cache."""

    def __init__(self, studio: Studio, rows: int, sampling: Sampling, seed: int, first: int = 0):
        self._studio, self._sampling, self._seed, self._first = studio, sampling, seed, first
        self._rows = studio.generator.fitting(rows)
        self._state: State = studio.generator.begin(self._rows, 1)
        self._open = [False] * self._rows  # did the last answer end without EOS?

    def ask(self, prompts: Sequence[list[int]], new_tokens: int) -> list[str]:
        """Answer in every row whose prompt is not empty."""
        generator, eos = self._studio.generator, self._studio.text.eos
        prompts = [*prompts, *([[]] * (self._rows - len(prompts)))]
        heard = [[eos] * (self._open[n] and bool(p)) + p for n, p in enumerate(prompts)]
        state = generator.hear(self._state, heard)
        speaks = [self._first + n if prompt else -1 for n, prompt in enumerate(prompts)]
        self._state, replies = generator.speak(state, new_tokens, self._sampling, self._seed, speaks)
        self._open = [
            len(reply) == new_tokens if prompt else was
            for reply, prompt, was in zip(replies, prompts, self._open, strict=True)
        ]
        return [self._studio.text.decode(reply).strip() for reply in replies]


def answer(
    studio: Studio, lines: Sequence[Sequence[Line]], new_tokens: int, sampling: Sampling, seed: int, first: int = 0
) -> list[list[str]]:
    """Give all answers that conversations want, turn by turn and side by side.

    Args:
      first: the number of the first one, which its chance comes from.
    """
    asked = [prompts_of(one, studio) for one in lines]
    talk, said = Talk(studio, len(asked), sampling, seed, first), [list[str]() for _ in asked]
    for turn in range(max(map(len, asked))):
        replies = talk.ask([prompts[turn] if turn < len(prompts) else [] for prompts in asked], new_tokens)
        for row, prompts in enumerate(asked):
            said[row] += [replies[row]] * (turn < len(prompts))
    return said


def answer_file(studio: Studio, path: Path, out: Path, new_tokens: int, sampling: Sampling, seed: int) -> None:
    """Answer the conversations of a JSONL file, a row each with OpenAI's `messages`; rows come back with the answers.

    A part of a message may also be {"type": "book", "book": FILE}. Paths start at the file's folder.
    """
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSONL: {error}") from error
    done: list[Row] = []
    for low in range(0, len(rows), studio.generator.rows):
        some = rows[low : low + studio.generator.rows]
        said = answer(studio, list(read(some, str(path.resolve().parent), studio)), new_tokens, sampling, seed, low)
        done += [filled(row, answers) for row, answers in zip(some, said, strict=True)]
    write_rows(out, done)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSONL. Returns the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def filled(row: Row, answers: Sequence[str]) -> Row:
    """Put answers where they are wanted."""
    left, made = deque(answers), list[Row]()
    for message, after in zip(row["messages"], [*row["messages"][1:], {}], strict=True):
        made.append(message)
        if message.get("role") == USER and after.get("role") != ASSISTANT:
            made.append({"role": ASSISTANT, "content": left.popleft()})
    return {**row, "messages": made}


def talk(studio: Studio, console: Console, new_tokens: int, sampling: Sampling, seed: int) -> None:
    """Read questions until there are no more, and answer each; lines that begin with / are commands."""
    if console.is_terminal:
        console.print(HELP, markup=False, soft_wrap=True)
    heard: list[Line] = []
    parts: list[Row] = []
    going = Talk(studio, 1, sampling, seed)
    while (line := _asked(console)) not in (None, "/quit"):
        command, _, rest = line.partition(" ")
        if command in ("/image", "/video", "/book"):
            kind = command[1:]
            parts.append({"type": kind, kind: str(Path(rest.strip()).expanduser().resolve())})
        elif command == "/new":
            heard, parts, going = [], [], Talk(studio, 1, sampling, seed)
        elif line.startswith("/"):
            console.print(HELP, markup=False, soft_wrap=True)
        elif line:
            content = [*parts, {"type": "text", "text": line}]
            parts = []
            try:
                (more,) = read([{"messages": [{"role": USER, "content": content}]}], "/", studio)
            except UserError as error:
                console.print(str(error), markup=False, soft_wrap=True)
                continue
            heard += more
            console.print(going.ask(prompts_of(heard, studio)[-1:], new_tokens)[0], markup=False, soft_wrap=True)


def _asked(console: Console) -> str | None:
    try:
        return console.input("[bold]> [/]" if console.is_terminal else "").strip()
    except EOFError:
        return None
