"""One request to one OpenAI-style server: a reply, or why there is none."""

import asyncio
import json
import time
from typing import Any

import httpx

from curate.ledger import Amount, Reply, Request
from curate.pace import Pace, retry_after
from curate.settings import ClientSettings, Price, endpoint
from store import UserError

BUSY = {408, 425, 429, 503, 529}  # the server cannot keep up
QUOTA = "insufficient_quota"
SHOWN = 300  # characters of a server's message
TEMPLATE_TOKENS = 64  # that a chat template may add to a message


class RejectedError(Exception):
    """The server refuses this request as it is; asking it again is no use."""


class PassingError(Exception):
    """There is no reply now, but there may be one to the next try.

    Attributes:
        spent: what the try may have cost.
        busy: whether the server cannot keep up.
        after: seconds that it asks to wait, or None.
    """

    def __init__(self, message: str, spent: Amount, busy: bool = False, after: float | None = None) -> None:
        super().__init__(message)
        self.spent, self.busy, self.after = spent, busy, after


def most_of(request: Request, price: Price | None) -> Amount:
    """The most that a request can cost: a token is at least a byte, and a reply ends at `max_tokens`."""
    text = json.dumps([request.body["messages"], request.body.get("response_format")], ensure_ascii=False)
    prompt = len(text.encode("utf-8", "surrogatepass")) + TEMPLATE_TOKENS * (1 + len(request.body["messages"]))
    return (price or Price(prompt=0, completion=0)).of(prompt, request.body["max_tokens"])


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
        self._reached = False
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._timeout = httpx.Timeout(settings.silent_seconds, connect=settings.connect_seconds)
        self._tls = httpx.create_ssl_context()
        self._clients: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []  # one connection each: httpx searches all of a client's

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.aclose()

    async def ask(self, request: Request, most: Amount) -> tuple[Reply, Amount]:
        """The reply to a request, and what it cost.

        Args:
            request: what is sent.
            most: the most that it can cost.

        Raises:
            PassingError: there is no reply now.
            RejectedError: the server refuses this request.
            UserError: no request can succeed: wrong key, model or URL, or nothing left to spend at the provider.
        """
        began = time.monotonic()
        response = await self._post(json.dumps(request.body).encode(), most)
        if response.status_code != 200:
            raise self._error(response, request)
        return self._read(response.content, most, time.monotonic() - began)

    async def _post(self, body: bytes, most: Amount) -> httpx.Response:
        try:
            async with asyncio.timeout(self._settings.whole_seconds):
                response = await self._send(body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if not self._reached:
                raise UserError(f"{self.url}: no server answers: {error or type(error).__name__}") from None
            raise PassingError(f"{self.url}: no connection", Amount(), busy=True) from None
        except TimeoutError:
            seconds = self._settings.whole_seconds
            raise PassingError(f"{self.url}: no whole reply in {seconds:g} s", most, busy=True) from None
        except httpx.TimeoutException:
            seconds = self._settings.silent_seconds
            raise PassingError(f"{self.url}: silent for {seconds:g} s", most, busy=True) from None
        except httpx.HTTPError as error:
            raise PassingError(f"{self.url}: {error or type(error).__name__}", most, busy=True) from None
        self._reached = True
        return response

    async def _send(self, body: bytes) -> httpx.Response:
        if not self._idle:
            client = httpx.AsyncClient(headers=self._headers, timeout=self._timeout, verify=self._tls)
            self._clients.append(client)
            self._idle.append(client)
        client = self._idle.pop()
        try:
            return await client.post(endpoint(self.url), content=body)
        finally:
            self._idle.append(client)

    def _error(self, response: httpx.Response, request: Request) -> Exception:
        """What a status other than 200 means."""
        status, message = response.status_code, self._message(response)
        where = f"{self.url}: {status}"
        if status in (401, 403):  # without the server's words, which may repeat a part of the key
            sent = "the key is refused" if self._key else "no key was sent"
            return UserError(f"{where}: {sent}; name its environment variable by key_env, or a file by key_file")
        if status == 402 or QUOTA in response.text:
            return UserError(f"{where}: the account has nothing left to spend: {message}")
        if status in BUSY:
            return PassingError(f"{where}: {message}", Amount(), busy=True, after=retry_after(response.headers))
        if status >= 500:
            return PassingError(f"{where}: {message}", Amount(), after=retry_after(response.headers))
        if status in (404, 405) or status < 400:
            return UserError(f"{where}: no model {request.body['model']!r} or no chat completions there: {message}")
        return RejectedError(f"{where}: {message}")

    def _message(self, response: httpx.Response) -> str:
        try:
            error = response.json()["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            text = response.text
        text = " ".join(text.split())
        return (text.replace(self._key, "***") if self._key else text)[:SHOWN]

    def _read(self, content: bytes, most: Amount, seconds: float) -> tuple[Reply, Amount]:
        """Read a body with status 200. One that is cut or empty is no reply, but may have been billed."""
        try:
            data = json.loads(content)
            choice = data["choices"][0]
            message, usage = choice["message"], data.get("usage") or {}
            prompt, completion = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
            text, refusal = (_text(message.get(name)) for name in ("content", "refusal"))
            served, finish = _text(data.get("model")), _text(choice.get("finish_reason"))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise PassingError(f"{self.url}: a reply that is cut, or of another form", most) from None
        spent = most
        if prompt is not None and completion is not None:
            spent = (self._settings.price or Price(prompt=0, completion=0)).of(prompt, completion)
        if not text.strip() and not refusal:
            raise PassingError(f"{self.url}: an empty reply (finish reason {finish or 'not given'})", spent)
        refused = bool(refusal) or finish == "content_filter"
        return Reply(text or refusal, served, finish, refused, prompt, completion, self.url, round(seconds, 3)), spent


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
