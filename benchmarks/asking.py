"""Overhead of the client and the ledger: judgements by a server that takes 20 ms, against a bare loop of aiohttp.

python -m benchmarks.asking client
python -m benchmarks.asking ledger
python -m benchmarks.asking limited
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.llm_server import Limit, ask_bare, cpu, serving
from curate.client import Client
from curate.ledger import Amount, Ledger, Reply, Request
from curate.settings import ClientSettings
from store.console import console, make_app, run

app = make_app("Overhead of asking outside LLMs.")


def judged(body: bytes) -> str:
    """What the judge says to each request."""
    return "{'pred': 'yes', 'score': 4}"


def _requests(count: int) -> list[Request]:
    words = "Judge whether the answer says what the reference says, in whatever words it does. " * 15
    texts = [f"{words}\nquestion {number}: what is shown?" for number in range(count)]
    return [
        Request({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 64}) for text in texts
    ]


@app.command()
def client(
    count: Annotated[int, typer.Option(help="Requests of each round.")] = 10_000,
    concurrency: Annotated[int, typer.Option(help="Requests at once.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds, the bare loop and the client in turn.")] = 5,
) -> None:
    """Requests a second and CPU a request, of a bare loop and of the client with its ledger."""
    requests = _requests(count)
    with serving(judged) as url:
        settings = ClientSettings(urls=(url,), model="m", concurrency=concurrency)

        def ask() -> None:
            with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder, "ledger.jsonl")) as ledger:
                Client(settings).ask_all(requests, ledger, lambda request, reply: None)

        def bare() -> None:
            ask_bare(url, requests, concurrency)

        pairs = [(_measured(bare, count), _measured(ask, count)) for _ in range(rounds)]
    for name, found in zip(("bare aiohttp", "client"), zip(*pairs, strict=True), strict=True):
        rate, cpu = (statistics.median(values) for values in zip(*found, strict=True))
        console.print(f"{name}: {rate:.0f} requests/s, {1000 * cpu:.2f} ms CPU a request")
    ratio = statistics.median(client_rate / rate for (rate, _), (client_rate, _) in pairs)
    console.print(f"client to bare loop: {ratio:.2f} of its requests/s, the median of {rounds} rounds")


def _measured(work: Callable[[], None], count: int) -> tuple[float, float]:
    """Requests a second, and seconds of CPU a request."""
    started, used = time.perf_counter(), cpu()
    work()
    return count / (time.perf_counter() - started), (cpu() - used) / count


@app.command()
def limited(
    rate: Annotated[int, typer.Option(help="Replies a second that the server allows.")] = 200,
    seconds: Annotated[int, typer.Option(help="How long it is asked, if the limit is used up.")] = 30,
    concurrency: Annotated[int, typer.Option(help="Requests at once.")] = 64,
) -> None:
    """Share of a server's limit that the client gets, by how the server says when to come again."""
    requests = _requests(rate * seconds)
    headers: tuple[Literal["retry-after-ms", "retry-after"] | None, ...] = ("retry-after-ms", "retry-after", None)
    for header in headers:
        with serving(judged, Limit(rate, header)) as url, tempfile.TemporaryDirectory() as folder:
            settings = ClientSettings(urls=(url,), model="m", concurrency=concurrency, tries=100)
            with Ledger(Path(folder, "ledger.jsonl")) as ledger:
                started = time.perf_counter()
                Client(settings).ask_all(requests, ledger, lambda request, reply: None)
                got = len(requests) / (time.perf_counter() - started)
        console.print(f"{header or 'no header'}: {got:.0f} replies/s, {got / rate:.2f} of the limit")


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
