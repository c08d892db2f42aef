"""One request to one OpenAI-style server: a reply, or why there is none."""

import json
import os
import ssl
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import certifi

from curate.ledger import Amount, Reply, Request
from curate.pace import Pace, retry_after
from curate.settings import ClientSettings, Price, endpoint
from store import UserError

TOO_MANY = 429  # requests for a limit
BUSY = {408, 425, TOO_MANY, 503, 529}  # the server cannot keep up
QUOTA = "insufficient_quota"
SHOWN = 300  # characters of a server's message
FREE = Price(prompt=0, completion=0)
TEMPLATE_TOKENS = 64  # that a chat template may add to a message


class RejectedError(Exception):
    """The server refuses this request as it is; asking it again is no use."""


class TransientError(Exception):
    """There is no reply now, but there may be one to the next try.

    Attributes:
        spent: what the try may have cost.
        busy: whether the server cannot keep up.
        after: seconds that it asks to wait, or None.
        limited: whether it refused for a limit.
    """

    def __init__(
        self, message: str, spent: Amount, busy: bool = False, after: float | None = None, limited: bool = False
    ) -> None:
        super().__init__(message)
        self.spent, self.busy, self.after, self.limited = spent, busy, after, limited


def most_of(request: Request, price: Price | None) -> Amount:
    """The most that a request can cost: a token is at least a byte, and a reply ends at `max_tokens`."""
    body = request.body
    texts = [message["content"] for message in body["messages"]]
    if form := body.get("response_format"):
        texts.append(json.dumps(form))
    prompt = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + TEMPLATE_TOKENS * (1 + len(texts))
    return (price or FREE).of(prompt, request.body["max_tokens"])


class _Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")


class Server:
    """A server that is asked. A context manager.

    Args:
        url: of the server.
        settings: limits of time, price and concurrency.
        key: API key, or None.
    """

    def __init__(self, url: str, settings: ClientSettings, key: str | None) -> None:
        self.url, self._settings, self._key = url, settings, key
        self.pace = Pace(settings.concurrency, settings.longest_pause)
        self._reached, self._endpoint = False, endpoint(url)
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    async def __aenter__(self) -> "Server":
        settings = self._settings
        timeout = aiohttp.ClientTimeout(
            total=settings.whole_seconds, sock_connect=settings.connect_seconds, sock_read=settings.silent_seconds
        )
        connector = aiohttp.TCPConnector(limit=settings.concurrency, ssl=_trusted())
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers, cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_proxy(self._endpoint),
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, request: Request, most: Amount) -> tuple[Reply, Amount]:
        """The reply to a request, and what it cost.

        Args:
            request: what is sent.
            most: the most that it can cost.

        Raises:
            TransientError: there is no reply now.
            RejectedError: the server refuses this request.
            UserError: no request can succeed: wrong key, model or URL, or nothing left to spend at the provider.
        """
        began = time.monotonic()
        response = await self._post(request.text.encode(), most)
        if response.status != 200:
            raise self._error(response, request)
        return self._read(response.content, most, time.monotonic() - began)

    async def _post(self, body: bytes, most: Amount) -> _Response:
        try:
            async with self._session.post(self._endpoint, data=body, allow_redirects=False) as response:
                read = _Response(response.status, response.headers, await response.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if not self._reached:
                raise UserError(f"{self.url}: no server answers: {error or type(error).__name__}") from None
            raise TransientError(f"{self.url}: no connection", Amount(), busy=True) from None
        except aiohttp.SocketTimeoutError:
            seconds = self._settings.silent_seconds
            raise TransientError(f"{self.url}: silent for {seconds:g} s", most, busy=True) from None
        except TimeoutError:
            seconds = self._settings.whole_seconds
            raise TransientError(f"{self.url}: no whole reply in {seconds:g} s", most, busy=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(f"{self.url}: {error or type(error).__name__}", most, busy=True) from None
        self._reached = True
        return read

    def _error(self, response: _Response, request: Request) -> Exception:
        """What a status other than 200 means."""
        status, message = response.status, self._message(response)
        where = f"{self.url}: {status}"
        if status in (401, 403):  # without the server's words, which may repeat a part of the key
            sent = "the key is refused" if self._key else "no key was sent"
            return UserError(f"{where}: {sent}; name its environment variable by key_env, or a file by key_file")
        if status == 402 or QUOTA in response.text:
            return UserError(f"{where}: the account has nothing left to spend: {message}")
        if status in BUSY:
            after, limited = retry_after(response.headers), response.status == TOO_MANY
            return TransientError(f"{where}: {message}", Amount(), busy=True, after=after, limited=limited)
        if status >= 500:
            return TransientError(f"{where}: {message}", Amount(), after=retry_after(response.headers))
        if status in (404, 405):
            return UserError(f"{where}: no model {request.body['model']!r} or no chat completions there: {message}")
        if status < 400:  # such as a redirect, which is not followed: it would take the key elsewhere
            return UserError(f"{where}: expected 200 with a chat completion; name the server's own URL: {message}")
        return RejectedError(f"{where}: {message}")

    def _message(self, response: _Response) -> str:
        try:
            error = json.loads(response.content)["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            text = response.text
        text = " ".join(text.split())
        return (text.replace(self._key, "***") if self._key else text)[:SHOWN]

    def _read(self, content: bytes, most: Amount, seconds: float) -> tuple[Reply, Amount]:
        """Read a body with status 200. One that is cut is no reply, but may have been billed."""
        try:
            data = json.loads(content)
        except ValueError:
            data = None
        return read_reply(data, self.url, most, self._settings, round(seconds, 3))


def read_reply(
    data: Any, where: str, most: Amount, settings: ClientSettings, seconds: float = 0.0
) -> tuple[Reply, Amount]:
    """The reply in a chat completion, and what it cost.

    Args:
        data: the completion, from JSON.
        where: it came from: the server's URL, or a line of a file.
        most: the most that it can have cost, which counts if its usage is not told.
        settings: price of tokens.
        seconds: it took.

    Raises:
        TransientError: it is of another form, or empty.
    """
    try:
        choice = data["choices"][0]
        message, usage = choice["message"], data.get("usage") or {}
        prompt, completion = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        text, refusal = (_text(message.get(name)) for name in ("content", "refusal"))
        served, finish = _text(data.get("model")), _text(choice.get("finish_reason"))
    except (LookupError, TypeError, AttributeError):
        raise TransientError(f"{where}: a reply that is cut, or of another form", most) from None
    spent = most
    if prompt is not None and completion is not None:
        spent = (settings.price or FREE).of(prompt, completion)
    if not text.strip() and not refusal:
        raise TransientError(f"{where}: an empty reply (finish reason {finish or 'not given'})", spent)
    refused = bool(refusal) or finish == "content_filter"
    return Reply(text or refusal, served, finish, refused, prompt, completion, where, seconds), spent


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL; aiohttp would look for it at every request."""
    parts = urlsplit(url)
    return None if proxy_bypass(str(parts.hostname)) else getproxies().get(parts.scheme)


def _trusted() -> ssl.SSLContext:
    """Whose certificates are believed: certifi's, unless SSL_CERT_FILE names others."""
    file = os.environ.get("SSL_CERT_FILE") or certifi.where()
    return ssl.create_default_context(cafile=file, capath=os.environ.get("SSL_CERT_DIR"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
