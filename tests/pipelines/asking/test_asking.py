"""Asking a local server that misbehaves in every way: each chunk has one outcome, and no reply is paid for twice."""

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worldloom.errors import UserError
from worldloom.packing.storage import TEMPORARY, Folder
from worldloom.pipelines.asking.ask import ask
from worldloom.pipelines.asking.outcome import Chunk, Outcome, Pair, Usage
from worldloom.pipelines.asking.replies import sweep
from worldloom.pipelines.media import Unfit
from worldloom.sources import QuestionsSection

PAIR = json.dumps({"question": "Who keeps the lamp?", "answer": "old Tomas Brandt"})


def passage(number: int) -> Chunk:
    """Make a chunk that a good reply fits; its number stands in it."""
    return Chunk(f"book{number}#0", f"Passage {number} begins. The lamp is kept by old Tomas Brandt, who never sleeps.")


def completion(content: Any, prompt_tokens: int = 7, completion_tokens: int = 3, **more: Any) -> bytes:
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": 10}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage, **more}).encode()


class Asked:
    """One request: which passage it is about, the how-manieth about it, and what was sent."""

    def __init__(self, number: int | None, turn: int, head: str, body: dict[str, Any], writer: asyncio.StreamWriter):
        self.number, self.turn, self.head, self.body, self.writer = number, turn, head, body, writer
        self.when = time.monotonic()
        self.repair = len(body["messages"]) > 1

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, body: bytes, status: str = "200 OK", kind: str = "application/json", **more: object) -> None:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
        first = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
        await self.send("\r\n".join([*first, *lines]).encode() + b"\r\n\r\n" + body)


Behave = Callable[[Asked], Awaitable[None]]


async def good(asked: Asked) -> None:
    await asked.reply(completion(PAIR))


class Oracle:
    """A server on 127.0.0.1. `behave` is called for each request; harmless ones, about no passage, get good replies."""

    def __init__(self) -> None:
        self.behave: Behave = good
        self.asked: list[Asked] = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="oracle", daemon=True)
        self.thread.start()
        self.server = self.run(asyncio.start_server(self.serve, "127.0.0.1", 0, limit=2**22))
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(re.search(r"content-length: (\d+)", head.lower())[1])
            body = json.loads(await reader.readexactly(length))
            found = re.search(r"Passage (\d+) begins", body["messages"][0]["content"])
            number = int(found[1]) if found else None
            asked = Asked(number, self.count(number), head, body, writer)
            self.asked.append(asked)
            await self.behave(asked)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def count(self, number: int | None) -> int:
        return sum(asked.number == number for asked in self.asked)

    def close(self) -> None:
        async def end() -> None:
            self.server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    oracle = Oracle()
    yield oracle
    oracle.close()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the client wait less between its tries, and find nothing that belongs to this machine."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    monkeypatch.delenv("WORLDLOOM_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("rates")))


def section(oracle: Oracle, **changes: Any) -> QuestionsSection:
    given = {"by": "server", "url": oracle.url, "model": "m", "retries": 2, "seconds": 5.0, "at_once": 8}
    return QuestionsSection(**{**given, **changes})


def asked(oracle: Oracle, folder: Path, count: int = 1, **changes: Any) -> list[Outcome]:
    """Ask about passages 0, 1, …; the outcomes must be of them all, in order."""
    chunks = [passage(number) for number in range(count)]
    outcomes = list(ask(chunks, section(oracle, **changes), 5, Folder(str(folder))))
    assert [outcome.chunk for outcome in outcomes] == chunks
    return outcomes


def refused(oracle: Oracle, folder: Path, count: int = 1, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        asked(oracle, folder, count, **changes)
    return str(caught.value)


def failure(outcome: Outcome) -> tuple[str, str]:
    assert isinstance(outcome.found, Unfit)
    return outcome.found.status, outcome.found.reason


def on_passages(behave: Behave) -> Behave:
    """Behave so on passages, and well on what is about none."""

    async def chosen(asked: Asked) -> None:
        await (good if asked.number is None else behave)(asked)

    return chosen


# The ways to misbehave.


async def too_many(asked: Asked) -> None:
    await asked.reply(b'{"error": {"message": "slow down"}}', "429 Too Many Requests", Retry_After="0.05")


async def broken(asked: Asked) -> None:
    await asked.reply(b"oops", "500 Internal Server Error", "text/plain")


async def garbage(asked: Asked) -> None:
    await asked.reply(bytes(range(256)))


async def no_http(asked: Asked) -> None:
    await asked.send(b"\x00\x01\x02 what is HTTP?\r\n\r\n")


async def half(asked: Asked) -> None:
    await asked.reply(completion(PAIR)[:60])


async def half_of_body(asked: Asked) -> None:
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + completion(PAIR))


async def hang(asked: Asked) -> None:
    await asyncio.sleep(30)


async def dribble(asked: Asked) -> None:
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10000\r\n\r\n")
    for _ in range(1000):
        await asked.send(b" ")
        await asyncio.sleep(0.02)


async def dribble_head(asked: Asked) -> None:
    await asked.send(b"HTTP/1.1 200 OK\r\n")
    for number in range(1000):
        await asked.send(b"X-%d: y\r\n" % number)
        await asyncio.sleep(0.02)


async def drop(asked: Asked) -> None:
    asked.writer.transport.abort()


async def huge(asked: Asked) -> None:
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(10_000):
        await asked.send(b"10000\r\n" + b"[" * 0x10000 + b"\r\n")


async def bomb(asked: Asked) -> None:
    await asked.reply(gzip.compress(bytes(10**7)), Content_Encoding="gzip")


async def page(asked: Asked) -> None:
    await asked.reply(b"<html>Welcome to the hotel's network</html>", kind="text/html")


async def other_json(asked: Asked) -> None:
    await asked.reply(b'{"error": {"message": "no provider"}}')


async def deep(asked: Asked) -> None:
    await asked.reply(b"[" * 50_000)


async def no_choice(asked: Asked) -> None:
    await asked.reply(b'{"choices": [], "usage": {}}')


async def elsewhere(asked: Asked) -> None:
    await asked.reply(b"", "302 Found", Location="http://127.0.0.1:9/")


MISBEHAVE = [
    *(too_many, broken, garbage, no_http, half, half_of_body, hang, dribble, dribble_head, drop, huge, bomb, page),
    *(other_json, deep, no_choice, elsewhere),
]


def test_each_chunk_has_its_outcome_whatever_the_server_does(oracle: Oracle, tmp_path: Path) -> None:
    """Every third passage is answered well, the others are misbehaved on for good, in every way."""

    async def behave(asked: Asked) -> None:
        await (MISBEHAVE[asked.number // 2] if asked.number % 2 else good)(asked)

    oracle.behave = on_passages(behave)
    outcomes = asked(oracle, tmp_path, 2 * len(MISBEHAVE), retries=1, seconds=1.5, at_once=40)
    for number, outcome in enumerate(outcomes):
        if number % 2:
            assert failure(outcome) == ("failed", "no reply"), MISBEHAVE[number // 2].__name__
            assert outcome.found.detail and outcome.usage == Usage()
        else:
            assert outcome.found[:2] == ("Who keeps the lamp?", "old Tomas Brandt")
            assert outcome.usage == Usage(1, 7, 3)
    tries = {MISBEHAVE[n // 2].__name__: oracle.count(n) for n in range(1, 2 * len(MISBEHAVE), 2)}
    assert tries == {**dict.fromkeys(tries, 2), "elsewhere": 1}
    details = {MISBEHAVE[n // 2]: outcomes[n].found.detail for n in range(1, 2 * len(MISBEHAVE), 2)}
    assert "over 81920 bytes" in details[huge] and "compressed" in details[bomb]
    assert all("no whole answer within 1.5 seconds" in details[slow] for slow in (hang, dribble, dribble_head))
    assert "429, 'slow down'" in details[too_many] and "hotel's network" in details[page]


@pytest.mark.parametrize("misbehave", [too_many, broken, half, no_http, drop, dribble], ids=lambda f: f.__name__)
def test_another_try_may_help(oracle: Oracle, tmp_path: Path, misbehave: Behave) -> None:
    async def behave(asked: Asked) -> None:
        await (misbehave if asked.turn < 2 else good)(asked)

    oracle.behave = behave
    [outcome] = asked(oracle, tmp_path, seconds=1.0 if misbehave is dribble else 5.0)
    assert isinstance(outcome.found, Pair) and oracle.count(0) == 3 and outcome.usage == Usage(1, 7, 3)


def test_the_server_says_when_to_come_back(oracle: Oracle, tmp_path: Path) -> None:
    async def behave(asked: Asked) -> None:
        if asked.turn:
            return await good(asked)
        await asked.reply(b"{}", "429 Too Many Requests", Retry_After="0.6")

    oracle.behave = behave
    asked(oracle, tmp_path)
    first, second = oracle.asked
    assert second.when - first.when >= 0.6


def says(*contents: Any) -> Behave:
    """Reply with these to the first, the second … request about a passage, the last again and again."""

    async def behave(asked: Asked) -> None:
        turn = min(asked.turn, len(contents) - 1)
        await asked.reply(completion(contents[turn], prompt_tokens=10 + turn, completion_tokens=100 + turn))

    return behave


@pytest.mark.parametrize(
    "invalid",
    [
        "Sure! Here is a question.",
        None,
        "",
        PAIR[:-3],
        "[]",
        '{"question": "Who?"}',
        '{"question": "Who?", "answer": 3}',
    ],
)
def test_a_reply_that_is_not_valid_is_repaired_once(oracle: Oracle, tmp_path: Path, invalid: str | None) -> None:
    oracle.behave = says(invalid, PAIR)
    [outcome] = asked(oracle, tmp_path)
    assert outcome.found[:2] == ("Who keeps the lamp?", "old Tomas Brandt")
    assert outcome.usage == Usage(2, 21, 201)
    assert outcome.found.told["usage"] == {"requests": 2, "prompt_tokens": 21, "completion_tokens": 201}
    first, second = (one.body["messages"] for one in oracle.asked)
    assert second[:1] == first and [m["role"] for m in second] == ["user", "assistant", "user"]
    assert second[1]["content"] == (invalid or "(nothing)") and "not valid" in second[2]["content"]


def test_a_reply_that_stays_invalid_fails_and_is_counted(oracle: Oracle, tmp_path: Path) -> None:
    oracle.behave = says("no", "never")
    for _ in range(2):  # the second time without a request
        [outcome] = asked(oracle, tmp_path)
        assert failure(outcome) == ("failed", "no valid reply") and outcome.usage == Usage(2, 21, 201)
    assert len(oracle.asked) == 2


def test_what_is_sent(oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDLOOM_MY_API_KEY", " sk-secret\n")
    asked(oracle, tmp_path, 2, key="WORLDLOOM_MY_API_KEY", temperature=0.25, max_tokens=99, prompt="Ask of {}!")
    one, two = sorted((one.body for one in oracle.asked), key=lambda body: body["messages"][0]["content"])
    assert one["messages"] == [{"role": "user", "content": f"Ask of {passage(0).text}!"}]
    assert (one["model"], one["temperature"], one["max_tokens"]) == ("m", 0.25, 99)
    assert 0 <= one["seed"] < 2**31 and one["seed"] != two["seed"]
    form = one["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"]["required"] == ["question", "answer"]
    assert set(one) == {"model", "messages", "temperature", "max_tokens", "seed", "response_format"}
    assert all("authorization: bearer sk-secret\r\n" in one.head.lower() for one in oracle.asked)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == 2 and not any(b"sk-secret" in path.read_bytes() for path in kept)


def test_what_is_for_openai_is_not_sent(oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable that OpenAI's client knows of: a recipe may name any url."""
    names = ["API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET", "API_TYPE", "API_VERSION"]
    for name in names:
        monkeypatch.setenv(f"OPENAI_{name}", "of-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/of-openai")
    headers = ["Authorization: Bearer of-openai", "User-Agent: of-openai", "Host: of-openai", "X-More: of-openai"]
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "\n".join(headers))
    asked(oracle, tmp_path)
    monkeypatch.setenv("WORLDLOOM_API_KEY", "sk-mine")
    asked(oracle, tmp_path, temperature=0.1)
    for one, key in zip(oracle.asked, ("none", "sk-mine"), strict=True):
        assert "of-openai" not in one.head + json.dumps(one.body) and "openai-" not in one.head.lower()
        assert f"authorization: bearer {key}\r\n" in one.head.lower()


@pytest.mark.parametrize(
    "key", ["OPENAI_API_KEY", "API_KEY", "WORLDLOOMAPI_KEY", "WORLDLOOM_TOKEN", "WORLDLOOM_x_API_KEY"]
)
def test_no_recipe_names_a_key_that_is_not_for_recipes(oracle: Oracle, key: str) -> None:
    assert section(oracle).key == "WORLDLOOM_API_KEY" and section(oracle, key="WORLDLOOM_B2_API_KEY")
    with pytest.raises(ValueError, match="key"):
        section(oracle, key=key)


@pytest.mark.parametrize(("structured", "form"), [("json_object", {"type": "json_object"}), ("none", None)])
def test_how_json_is_asked_for(oracle: Oracle, tmp_path: Path, structured: str, form: dict[str, str] | None) -> None:
    asked(oracle, tmp_path, structured=structured)
    assert oracle.asked[0].body.get("response_format") == form
    assert "authorization: bearer none\r\n" in oracle.asked[0].head.lower()


def test_pairs_without_worth_are_dropped(oracle: Oracle, tmp_path: Path) -> None:
    replies = [
        {"question": "Who keeps the lamp?", "answer": "the king of Spain"},
        {"question": "Does old Tomas Brandt keep it?", "answer": "old Tomas Brandt"},
    ]

    async def behave(asked: Asked) -> None:
        await asked.reply(completion(json.dumps(replies[asked.number])))

    oracle.behave = behave
    outcomes = asked(oracle, tmp_path, 2)
    assert [failure(o) for o in outcomes] == [
        ("dropped", "answer not supported"),
        ("dropped", "answer in the question"),
    ]
    assert [o.usage for o in outcomes] == [Usage(1, 7, 3)] * 2


def test_no_book_is_asked_the_same_twice(oracle: Oracle, tmp_path: Path) -> None:
    chunks = [Chunk("a#0", passage(0).text), Chunk("a#1", passage(1).text), Chunk("b#0", passage(2).text)]
    outcomes = list(ask(chunks, section(oracle), 5, Folder(str(tmp_path))))
    assert [isinstance(o.found, Pair) for o in outcomes] == [True, False, True]
    assert failure(outcomes[1]) == ("dropped", "duplicate question") and outcomes[1].usage == Usage(1, 7, 3)


@pytest.mark.parametrize("folder", ["", "memory://replies-of-a-test"])
def test_what_was_paid_for_is_not_asked_again(oracle: Oracle, tmp_path: Path, folder: str) -> None:
    place = Folder(folder or str(tmp_path))
    chunks = [passage(number) for number in range(6)]
    first = list(ask(chunks, section(oracle), 5, place))
    second = list(ask(chunks, section(oracle), 5, place))
    assert len(oracle.asked) == 6 and first == second
    list(ask(chunks, section(oracle, temperature=0.1), 5, place))
    list(ask(chunks, section(oracle), 6, place))
    assert len(oracle.asked) == 18


def test_what_the_limit_is_called_is_nothing_to_pay_for(oracle: Oracle, tmp_path: Path) -> None:
    first = asked(oracle, tmp_path, limited_by="max_completion_tokens")
    assert oracle.asked[0].body["max_completion_tokens"] == 256 and "max_tokens" not in oracle.asked[0].body
    assert asked(oracle, tmp_path) == first and len(oracle.asked) == 1
    asked(oracle, tmp_path, max_tokens=99)
    assert len(oracle.asked) == 2


def test_replies_lie_in_folders_that_are_swept(oracle: Oracle, tmp_path: Path) -> None:
    asked(oracle, tmp_path, 40)
    kept = list(tmp_path.rglob("*.json"))
    assert len(kept) == 40 and all(re.fullmatch(r"[0-9a-f]{32}", path.stem) for path in kept)
    assert {path.parent for path in kept} == {tmp_path / path.stem[:2] for path in kept} == set(tmp_path.iterdir())
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    drafts = [path.with_name(f"{TEMPORARY}{ended.pid}-{n}") for n, path in enumerate(kept)]
    live = kept[0].with_name(f"{TEMPORARY}{os.getppid()}-x")
    for draft in [*drafts, live]:
        draft.touch()
    assert sweep(Folder(str(tmp_path))) == 40 and sweep(Folder(str(tmp_path / "none"))) == 0
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*kept, live}


def test_the_same_passage_is_asked_about_once(oracle: Oracle, tmp_path: Path) -> None:
    chunks = [Chunk(f"book{number}#0", passage(0).text) for number in range(8)]
    outcomes = list(ask(chunks, section(oracle), 5, Folder(str(tmp_path))))
    assert len(oracle.asked) == 1 and all(isinstance(o.found, Pair) for o in outcomes)


def test_a_torn_or_strange_reply_is_none(oracle: Oracle, tmp_path: Path) -> None:
    before = asked(oracle, tmp_path, 6)
    torn, empty, strange, changed, swapped, whole = sorted(tmp_path.rglob("*.json"))
    kept = [path.read_bytes() for path in (torn, empty, strange, changed, swapped, whole)]
    torn.write_bytes(kept[0][:40])
    empty.write_bytes(b"")
    strange.write_bytes(b'{"content": "hello"}')
    changed.write_bytes(kept[3].replace(b"Brandt", b"Brundt"))
    swapped.write_bytes(kept[5])
    assert asked(oracle, tmp_path, 6) == before
    assert sorted(Counter(one.number for one in oracle.asked).values()) == [1, 2, 2, 2, 2, 2]
    assert [path.read_bytes() for path in (torn, empty, strange, changed, swapped, whole)] == kept


def test_no_more_at_once_than_allowed_and_in_order(oracle: Oracle, tmp_path: Path) -> None:
    flying, most = 0, 0

    async def behave(asked: Asked) -> None:
        nonlocal flying, most
        flying, most = flying + 1, max(most, flying + 1)
        await asyncio.sleep(0.1 if asked.number == 0 else 0.01)
        flying -= 1
        await good(asked)

    oracle.behave = behave
    asked(oracle, tmp_path, 40, at_once=3)  # 24 of them begin before the first is yielded
    assert most == 3


def test_who_leaves_early_leaves_nothing_behind(oracle: Oracle, tmp_path: Path) -> None:
    async def behave(asked: Asked) -> None:
        await (good if asked.number < 2 else hang)(asked)

    oracle.behave = behave
    threads = set(threading.enumerate())
    outcomes = ask((passage(n) for n in range(100)), section(oracle, seconds=60.0), 5, Folder(str(tmp_path)))
    assert next(outcomes).chunk == passage(0) and next(outcomes).chunk == passage(1)
    outcomes.close()
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive()


def test_what_the_chunks_raise_is_raised(oracle: Oracle, tmp_path: Path) -> None:
    def chunks() -> Iterator[Chunk]:
        yield passage(0)
        raise OSError("the book is gone")

    with pytest.raises(OSError, match="the book is gone"):
        list(ask(chunks(), section(oracle), 5, Folder(str(tmp_path))))


# Errors of a whole run.


def status(line: str, said: str = "because") -> Behave:
    async def behave(asked: Asked) -> None:
        await asked.reply(json.dumps({"error": {"message": said}}).encode(), line)

    return behave


@pytest.mark.parametrize(
    ("line", "mends"),
    [
        ("401 Unauthorized", ["WORLDLOOM_MY_API_KEY", "holds one that it does not take"]),
        ("403 Forbidden", ["WORLDLOOM_MY_API_KEY"]),
        ("404 Not Found", ["questions.url", "questions.model", "'m'"]),
        ("400 Bad Request", ["questions.structured to json_object or none"]),
        ("422 Unprocessable Entity", ["questions.structured to json_object or none"]),
        ("413 Payload Too Large", ["settings of questions"]),
        ("429 Too Many Requests", ["questions.per_minute"]),
        ("503 Service Unavailable", ["look at its log"]),
    ],
)
def test_a_server_that_refuses_everything_ends_the_run(
    oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, mends: list[str]
) -> None:
    monkeypatch.setenv("WORLDLOOM_MY_API_KEY", "sk-secret")
    oracle.behave = status(line, "no, sk-secret is not good")
    said = refused(oracle, tmp_path, 1000, key="WORLDLOOM_MY_API_KEY", retries=1)
    assert all(part in said for part in [oracle.url, line[:3], "no, [key] is not good", *mends])
    assert "sk-secret" not in said and len(oracle.asked) <= 40


def test_a_server_that_is_not_there_ends_the_run_at_once(oracle: Oracle, tmp_path: Path) -> None:
    gone = Oracle()
    gone.close()
    url = gone.url.replace("http://", "http://user:pass@")
    said = refused(oracle, tmp_path, 10, url=url, retries=20)
    assert "cannot be reached" in said and "questions.url" in said and gone.url in said and "pass" not in said


def test_a_server_that_never_answers_ends_the_run(oracle: Oracle, tmp_path: Path) -> None:
    oracle.behave = hang
    said = refused(oracle, tmp_path, 10, seconds=0.2, retries=1)
    assert "no whole answer within 0.2 seconds" in said and "questions.seconds" in said


def test_a_server_that_dies_ends_the_run(oracle: Oracle, tmp_path: Path) -> None:
    async def behave(asked: Asked) -> None:
        await (good if len(oracle.asked) <= 20 else drop)(asked)

    oracle.behave = behave
    with pytest.raises(UserError, match="gives no reply"):
        asked(oracle, tmp_path, 1000, at_once=2, retries=1)
    assert len(oracle.asked) < 60


def test_a_passage_that_is_refused_fails_alone(oracle: Oracle, tmp_path: Path) -> None:
    """A filter of contents may meet the very first passage, and many."""

    async def behave(asked: Asked) -> None:
        refuse = asked.number is not None and asked.number % 2 == 0
        await (status("400 Bad Request", "content filter") if refuse else good)(asked)

    oracle.behave = behave
    outcomes = asked(oracle, tmp_path, 10)
    assert [isinstance(o.found, Pair) for o in outcomes] == [False, True] * 5
    assert failure(outcomes[0]) == ("failed", "no reply") and "content filter" in outcomes[0].found.detail


@pytest.mark.parametrize("url", ["http://[bad", "http://127.0.0.1:99999/v1", "http:///v1", "ftp://a/v1", ""])
def test_a_url_that_is_none_is_refused_in_the_recipe(url: str) -> None:
    with pytest.raises(ValueError, match="a server needs its url"):
        QuestionsSection(by="server", url=url, model="m")


@pytest.mark.parametrize("url", ["http://a b/v1", "https://-/v1"])
def test_a_url_that_nobody_has(oracle: Oracle, tmp_path: Path, url: str) -> None:
    assert "questions.url" in refused(oracle, tmp_path, url=url, seconds=1.0)


def test_a_key_that_is_none(oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDLOOM_MY_API_KEY", "sk-\nsecret")
    said = refused(oracle, tmp_path, key="WORLDLOOM_MY_API_KEY")
    assert "WORLDLOOM_MY_API_KEY" in said and "secret" not in said


# Processes.

ASK = """
import sys
from worldloom.packing.storage import Folder
from worldloom.pipelines.asking.ask import ask
from worldloom.pipelines.asking.outcome import Chunk
from worldloom.sources import QuestionsSection
url, folder, first, end, options = sys.argv[1:]
text = "Passage {} begins. The lamp is kept by old Tomas Brandt, who never sleeps."
chunks = [Chunk(f"book{n}#0", text.format(n)) for n in range(int(first), int(end))]
section = QuestionsSection.model_validate_json(options)
assert len(list(ask(chunks, section, 5, Folder(folder)))) == len(chunks)
"""


def start(oracle: Oracle, folder: Path, first: int, end: int, **changes: Any) -> subprocess.Popen[bytes]:
    options = section(oracle, **changes).model_dump_json()
    return subprocess.Popen([sys.executable, "-c", ASK, oracle.url, str(folder), str(first), str(end), options])


def test_no_reply_is_paid_for_twice_after_a_kill(oracle: Oracle, tmp_path: Path) -> None:
    reached = threading.Event()

    async def behave(asked: Asked) -> None:
        if len(oracle.asked) > 30:
            reached.set()
        await asyncio.sleep(0.005 * (asked.number % 4))
        await (says("no", PAIR) if asked.number % 3 else good)(asked)

    oracle.behave = behave
    process = start(oracle, tmp_path, 0, 100, at_once=4)
    try:
        assert reached.wait(60)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait(10)
    before = [json.dumps(one.body, sort_keys=True) for one in oracle.asked]
    kept = len(list(tmp_path.rglob("*.json")))
    assert 10 <= kept <= len(before) <= kept + 4 + 4  # those in flight, and those whose reply came meanwhile
    outcomes = asked(oracle, tmp_path, 100, at_once=4)
    assert all(isinstance(o.found, Pair) for o in outcomes)
    times = Counter(json.dumps(one.body, sort_keys=True) for one in oracle.asked)
    assert len(times) == sum(o.usage.requests for o in outcomes)
    assert sum(times.values()) - len(times) == len(before) - kept  # none but those without a file was asked again


def test_the_rate_holds_for_all_processes(oracle: Oracle, tmp_path: Path) -> None:
    spacing = 0.05
    processes = [start(oracle, tmp_path, 20 * i, 20 * (i + 1), per_minute=60 / spacing) for i in range(2)]
    try:
        assert [process.wait(60) for process in processes] == [0] * 2
    finally:
        for process in processes:
            process.kill()
    times = sorted(one.when for one in oracle.asked)
    assert len(times) == 40
    for run in (10, 20, 35):  # requests in a row; a turn may be used a little late, and that much earlier than the next
        shortest = min(last - first for first, last in zip(times, times[run:], strict=False))
        assert shortest >= (run - 1) * spacing - 0.25
