"""Fetching from a local server that misbehaves in every way, reached through an injected lookup and socket."""

import asyncio
import gc
import gzip
import logging
import random
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from worldloom import __version__
from worldloom.pipelines.fetching import exchange
from worldloom.pipelines.fetching import fetch as fetch_module
from worldloom.pipelines.fetching.fetch import Fetched, Fetcher, FetchLimits, pause
from worldloom.pipelines.media import Unfit

OK = "HTTP/1.1 200 OK\r\n"
PUBLIC = "93.184.216.34"  # what names are said to be; the injected socket goes to the local server instead
CAP = 100_000
LIMITS = FetchLimits(bytes=CAP, seconds=5.0, retries=0, at_once=16, per_host=4)
Behave = Callable[["Asked"], Awaitable[None]]


class Asked:
    """One request that the server was sent."""

    def __init__(self, head: str, writer: asyncio.StreamWriter):
        first, *lines = head.split("\r\n")
        self.method, self.target, self.version = first.split(" ")
        self.headers = dict(line.lower().split(": ", 1) for line in lines if line)
        self.host, self.writer = self.headers["host"], writer

    async def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def reply(self, body: bytes = b"picture", status: str = "200 OK", **headers: object) -> None:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *lines])
        await self.send(head.encode() + b"\r\n\r\n" + body)


class Web:
    """A server on 127.0.0.1 that plays every host of the internet, with a thread of its own."""

    def __init__(self, tls: ssl.SSLContext | None = None):
        self.behaviours: dict[str, Behave] = {}
        self.asked: list[Asked] = []
        self.connected: list[str] = []  # the addresses that were meant
        self.looked_up: list[str] = []
        self.names: dict[str, list[str] | Exception] = {}
        self.flying: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="web", daemon=True)
        self.thread.start()
        self.server = self.run(asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=tls, limit=2**20))
        self.address = self.server.sockets[0].getsockname()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if (first := await reader.readexactly(1)) == b"\x16":  # TLS, which is not spoken here
                return writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            asked = Asked((first + await reader.readuntil(b"\r\n\r\n")).decode(), writer)
            self.asked.append(asked)
            for key in (asked.host, "all"):
                self.flying[key] += 1
                self.most[key] = max(self.most[key], self.flying[key])
            try:
                await self.behaviours[asked.target.split("?")[0]](asked)
            finally:
                self.flying.subtract((asked.host, "all"))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def close(self) -> None:
        async def end() -> None:
            self.server.close()
            await settle()  # what was just taken finds its handler
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await settle()  # what is being closed is closed

        async def settle() -> None:
            for _ in range(10):
                await asyncio.sleep(0)

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def look_up(self, name: str) -> list[str]:
        self.looked_up.append(name)
        answer = self.names.get(name, [PUBLIC])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def open_socket(self, info: Any) -> socket.socket:
        self.connected.append(info[4][0])
        rerouted = Rerouted(socket.AF_INET, socket.SOCK_STREAM)
        rerouted.target = self.address
        return rerouted

    def says(self, path: str, *args: Any, **kwargs: Any) -> None:
        async def behave(asked: Asked) -> None:
            await asked.reply(*args, **kwargs)

        self.behaviours[path] = behave

    def sends(self, path: str, data: bytes | str, then: float = 0.0) -> None:
        async def behave(asked: Asked) -> None:
            await asked.send(data)
            await asyncio.sleep(then)

        self.behaviours[path] = behave

    def fetcher(self, **changes: Any) -> Fetcher:
        return Fetcher(LIMITS._replace(**changes), self.look_up, self.open_socket)

    def one(self, url: Any, folder: Path | None = None, **changes: Any) -> Fetched | Unfit:
        with self.fetcher(**changes) as fetcher:
            [(row, found)] = fetcher.fetch([url], lambda url: url, folder)
        assert row is url
        return found

    def refusal(self, url: Any, **changes: Any) -> tuple[str, str]:
        found = self.one(url, **changes)
        assert isinstance(found, Unfit), found
        assert found.detail.isascii() and found.detail.isprintable() and len(found.detail) < 1000
        assert found.__traceback__ is None and found.__context__ is None  # else a report would hold the body's frames
        return found.status, found.reason


class Rerouted(socket.socket):
    """A socket that connects to the local server, whatever it is told."""

    target: Any

    def connect(self, address: Any) -> None:
        super().connect(self.target)


@pytest.fixture
def web(caplog: pytest.LogCaptureFixture) -> Iterator[Web]:
    """Run the server, and see that nothing is left over or complained of."""
    before = set(threading.enumerate())
    server = Web()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error", ResourceWarning)
        yield server
        server.close()
        gc.collect(1)  # what the test made is young; sockets and loops that it left open complain here
    assert set(threading.enumerate()) <= before
    assert [record.getMessage() for record in caplog.records if "SSL" not in record.getMessage()] == []


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Note the pauses before retries and make them short."""
    noted: list[float | None] = []

    def short(*args: Any) -> float | None:
        noted.append(pause(*args))
        return None if noted[-1] is None else 0.001

    monkeypatch.setattr(fetch_module, "pause", short)
    return noted


# What is asked, and what a good answer gives


def test_a_file_is_fetched(web, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    web.says("/x.jpg", b"\xff\xd8picture", Set_Cookie="a=b")
    assert web.one("http://a.example/x.jpg#part") == Fetched(b"\xff\xd8picture", None, 9, "http://a.example/x.jpg")
    [asked] = web.asked
    assert (asked.method, asked.target, asked.host) == ("GET", "/x.jpg", "a.example")
    assert asked.headers["user-agent"] == f"worldloom/{__version__}"
    assert asked.headers["accept-encoding"] == "identity"
    assert set(asked.headers) == {"host", "user-agent", "accept", "accept-encoding"}
    assert (web.looked_up, web.connected) == (["a.example"], [PUBLIC])


def test_no_cookie_is_kept(web):
    web.says("/x", Set_Cookie="a=b; Path=/")
    with web.fetcher(at_once=1) as fetcher:
        assert len(list(fetcher.fetch(["http://a.example/x"] * 3, str))) == 3
    assert all("cookie" not in asked.headers for asked in web.asked)


def test_rows_may_be_anything(web):
    web.says("/x", b"x")
    rows = [{"link": "http://a.example/x", "caption": "a"}, {"link": 7.0, "caption": "b"}]
    with web.fetcher() as fetcher:
        (first, found), (second, unfit) = fetcher.fetch(rows, lambda row: row["link"])
    assert first is rows[0] and second is rows[1]
    assert found.data == b"x" and unfit.reason == "unusable link"


def test_rows_without_a_link_keep_their_place_and_wait_only_for_those_before_them(web):
    web.says("/x", b"x")
    rows, pulled = [None, None, "http://a.example/x", None, "", None], 0

    def pull() -> Iterator[str | None]:
        nonlocal pulled
        for row in rows:
            pulled += 1
            yield row

    with web.fetcher(at_once=1) as fetcher:
        found = fetcher.fetch(pull(), lambda row: row)
        assert next(found) == (None, None) and pulled == 1
        rest = [next(found), *found]
    assert [row for row, _ in rest] == rows[1:]
    assert [type(f) for _, f in rest] == [type(None), Fetched, type(None), Unfit, type(None)]


@pytest.mark.parametrize(
    "head",
    [
        OK + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
        OK + "Connection: close\r\n\r\nabcde",
        "HTTP/1.0 200\r\n\r\nabcde",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hint\r\nLink: x\r\n\r\n" + OK + "Content-Length: 5\r\n\r\nabcde",
        OK + "Content-Length: 5\r\nContent-Encoding: aws-chunked\r\n\r\nabcde",
        OK + "Content-Length: 5\r\nContent-Type: text/html\r\nX-Robots-Tag: otherbot: noai\r\n\r\nabcde",
        OK + "Content-Length: 5\r\n\r\nabcdeHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nf",
    ],
)
def test_every_form_of_body_is_read(web, head):
    web.sends("/x", head)
    assert web.one("http://a.example/x").data == b"abcde"


def test_connections_are_used_again(web):
    ports = []

    async def twice(asked: Asked) -> None:
        ports.append(asked.writer.get_extra_info("peername"))
        await asked.send(OK + "Content-Length: 1\r\n\r\nx")
        await asyncio.sleep(5)

    web.behaviours["/x"] = twice
    with web.fetcher(at_once=1, seconds=0.3) as fetcher:
        first, second = fetcher.fetch(["http://a.example/x"] * 2, str)
    assert first[1].data == b"x" and len(set(ports)) == len(web.connected)
    assert second[1].reason == "timed out"  # the server never reads the second request on the first connection
    assert len(web.connected) == 1


# What is refused before or while a name is looked up


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:8.8.8.8"],
        ["fe80::1%eth0"],
        ["64:ff9b::808:808"],
        ["100.64.0.1"],
        [PUBLIC, "192.168.0.1"],
        ["192.168.0.1", PUBLIC],
        ["nonsense"],
    ],
)
def test_a_name_with_any_address_that_is_not_public_is_refused(web, answer):
    web.names["inside.example"] = answer
    assert web.refusal("http://inside.example/x", retries=2) == ("failed", "private address")
    assert web.connected == [] and web.looked_up == ["inside.example"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{}/x",
        "http://2130706433:{}/x",
        "http://127.1:{}/x",
        "http://[::1]:{}/x",
        "http://127.0.0.1.:{}/x",
    ],
)
def test_an_address_in_a_link_is_refused_without_a_connection(web, url):
    web.says("/x")
    assert web.refusal(url.format(web.address[1])) == ("failed", "private address")
    assert web.connected == [] and web.asked == []


def test_a_public_address_in_a_link_is_asked(web):
    web.says("/x")
    assert web.one("http://0x08080808/x").url == "http://8.8.8.8/x"
    assert web.connected == ["8.8.8.8"] and web.looked_up == []


def test_a_name_is_looked_up_once_and_its_checked_addresses_are_connected_to(web):
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])

    async def rebinding(name: str) -> list[str]:
        return next(answers)

    web.says("/x")
    with Fetcher(LIMITS, rebinding, web.open_socket) as fetcher:
        [(_, found)] = fetcher.fetch(["http://a.example/x"], str)
    assert found.data == b"picture" and web.connected == ["8.8.8.8"]


def test_the_last_wall_stands_alone(web):
    """Where the checks of links and names are passed by, the socket is still not opened."""

    async def ask() -> None:
        session = await exchange.open_session("x", web.look_up, web.open_socket)
        async with session:
            with pytest.raises(aiohttp.ClientConnectorError, match="not public"):
                await session.get(f"http://127.0.0.1:{web.address[1]}/x")

    asyncio.run(ask())
    assert web.connected == [] and web.asked == []


def test_the_system_is_asked_by_default():
    with Fetcher(LIMITS) as fetcher:
        [(_, found)] = fetcher.fetch(["http://localhost/x"], str)
    assert (found.status, found.reason) == ("failed", "private address")


def test_names_that_are_not_there(web, waits):
    web.names["gone.example"] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    web.names["empty.example"] = []
    web.names["ill.example"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    assert web.refusal("http://gone.example/", retries=2) == ("failed", "no such host")
    assert web.refusal("http://empty.example/", retries=2) == ("failed", "no such host")
    assert waits == [] and len(web.looked_up) == 2
    web.names["odd.example"] = UnicodeError("label too long")  # as the system's codec says
    assert web.refusal("http://odd.example/") == ("failed", "unreadable answer")
    web.looked_up.clear()
    assert web.refusal("http://ill.example/", retries=2) == ("failed", "name lookup failed")
    assert len(web.looked_up) == 3


def test_a_lookup_that_hangs_ends_with_the_clock(web):
    async def hang(name: str) -> list[str]:
        await asyncio.sleep(60)
        return [PUBLIC]

    with Fetcher(LIMITS._replace(seconds=0.1), hang, web.open_socket) as fetcher:
        [(_, found)] = fetcher.fetch(["http://a.example/x"], str)
    assert found.reason == "timed out"


# Redirects


def redirects(web: Web, path: str, target: str, status: str = "302 Found") -> None:
    web.says(path, b"moved", status, Location=target)


def test_redirects_are_followed(web):
    redirects(web, "/1", "/2", "301 Moved Permanently")
    redirects(web, "/2", "//b.example:8080/3", "303 See Other")
    redirects(web, "/3", "https://c.example/4", "307 Temporary Redirect")
    redirects(web, "/4", "http://d.example/5?a=b", "308 Permanent Redirect")
    web.says("/5")
    assert web.refusal("http://a.example/1") == ("failed", "TLS failed")  # the server has none
    redirects(web, "/3", "http://c.example/4", "307 Temporary Redirect")
    found = web.one("http://a.example/1")
    assert found.url == "http://d.example/5?a=b" and found.data == b"picture"
    assert [asked.host for asked in web.asked[-5:]] == [
        "a.example",
        "a.example",
        "b.example:8080",
        "c.example",
        "d.example",
    ]
    assert all("referer" not in asked.headers for asked in web.asked)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://127.0.0.1/x", "private address"),
        ("http://2130706433/x", "private address"),
        ("http://[::ffff:127.0.0.1]/", "private address"),
        ("//10.1/", "private address"),
        ("http://inside.example/x", "private address"),
        ("http://169.254.169.254/latest/", "private address"),
        ("file:///etc/passwd", "not http or https"),
        ("ftp://b.example/", "not http or https"),
        ("data:image/png;base64,AA", "not http or https"),
        ("http://u:p@b.example/", "unusable link"),
        ("http://b.example:25/", "unusable link"),
        ("http://[", "unusable link"),
        ("", "unusable link"),
        ("http://b.example/" + "x" * 8010, "unusable link"),
    ],
)
def test_redirects_are_checked_like_links(web, target, reason):
    web.names["inside.example"] = ["192.168.0.1"]
    redirects(web, "/x", target)
    assert web.refusal("http://a.example/x", retries=1) == ("failed", reason)
    assert len(web.connected) == len(web.asked) == 1


def test_redirects_end(web):
    redirects(web, "/loop", "/loop")
    assert web.refusal("http://a.example/loop", redirects=3) == ("failed", "too many redirects")
    assert len(web.asked) == 4
    for n in range(6):
        redirects(web, f"/{n}", f"/{n + 1}")
    web.says("/5")
    assert web.one("http://a.example/0").data == b"picture"  # five are allowed
    web.says("/x", b"", "302 Found")
    assert web.refusal("http://a.example/x") == ("failed", "HTTP 302")


def test_the_clock_runs_over_all_redirects(web):
    async def slow(asked: Asked) -> None:
        await asyncio.sleep(0.08)
        await asked.reply(b"", "302 Found", Location="/slow")

    web.behaviours["/slow"] = slow
    assert web.refusal("http://a.example/slow", seconds=0.2, redirects=1000) == ("failed", "timed out")
    assert 2 <= len(web.asked) <= 3


# Answers that are none


@pytest.mark.parametrize(
    "status",
    [
        "404 Not Found",
        "410 Gone",
        "403 Forbidden",
        "401 x",
        "400 x",
        "418 x",
        "451 x",
        "501 x",
        "204 No Content",
        "206 Partial Content",
        "304 Not Modified",
        "300 x",
        "600 x",
        "999 x",
        "408 x",
        "203 x",
    ],
)
def test_statuses_that_stay(web, waits, status):
    web.says("/x", b"" if status[:3] in ("204", "304") else b"page", status)
    assert web.refusal("http://a.example/x", retries=3) == ("failed", f"HTTP {status[:3]}")
    assert len(web.asked) == 1 and waits == []


@pytest.mark.parametrize("status", ["429 Too Many", "500 x", "502 x", "503 x", "504 x", "520 x", "599 x"])
def test_statuses_that_may_heal_are_tried_again(web, waits, status):
    web.says("/x", b"", status)
    found = web.one("http://a.example/x", retries=3)
    assert (found.status, found.reason) == ("failed", f"HTTP {status[:3]}") and "tried 4 times" in found.detail
    assert len(web.asked) == 4 and len(waits) == 4


def healing(web: Web, path: str, *first: Behave | str) -> None:
    """Misbehave once for each, then answer well."""
    todo = list(first)

    async def behave(asked: Asked) -> None:
        if not todo:
            return await asked.reply()
        now = todo.pop(0)
        return await (asked.send(now) if isinstance(now, str) else now(asked))

    web.behaviours[path] = behave


async def reset(asked: Asked) -> None:
    asked.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    asked.writer.transport.abort()


async def silent(asked: Asked) -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    "trouble",
    [
        "",
        reset,
        silent,
        "HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n",
        OK + "Content-Length: 10\r\n\r\nhalf",
        OK + "Transfer-Encoding: chunked\r\n\r\n5\r\nha",
        "HTTP/1.1 429 x\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_may_heal_heals(web, waits, trouble):
    healing(web, "/x", trouble, trouble, trouble)
    found = web.one("http://a.example/x", retries=3, seconds=0.3 if trouble is silent else 5.0)
    assert isinstance(found, Fetched) and found.data == b"picture" and waits


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("", "connection failed"),
        (reset, "connection failed"),
        (silent, "timed out"),
        (OK + "Content-Length: 10\r\n\r\nhalf", "cut short"),
        (OK + "Transfer-Encoding: chunked\r\n\r\n5\r\nha", "cut short"),
    ],
)
def test_what_does_not_heal_is_counted(web, waits, trouble, reason):
    healing(web, "/x", *[trouble] * 10)
    assert web.refusal("http://a.example/x", retries=1, seconds=0.2) == ("failed", reason)


@pytest.mark.parametrize(
    "raw",
    [
        "garbage\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 -20 OK\r\n\r\n",
        "SSH-2.0-OpenSSH_9.0\r\n",
        "\x00" * 100,
        "220 smtp\r\n",
        OK + "no colon\r\n\r\n",
        OK + "Content-Length: -5\r\n\r\n",
        OK + "Content-Length: x\r\n\r\nabc",
        OK + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        OK + "X: " + "x" * 70000 + "\r\n\r\n",
        OK + "X: y\r\n" * 1000 + "\r\n",
        "HTTP/1.1 200 " + "x" * 70000,
        OK + "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + "Transfer-Encoding: chunked\r\n\r\n" + "f" * 30 + "\r\nabc",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nabc",
        "HTTP/9.9 200 OK\r\n\r\nabc",
        OK + "Content-Length: " + "9" * 5000 + "\r\n\r\nabc",
        "HTTP/1.1 302 x\r\nLocation: \x80\xff\r\n\r\n",
        OK + "Set-Cookie: " + ";;=," * 100 + "\r\nContent-Length: 0\r\n\r\n",
        OK + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 429 x\r\nRetry-After: " + "9" * 5000 + "\r\n\r\n",
    ],
)
def test_a_broken_server_costs_its_own_row(web, raw):
    web.sends("/x", raw.encode("latin-1"))
    status, reason = web.refusal("http://a.example/x", seconds=1.0)
    assert status == "failed" and len(reason) < 30


def test_random_answers_cost_their_own_rows(web):
    chance = random.Random(0)
    good = OK.encode() + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nLocation: /x\r\n\r\n3\r\nabc\r\n0\r\n\r\n"

    async def spoiled(asked: Asked) -> None:
        data = bytearray(good)
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 3))
        await asked.send(bytes(data))

    web.behaviours["/x"] = spoiled
    with web.fetcher(per_host=16, seconds=1.0) as fetcher:
        found = [found for _, found in fetcher.fetch(["http://a.example/x"] * 300, str)]
    assert len(found) == 300 and {type(f) for f in found} <= {Unfit, Fetched}


# Caps


def test_a_body_at_the_cap_is_read_and_one_over_it_is_not(web):
    web.says("/at", bytes(CAP))
    assert web.one("http://a.example/at").size == CAP
    web.says("/over", bytes(CAP + 1))
    assert web.refusal("http://a.example/over", retries=2) == ("failed", "too large")
    web.sends("/announced", OK + f"Content-Length: {10**15}\r\n\r\n", then=60)
    assert web.refusal("http://a.example/announced") == ("failed", "too large")  # before a byte of it
    assert len(web.asked) == 3


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_end_is_left(web, chunked):
    sent = 0

    async def endless(asked: Asked) -> None:
        nonlocal sent
        await asked.send(OK + "Transfer-Encoding: chunked\r\n" * chunked + "\r\n")
        while True:
            await asked.send((b"1000\r\n" if chunked else b"") + bytes(4096) + (b"\r\n" if chunked else b""))
            sent += 4096

    web.behaviours["/x"] = endless
    assert web.refusal("http://a.example/x", retries=2) == ("failed", "too large")
    assert sent < 20e6  # what fits into the buffers of both sides


def test_a_slow_body_ends_with_the_clock(web):
    async def drip(asked: Asked) -> None:
        await asked.send(OK + "Content-Length: 1000\r\n\r\n")
        while True:
            await asked.send(b"x")
            await asyncio.sleep(0.01)

    async def drip_head(asked: Asked) -> None:
        await asked.send(OK + "X: ")
        while True:
            await asked.send(b"x")
            await asyncio.sleep(0.01)

    async def hints(asked: Asked) -> None:
        while True:
            await asked.send("HTTP/1.1 103 Early Hints\r\n\r\n" * 10)
            await asyncio.sleep(0)

    web.behaviours.update({"/drip": drip, "/head": drip_head, "/hints": hints})
    for path in ("/drip", "/head", "/hints"):
        assert web.refusal(f"http://a.example{path}", seconds=0.2) == ("failed", "timed out")


def test_silence_ends_before_the_clock(web, monkeypatch):
    monkeypatch.setattr(exchange, "SILENCE", 0.1)
    web.sends("/x", OK + "Content-Length: 1000\r\n\r\nabc", then=60)
    found = web.one("http://a.example/x", seconds=60.0)
    assert found.reason == "timed out" and "whole" not in found.detail


def test_a_connection_that_is_not_taken_ends(web, monkeypatch):
    monkeypatch.setattr(exchange, "CONNECT", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        held = []
        for _ in range(3):  # the queue is full: further ones hang
            held.append(socket.socket())
            held[-1].setblocking(False)
            held[-1].connect_ex(full.getsockname())
        web.address, kept = full.getsockname(), web.address
        found = web.one("http://a.example/x", seconds=5.0)
        assert found.reason == "timed out" and "whole" not in found.detail
        web.address = kept
        for one in held:
            one.close()


def test_a_connection_that_is_refused_is_not_tried_again(web, waits):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        kept, web.address = web.address, gone.getsockname()
    assert web.refusal("http://a.example/x", retries=3) == ("failed", "connection failed")
    assert waits == [] and len(web.connected) == 1
    web.address = kept


def test_a_packed_body_is_never_unpacked(web):
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < CAP
    web.says("/x", bomb, Content_Encoding="gzip")
    assert web.refusal("http://a.example/x") == ("failed", "unreadable answer")
    web.says("/x", bomb)
    assert web.one("http://a.example/x").data == bomb


def test_an_empty_body_is_none(web):
    web.says("/x", b"")
    assert web.refusal("http://a.example/x", retries=2) == ("failed", "empty body")
    web.sends("/x", OK + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert web.refusal("http://a.example/x") == ("failed", "empty body")


@pytest.mark.parametrize(
    "head",
    ["X-Robots-Tag: noai", "x-robots-tag: nofollow\r\nX-Robots-Tag: NOIMAGEINDEX", "X-Robots-Tag: worldloom: noindex"],
)
def test_an_opt_out_is_respected_before_the_body(web, waits, head):
    web.sends("/x", OK + f"{head}\r\nContent-Length: 1000\r\n\r\n", then=60)
    assert web.refusal("http://a.example/x", retries=2) == ("dropped", "opted out")
    assert len(web.asked) == 1


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("SKIPPED: no openssl command to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=a.example",
        "-addext",
        "subjectAltName=DNS:a.example",
        "-keyout",
        path,
        "-out",
        f"{path}.crt",
    ]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


def test_certificates_are_checked(web, waits, certificate, monkeypatch):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    secure = Web(context)
    secure.says("/x")
    try:
        assert secure.refusal("https://a.example/x", retries=2) == ("failed", "TLS failed")  # signed by nobody
        assert waits == [] and secure.asked == []
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=certificate))
        assert secure.one("https://a.example/x").data == b"picture"
        assert secure.one("https://a.example./x").data == b"picture"
        assert secure.refusal("https://b.example/x") == ("failed", "TLS failed")  # another's name
    finally:
        secure.close()


# Pauses


def test_pauses_grow_within_bounds_and_are_the_same_every_time():
    for tries in range(1, 12):
        waits = [pause(0.0, tries, f"http://a.example/{n}") for n in range(50)]
        full = min(30.0, 2.0 ** (tries - 1))
        assert all(full / 2 <= wait <= full for wait in waits) and len(set(waits)) > 40
        assert waits == [pause(0.0, tries, f"http://a.example/{n}") for n in range(50)]
    assert pause(7.0, 1, "x") == 7.0
    assert pause(30.0, 1, "x") == 30.0
    assert pause(30.5, 1, "x") is None
    assert 0.5 <= pause(0.0, 1, None) <= 1.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("", 0.0),
        ("soon", 0.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("\u0667", 0.0),
        ("9" * 5000, 999999999999.0),
        ("Mon, 01 Jan 1990 00:00:00 GMT", 0.0),
        ("Mon, 99 Foo 1990", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", None),
        (f"Fri, 31 Dec {10**20} 23:59:59 GMT", 0.0),
    ],
)
def test_retry_after_is_read(header, seconds):
    found = exchange.retry_after(header)
    assert found == seconds if seconds is not None else found >= 0.0


def test_retry_after_as_a_date():
    assert 18 < exchange.retry_after(formatdate(time.time() + 20, usegmt=True)) <= 20


def test_a_server_that_asks_for_time_gets_it(web, waits):
    healing(web, "/x", "HTTP/1.1 429 x\r\nRetry-After: 12\r\nContent-Length: 0\r\n\r\n")
    assert web.one("http://a.example/x", retries=2).data == b"picture"
    assert waits == [12.0]
    healing(web, "/y", "HTTP/1.1 503 x\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n")
    assert web.refusal("http://a.example/y", retries=2) == (
        "failed",
        "HTTP 503",
    )  # longer than we wait: not asked again
    assert waits[1:] == [None] and len(web.asked) == 3


# Many rows


def test_a_thousand_rows_come_in_order_within_all_limits(web):
    chance = random.Random(1)
    pulled = given = 0
    ahead = []

    async def answer(asked: Asked) -> None:
        number = int(asked.target.partition("?")[2])
        await asyncio.sleep(chance.random() * 0.004)
        if number % 10 == 3:
            await asked.reply(b"", "404 Not Found")
        elif number % 10 == 4:
            await asked.reply(b"", "302 Found", Location=f"http://h{number % 3}.example/x?{number + 6}")
        else:
            await asked.reply(b"%d" % number * 100)

    def rows() -> Iterator[int]:
        nonlocal pulled
        for number in range(1000):
            pulled += 1
            ahead.append(pulled - given)
            yield number

    web.behaviours["/x"] = answer
    with web.fetcher(at_once=12, per_host=3) as fetcher:
        for expected, (number, found) in enumerate(fetcher.fetch(rows(), lambda n: f"http://h{n % 7}.example/x?{n}")):
            given += 1
            assert number == expected
            match number % 10:
                case 3:
                    assert found.reason == "HTTP 404"
                case 4:
                    assert found.data == b"%d" % (number + 6) * 100
                case _:
                    assert found.data == b"%d" % number * 100
    assert given == 1000 and max(ahead) <= fetch_module.AHEAD * 12
    assert 6 < web.most.pop("all") <= 12
    assert max(web.most.values()) == 3 and len(web.most) == 7


def test_rows_behind_a_slow_one_go_on_within_the_bytes(web):
    """The first row waits; small files behind it are all fetched, but only `at_once` of the largest size."""
    release = threading.Event()

    async def slow(asked: Asked) -> None:
        while not release.is_set():
            await asyncio.sleep(0.005)
        await asked.reply()

    web.behaviours["/slow"] = slow
    web.says("/small", b"x")
    web.says("/large", bytes(CAP))
    for path, expected in (("/small", 8 * 4), ("/large", 4)):
        release.clear()
        web.asked.clear()
        with web.fetcher(at_once=4) as fetcher:
            rows = ["/slow", *[path] * 60]
            found = fetcher.fetch(rows, lambda path: f"http://a.example{path}")
            reader = threading.Thread(target=lambda found=found: list(found))
            reader.start()
            time.sleep(0.5)
            asked = len(web.asked)
            release.set()
            reader.join()
        assert asked == expected
        assert len(web.asked) == 61


def test_memory_stays_within_the_bytes(web):
    """The server sees how much was taken of bodies that may not be held."""
    web.says("/large", bytes(CAP))
    with web.fetcher(at_once=4) as fetcher:
        found = fetcher.fetch(range(100), lambda n: "http://a.example/large")
        next(found)
        time.sleep(0.3)
        assert len(web.asked) <= 1 + 4 + 1  # the one given out, four that wait, and the one whose turn it is
        assert len(list(found)) == 99


def test_bytes_that_were_given_out_make_room_again(web):
    met = 0

    async def meet(asked: Asked) -> None:
        nonlocal met
        met += 1
        while met < 2:
            await asyncio.sleep(0.005)
        await asked.reply()

    web.says("/large", bytes(CAP))
    web.behaviours["/meet"] = meet
    with web.fetcher(at_once=4) as fetcher:
        paths = ["/large"] * 20 + ["/meet"] * 4
        found = [found for _, found in fetcher.fetch(paths, lambda path: f"http://a.example{path}")]
    assert all(isinstance(one, Fetched) for one in found)  # two at a time, or the first that waits would time out


# Files


def test_large_files_go_to_a_folder(web, tmp_path):
    web.says("/a", b"a" * 5000)
    web.says("/gone", b"", "404 Not Found")
    web.sends("/half", OK + "Content-Length: 10\r\n\r\nhalf")
    rows = ["/a", "/gone", "/half", "/a"]
    with web.fetcher() as fetcher:
        found, left = [], []
        for _, one in fetcher.fetch(rows, lambda path: f"http://a.example{path}", tmp_path):
            found.append(one)
            left.append({path.name for path in tmp_path.glob("*/*")})
    first, gone, half, last = found
    assert left[2] <= {"3"}  # what was read of half a file is gone before all is over
    assert (first.data, first.size, first.path.read_bytes()) == (b"", 5000, b"a" * 5000)
    assert (gone.reason, half.reason) == ("HTTP 404", "cut short")
    assert first.path != last.path and set(tmp_path.iterdir()) == {first.path, last.path}


def test_partial_and_untaken_files_are_removed(web, tmp_path):
    web.says("/a", b"a" * 5000)
    web.sends("/hang", OK + "Content-Length: 10\r\n\r\nhalf", then=60)
    with web.fetcher() as fetcher:
        found = fetcher.fetch(["/a", "/a", "/hang", "/a"], lambda path: f"http://a.example{path}", tmp_path)
        first = next(found)[1].path
        time.sleep(0.1)
        assert len(list(tmp_path.rglob("*"))) > 2
        found.close()
        assert list(tmp_path.iterdir()) == [first]


def test_a_disk_that_fails_is_no_fault_of_the_link(web, tmp_path, monkeypatch):
    async def full(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    web.says("/a")
    monkeypatch.setattr(fetch_module, "receive", full)
    with web.fetcher() as fetcher, pytest.raises(OSError, match="No space"):
        list(fetcher.fetch(["http://a.example/a"], str, tmp_path))
    assert list(tmp_path.iterdir()) == []


# The end


@pytest.mark.parametrize("closed", [True, False])
def test_a_caller_may_stop_early(web, closed):
    async def slow(asked: Asked) -> None:
        if "first" not in asked.target:
            await asyncio.sleep(60)
        await asked.reply()

    web.behaviours["/x"] = slow
    rows = ["first", *map(str, range(500))]
    with web.fetcher() as fetcher:
        found = fetcher.fetch(iter(rows), lambda row: f"http://a.example/x?{row}")
        assert next(found)[0] == "first"
        if closed:
            found.close()
            assert not fetcher._wait(running())
    found.close()  # also after the fetcher


async def running() -> set[Any]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def test_an_interruption_ends_the_wait_of_another_thread(web, tmp_path):
    """For as long as a server stays silent, which is a minute here; later calls are served again."""
    asked = threading.Event()

    async def hang(request: Asked) -> None:
        asked.set()
        await asyncio.sleep(60)

    web.behaviours["/hang"] = hang
    web.says("/x")
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            list(fetcher.fetch(["http://a.example/hang"] * 9, str, tmp_path))
        except CancelledError as error:
            raised.append(error)

    with web.fetcher(seconds=60.0, retries=2) as fetcher:
        reader = threading.Thread(target=wait)
        reader.start()
        assert asked.wait(30)
        fetcher.interrupt()
        reader.join(30)
        assert len(raised) == 1 and list(tmp_path.iterdir()) == []
        assert not fetcher._wait(running()) and not fetcher._tasks
        [(_, found)] = fetcher.fetch(["http://a.example/x"], str)
    assert found.data == b"picture"


def test_errors_of_the_rows_and_the_caller_come_through(web):
    web.behaviours["/x"] = silent

    def rows() -> Iterator[str]:
        yield "http://a.example/x"
        raise KeyError("rows")

    with pytest.raises(KeyError, match="rows"), web.fetcher() as fetcher:
        list(fetcher.fetch(rows(), str))
    with pytest.raises(KeyboardInterrupt), web.fetcher() as fetcher:
        for _ in fetcher.fetch(["", "http://a.example/x"], str):
            raise KeyboardInterrupt


def test_a_signal_ends_the_wait(web):
    web.behaviours["/x"] = silent
    with pytest.raises(KeyboardInterrupt), web.fetcher() as fetcher, alarm_as_interrupt():
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        list(fetcher.fetch(["http://a.example/x"] * 3, str))


@contextmanager
def alarm_as_interrupt() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def test_nothing_is_fetched_of_nothing(web):
    with web.fetcher() as fetcher:
        assert list(fetcher.fetch([], str)) == []
        assert next(fetcher.fetch(["x"], str))[1].reason == "not http or https"
    with web.fetcher():
        pass
