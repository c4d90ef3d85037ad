"""An OpenAI-compatible server, asked with care: in turn, again where that may help, and never trusted."""

import asyncio
import os
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
from pydantic import BaseModel, Field

from ...errors import RunFailed, UserError
from ...packing.ledger import FAILED, NO_REPLY
from ...sources import QuestionsSection
from ..media import Unfit
from .outcome import Usage
from .prompt import FORMATS, PROMPT, Messages, first_messages
from .rate import Turns
from .replies import Reply

HARMLESS = "On Monday Anna walked to the market in Delft and bought seven red apples from an old fisherman."
SPARE, TOKEN = 2**16, 64  # bytes of a reply beside its tokens, and of a token, at most
SAID = 300  # characters of what a server says that a message shows


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Tokens(BaseModel):
    prompt_tokens: int = Field(0, ge=0, le=2**40)
    completion_tokens: int = Field(0, ge=0, le=2**40)


class _Completion(BaseModel):
    """What is read of a chat completion."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Tokens | None = None


def read_reply(body: bytes) -> Reply:
    """Read a chat completion.

    Raises:
      ValueError: where it is none.
    """
    found = _Completion.model_validate_json(body)
    tokens = found.usage or _Tokens()
    usage = Usage(1, tokens.prompt_tokens, tokens.completion_tokens)
    return Reply(found.choices[0].message.content or "", usage)


class Unreached(openai.OpenAIError):
    """Say that a server is not there."""


class _Client(openai.DefaultAsyncHttpxClient):
    """Send each request in its turn, and take no more of an answer than a reply may have, in time and in bytes."""

    def __init__(self, section: QuestionsSection, turns: Turns | None):
        super().__init__(timeout=None, limits=httpx2.Limits(), follow_redirects=False)
        self._turns, self._seconds = turns, section.seconds
        self._most = SPARE + TOKEN * section.max_tokens
        self._reached = False

    async def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
        """Send a request once and read the whole answer.

        Raises:
          RequestError: that of httpx2, which the client tries again; a success that is no completion is one too.
          Unreached: where nobody was ever there, which is not tried again.
        """
        if self._turns:
            await self._turns.take()
        request.headers["Accept-Encoding"] = "identity"
        try:
            async with asyncio.timeout(self._seconds):
                answer = await super().send(request, **{**how, "stream": True})
                self._reached = True
                try:
                    body = await self._read(answer)
                finally:
                    await answer.aclose()
        except httpx2.ConnectError as error:
            if self._reached:
                raise
            raise Unreached(str(error)) from error
        except TimeoutError as error:
            raise httpx2.ReadTimeout(f"no whole answer within {self._seconds:g} seconds", request=request) from error
        if answer.is_success:
            _check(body, request)
        return httpx2.Response(answer.status_code, headers=answer.headers, content=body, request=request)

    async def _read(self, answer: httpx2.Response) -> bytes:
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise httpx2.DecodingError("the answer is compressed, which was not asked for", request=answer.request)
        body = bytearray()
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > self._most:
                raise httpx2.DecodingError(f"the answer has over {self._most} bytes", request=answer.request)
        return bytes(body)


def _check(body: bytes, request: httpx2.Request) -> None:
    try:
        read_reply(body)
    except ValueError:
        raise httpx2.DecodingError(
            f"the answer is no completion: {_shown(body.decode(errors='replace'))}", request=request
        ) from None


class _Api(openai.AsyncOpenAI):
    """Send what the recipe says, and no header that OPENAI_ORG_ID, _PROJECT_ID or _CUSTOM_HEADERS would add."""

    @property
    def default_headers(self) -> dict[str, str | openai.Omit]:
        return {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": self.user_agent}


class Server:
    """Get replies. Use as an asynchronous context manager.

    Raises:
      UserError: where the server's URL is none, or its key.
    """

    def __init__(self, section: QuestionsSection):
        self._section, self._place = section, _place(section.url)
        turns = Turns(section.url, section.per_minute) if section.per_minute else None
        self._key = _key(section.key)
        self._client = _Api(
            api_key=self._key or "none",  # or the client would take OPENAI_API_KEY
            base_url=section.url,
            max_retries=section.retries,
            timeout=section.seconds,
            http_client=_Client(section, turns),
        )
        self._healthy = False  # has it replied since it last did not?
        self._verdict: UserError | None = None
        self._judging = asyncio.Lock()

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    def request(self, messages: Messages, seed: int) -> dict[str, Any]:
        """Return what is sent: all that the model sees, and how it is sampled."""
        section = self._section
        request = {
            "model": section.model,
            "messages": messages,
            "temperature": section.temperature,
            section.limited_by: section.max_tokens,
            "seed": seed,
        }
        form = FORMATS.get(section.structured)
        return {**request, "response_format": form} if form else request

    async def reply(self, request: dict[str, Any]) -> Reply:
        """Get the reply to a request, after as many tries as the section allows.

        Raises:
          Unfit: failed, where there is none.
          UserError: where the server is not there, or gives none to a harmless request either.
        """
        try:
            reply = await self._send(request)
        except (openai.APIError, Unreached) as error:
            await self._judge(error)
            raise Unfit(FAILED, NO_REPLY, self._said(error)) from None
        self._healthy = True
        return reply

    async def _send(self, request: dict[str, Any]) -> Reply:
        answer = await self._client.post("/chat/completions", body=request, cast_to=httpx2.Response)
        return read_reply(answer.content)

    async def _judge(self, error: openai.OpenAIError) -> None:
        """Return where one request failed, and raise where all would.

        A request may fail because of its passage, or by bad luck. Where two fail with no reply between them, or the
        very first, a harmless one must succeed.

        Raises:
          UserError: where the server is to blame (then a RunFailed), or what it was told.
        """
        async with self._judging:
            if not self._verdict and _is_final(error):
                self._verdict = self._remedy(error)
            elif not self._verdict and not self._healthy:
                try:
                    await self._send(self.request(first_messages(self._section.prompt or PROMPT, HARMLESS), 0))
                    self._healthy = True
                except (openai.APIError, Unreached) as again:
                    self._verdict = self._remedy(again)
            else:
                self._healthy = False
            if self._verdict:
                raise type(self._verdict)(str(self._verdict))

    def _said(self, error: openai.OpenAIError) -> str:
        """Tell what went wrong, without the key, whatever the server says."""
        if isinstance(error, openai.APIStatusError):
            said = error.body.get("message") if isinstance(error.body, dict) else None
            text = f"{error.status_code}, {_shown(said if isinstance(said, str) else error.response.text)!r}"
        else:
            text = _shown(str(error.__cause__ or error)) or type(error.__cause__).__name__
        return text.replace(self._key, "[key]") if self._key else text

    def _remedy(self, error: openai.OpenAIError) -> UserError:
        """Say in a sentence what a server makes of all requests, and what may be done."""
        refused = isinstance(error, openai.APIStatusError) and error.status_code < 500 and error.status_code != 429
        return (UserError if refused else RunFailed)(self._sentence(error))

    def _sentence(self, error: openai.OpenAIError) -> str:
        found = f"The server at {self._place} gives no reply: {self._said(error)}"
        if isinstance(error, openai.APIStatusError):
            return f"{found}; {_mend(self._section, error.status_code, bool(self._key))}."
        if isinstance(error.__cause__, httpx2.ConnectError):
            found = f"The server at {self._place} cannot be reached: {self._said(error)}"
            return f"{found}; start it, or correct questions.url."
        return f"{found}; look whether it is an OpenAI-compatible one and well, or raise questions.seconds."


def _is_final(error: openai.OpenAIError) -> bool:
    """Would every request fail so?"""
    final = isinstance(error, openai.AuthenticationError | openai.NotFoundError)
    return final or isinstance(error.__cause__, httpx2.ConnectError)


def _mend(section: QuestionsSection, status: int, has_key: bool) -> str:
    if status in (401, 403):
        holds = "holds one that it does not take" if has_key else "holds none"
        return f"it may want a key, and the environment variable {section.key}, which questions.key names, {holds}"
    if status in (301, 302, 307, 308, 404, 405):
        return f"correct questions.url, which usually ends in /v1, or questions.model, {section.model!r}"
    if status in (400, 422) and section.structured != "none":
        other = "json_object or none" if section.structured == "json_schema" else "none"
        return (
            f"if it knows no such response_format, set questions.structured to {other}; if it is max_tokens that it "
            "does not take, set questions.limited_by to max_completion_tokens"
        )
    if status == 429:
        return "lower questions.per_minute or questions.at_once, or come back when it has room"
    return "look at its log, and at the settings of questions"


def _place(url: str) -> str:
    """Return the URL of a server without what may be secret."""
    try:
        parts = urlsplit(url)
        whole = bool(parts.hostname) and parts.port != 0 and bool(httpx2.URL(url).host)
    except (ValueError, httpx2.InvalidURL):
        whole = False
    if not whole:
        raise UserError("questions.url is no URL of a server: give one such as http://localhost:8000/v1.")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _key(name: str) -> str:
    """Return the key in an environment variable, or nothing where there is none."""
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"The environment variable {name} holds no key: there are characters in it that no key has.")
    return key


def _shown(text: str) -> str:
    """Cut a stranger's text, and take out what does not print."""
    return "".join(char if char.isprintable() else " " for char in text[:SAID])
