"""An OpenAI-style server that takes 20 ms a reply, and the bare loop that asks it: the ceiling of every client."""

import asyncio
import json
import math
import multiprocessing
import resource
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import aiohttp

from curate.ledger import Request

WAIT = 0.02  # seconds
BURST = 0.5  # seconds of its limit that a limited server answers at once
Say = Callable[[bytes], str]  # the text that answers a body


@dataclass(frozen=True)
class Limit:
    """What a server allows.

    Attributes:
        rate: replies a second; what comes beyond them is refused with 429.
        header: how a refusal says when to come again: `retry-after-ms`, `retry-after` (whole seconds), or not at all.
    """

    rate: float
    header: Literal["retry-after-ms", "retry-after"] | None


@contextmanager
def serving(say: Say, limit: Limit | None = None) -> Iterator[str]:
    """The URL of a server in another process; `say` must be importable by name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(port, say, limit), daemon=True)
    server.start()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.1)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()


def ask_bare(url: str, requests: Sequence[Request], concurrency: int) -> None:
    """Ask by aiohttp and do nothing else with the replies."""
    asyncio.run(_ask(url, requests, concurrency))


def cpu() -> float:
    """Seconds of CPU that this process took."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _ask(url: str, requests: Sequence[Request], concurrency: int) -> None:
    left = iter(requests)
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as client:

        async def work() -> None:
            for request in left:
                body = json.dumps(request.body).encode()
                async with client.post(f"{url}/v1/chat/completions", data=body) as response:
                    json.loads(await response.read())

        await asyncio.gather(*(work() for _ in range(concurrency)))


def _serve(port: int, say: Say, limit: Limit | None) -> None:
    free, filled = 0.0, time.monotonic()  # replies that may be given now, and when that was counted

    def refusal() -> bytes | None:
        nonlocal free, filled
        if limit is None:
            return None
        now = time.monotonic()
        free, filled = min(BURST * limit.rate, free + (now - filled) * limit.rate), now
        if free >= 1:
            free -= 1
            return None
        seconds = (1 - free) / limit.rate
        says = {"retry-after-ms": math.ceil(1000 * seconds), "retry-after": math.ceil(seconds)}
        when = f"{limit.header}: {says[limit.header]}\r\n" if limit.header else ""
        return f"HTTP/1.1 429 Too Many Requests\r\n{when}Content-Length: 2\r\n\r\n{{}}".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                headers = (await reader.readuntil(b"\r\n\r\n")).lower()
                body = await reader.readexactly(int(headers.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                if refused := refusal():
                    writer.write(refused)
                    continue
                await asyncio.sleep(WAIT)
                writer.write(_response(say(body), len(body)))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def forever() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=512)
        await server.serve_forever()

    asyncio.run(forever())


def _response(text: str, asked: int) -> bytes:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": asked // 4, "completion_tokens": 60}
    content = json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content
