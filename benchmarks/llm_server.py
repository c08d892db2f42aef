"""An OpenAI-style server that takes 20 ms a reply, and the bare loop that asks it: the ceiling of every client."""

import asyncio
import json
import multiprocessing
import resource
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import aiohttp

from curate.ledger import Request

WAIT = 0.02  # seconds
Say = Callable[[bytes], str]  # the text that answers a body


@contextmanager
def serving(say: Say) -> Iterator[str]:
    """The URL of a server in another process; `say` must be importable by name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(port, say), daemon=True)
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


def _serve(port: int, say: Say) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                headers = (await reader.readuntil(b"\r\n\r\n")).lower()
                body = await reader.readexactly(int(headers.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
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
