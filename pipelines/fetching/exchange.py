"""One request to a web server that nobody trusts, and what it says."""

import asyncio
import errno
import io
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ..media import Unfit
from .addresses import is_public
from .links import read_link, shown
from .robots import opt_out

LookUp = Callable[[str], Awaitable[list[str]]]  # a name's addresses; raises socket.gaierror
AddressInfo = tuple[Any, ...]  # family, type, protocol, name, (address, port, …), as socket.getaddrinfo returns them
OpenSocket = Callable[[AddressInfo], socket.socket]

CONNECT = 10.0  # seconds to connect to one address
SILENCE = 10.0  # seconds without a byte
IDLE = 2.0  # seconds that a connection waits for the next request: short, for tables name thousands of hosts
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SQUEEZED = frozenset({"gzip", "x-gzip", "deflate", "compress", "br", "zstd"})
GONE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})  # waiting seconds does not heal these


class Passing(Unfit):
    """Say that a link failed for a reason that may heal.

    Attributes:
      after: the seconds after which the server asks to be tried again; 0 where it says nothing.
    """

    def __init__(self, reason: str, detail: str = "", after: float = 0.0):
        super().__init__("failed", reason, detail)
        self.after = after


async def look_up(name: str) -> list[str]:
    """Ask the system for a name's addresses.

    Raises:
      socket.gaierror: where it has none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(where[0]) for *_, where in found]


def open_socket(info: AddressInfo) -> socket.socket:
    """Make the socket that will be connected to an address."""
    return socket.socket(info[0], info[1], info[2])


class PublicResolver(AbstractResolver):
    """Look names up and refuse those of which any address is not public.

    The connector connects to the addresses returned here and asks no second time, so that a name cannot be looked up
    once for the check and once, to another answer, for the connection.
    """

    def __init__(self, look_up: LookUp):
        self._look_up = look_up

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = await self._look_up(host)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no addresses")
        for address in addresses:
            if not is_public(address):
                raise Unfit("failed", "private address", f"{shown(host)} is {shown(address)}")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None: ...


async def open_session(agent: str, look_up: LookUp, open_socket: OpenSocket) -> aiohttp.ClientSession:
    """Open a client that connects to public addresses only, keeps no cookies, knows no proxy and unpacks nothing."""

    def open_public(info: AddressInfo) -> socket.socket:
        """Look at the very address that will be connected to, whatever led here."""
        if not is_public(info[4][0]):
            raise PermissionError(errno.EACCES, f"{shown(info[4][0])} is not public")
        return open_socket(info)

    connector = aiohttp.TCPConnector(
        resolver=PublicResolver(look_up), socket_factory=open_public, limit=0, keepalive_timeout=IDLE
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": agent, "Accept": "*/*", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE),
        auto_decompress=False,
        trust_env=False,
    )


@asynccontextmanager
async def request(session: aiohttp.ClientSession, link: URL, seconds: float) -> AsyncIterator[aiohttp.ClientResponse]:
    """Ask for a link; the context is the answer, whose body is yet to be read, all of it in `seconds`.

    Raises:
      Unfit: whatever goes wrong on the network, also inside the context; `Passing` where it may heal.
    """
    try:
        async with asyncio.timeout(seconds), session.get(link, allow_redirects=False) as answer:
            yield answer
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise explained(error) from None


def explained(error: Exception) -> Unfit:
    """Turn what the client raises into a reason that can be counted."""
    detail = shown(error)
    match error:
        case TimeoutError():
            return Passing("timed out", detail or "the whole request took too long")
        case aiohttp.ClientConnectorDNSError() if error.errno == socket.EAI_AGAIN:
            return Passing("name lookup failed", detail)
        case aiohttp.ClientConnectorDNSError():
            return Unfit("failed", "no such host", detail)
        case aiohttp.ClientSSLError():
            return Unfit("failed", "TLS failed", detail)
        case aiohttp.ClientConnectorError() if error.errno == errno.ETIMEDOUT:
            return Passing("timed out", detail)
        case aiohttp.ClientConnectorError() if error.errno in GONE:
            return Unfit("failed", "connection failed", detail)
        case aiohttp.ClientConnectionError():
            return Passing("connection failed", detail)
        case aiohttp.ClientPayloadError():
            return Passing("cut short", detail)
        case _:
            return Unfit("failed", "unreadable answer", detail)


def redirection(answer: aiohttp.ClientResponse) -> URL | None:
    """Return the link to which an answer redirects, or None.

    Raises:
      Unfit: where that link may not be asked.
    """
    target = answer.headers.get("Location")
    if answer.status not in REDIRECTS or target is None:
        return None
    return read_link(target, answer.url)


def check_answer(answer: aiohttp.ClientResponse, agent: str, cap: int) -> None:
    """Check an answer's status and headers, before its body is read.

    Raises:
      Unfit: where they announce no body that we may and want to have.
    """
    if answer.status != 200:
        raise refusal(answer)
    if rule := opt_out(answer.headers.getall("X-Robots-Tag", ()), agent):
        raise Unfit("dropped", "opted out", f"X-Robots-Tag: {rule}")
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding in SQUEEZED:
        raise Unfit("failed", "unreadable answer", f"Content-Encoding {encoding}, where identity was asked for")
    if (answer.content_length or 0) > cap:
        raise Unfit("failed", "too large", f"{answer.content_length} bytes are announced, {cap} are allowed")


def refusal(answer: aiohttp.ClientResponse) -> Unfit:
    """Say that a server answered with another status than 200."""
    reason, detail = f"HTTP {answer.status}", shown(answer.url)
    if answer.status == 429 or (500 <= answer.status <= 599 and answer.status != 501):
        return Passing(reason, detail, retry_after(answer.headers.get("Retry-After", "")))
    return Unfit("failed", reason, detail)


def retry_after(header: str) -> float:
    """Read the seconds to wait from a Retry-After header, a number or a date; 0 where it is neither.

    Source: RFC 9110 §10.2.3.
    """
    if header.isdecimal() and header.isascii():
        return float(header[:12])
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


async def receive(answer: aiohttp.ClientResponse, cap: int, path: Path | None) -> tuple[bytes, int]:
    """Read a body, to a file where a path is given, and return what is held of it and its size in bytes.

    Raises:
      Unfit: where it is empty or larger than `cap` bytes.
      OSError: where the file cannot be written.
    """
    if path is None:
        body = io.BytesIO()
        size = await read_body(answer, cap, body.write)
        return body.getvalue(), size
    with path.open("wb") as file:
        return b"", await read_body(answer, cap, file.write)


async def read_body(answer: aiohttp.ClientResponse, cap: int, write: Callable[[bytes], object]) -> int:
    """Hand on a body chunk by chunk and return its size in bytes; `receive` says what is raised."""
    size = 0
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        if size > cap:
            raise Unfit("failed", "too large", f"over {cap} bytes")
        write(chunk)
    if not size:
        raise Unfit("failed", "empty body", shown(answer.url))
    return size
