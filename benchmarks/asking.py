"""Overhead of the client and the ledger: judgements against a server that takes 20 ms, beside a bare loop of aiohttp.

python -m benchmarks.asking client
python -m benchmarks.asking ledger
"""

import asyncio
import json
import multiprocessing
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import aiohttp
import typer

from curate.client import Client
from curate.ledger import Amount, Ledger, Reply, Request
from curate.settings import ClientSettings
from store.console import console, make_app, run

WAIT = 0.02  # seconds
REPLY = {"model": "m", "choices": [{"message": {"content": "{'pred': 'yes', 'score': 4}"}, "finish_reason": "stop"}],
         "usage": {"prompt_tokens": 300, "completion_tokens": 12}}  # fmt: skip
app = make_app("Overhead of asking outside LLMs.")


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    content = json.dumps(REPLY).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    try:
        while True:
            headers = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(headers.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            await asyncio.sleep(WAIT)
            writer.write(head + content)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _serve(port: int) -> None:
    async def forever() -> None:
        server = await asyncio.start_server(_answer, "127.0.0.1", port, backlog=512)
        await server.serve_forever()

    asyncio.run(forever())


def _requests(count: int) -> list[Request]:
    words = "Judge whether the answer says what the reference says, in whatever words it does. " * 15
    texts = [f"{words}\nquestion {number}: what is shown?" for number in range(count)]
    return [
        Request({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 64}) for text in texts
    ]


async def _bare(url: str, requests: Sequence[Request], concurrency: int) -> None:
    left = iter(requests)
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as client:

        async def work() -> None:
            for request in left:
                body = json.dumps(request.body).encode()
                async with client.post(f"{url}/v1/chat/completions", data=body) as response:
                    json.loads(await response.read())

        await asyncio.gather(*(work() for _ in range(concurrency)))


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@app.command()
def client(
    count: Annotated[int, typer.Option(help="Requests of each round.")] = 10_000,
    concurrency: Annotated[int, typer.Option(help="Requests at once.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds, the bare loop and the client in turn.")] = 5,
) -> None:
    """Requests a second and CPU a request, of a bare loop and of the client with its ledger."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(port,), daemon=True)
    server.start()
    url, requests = f"http://127.0.0.1:{port}", _requests(count)
    time.sleep(2)
    settings = ClientSettings(urls=(url,), model="m", concurrency=concurrency)

    def bare() -> None:
        asyncio.run(_bare(url, requests, concurrency))

    def ask() -> None:
        with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder, "ledger.jsonl")) as ledger:
            Client(settings).ask_all(requests, ledger, lambda request, reply: None)

    pairs = [(_measured(bare, count), _measured(ask, count)) for _ in range(rounds)]
    server.terminate()
    for name, found in zip(("bare aiohttp", "client"), zip(*pairs, strict=True), strict=True):
        rate, cpu = (statistics.median(values) for values in zip(*found, strict=True))
        console.print(f"{name}: {rate:.0f} requests/s, {1000 * cpu:.2f} ms CPU a request")
    ratio = statistics.median(client_rate / rate for (rate, _), (client_rate, _) in pairs)
    console.print(f"client to bare loop: {ratio:.2f} of its requests/s, the median of {rounds} rounds")


def _measured(work: Callable[[], None], count: int) -> tuple[float, float]:
    """Requests a second, and seconds of CPU a request."""
    started, cpu = time.perf_counter(), _cpu()
    work()
    return count / (time.perf_counter() - started), (_cpu() - cpu) / count


@app.command()
def ledger(count: Annotated[int, typer.Option(help="Replies in it; two lines each.")] = 200_000) -> None:
    """Seconds to write, open and read a ledger."""
    reply = Reply("{'pred': 'yes', 'score': 4}", "m", "stop", prompt_tokens=300, completion_tokens=12)
    requests = _requests(count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.jsonl")
        started = time.perf_counter()
        with Ledger(path) as ledger:
            for request in requests:
                ledger.reserve(request, Amount(100, 100))
                ledger.keep(request, reply, Amount(50, 50))
                ledger.commit()
        console.print(f"write: {time.perf_counter() - started:.1f} s, {path.stat().st_size / 1e6:.0f} MB")
        started = time.perf_counter()
        with Ledger(path) as ledger:
            console.print(f"open: {time.perf_counter() - started:.1f} s")
            started = time.perf_counter()
            for request in requests:
                ledger.get(request)
            console.print(f"read all replies: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    run(app)
