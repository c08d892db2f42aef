"""The API under load: clients that check their answers, uploads, and clients that leave.

    python -m benchmarks.api load runs/demo/stage2/checkpoint runs/demo/store heldout
    python -m benchmarks.api uploads runs/demo/stage2/checkpoint runs/demo/corpus/clips/heldout000.mp4
    python -m benchmarks.api leave runs/demo/stage2/checkpoint

`load` has two peers in the same run: the same clients on the engine without HTTP, the ceiling, and a server that
generates on vLLM. Every client knows the engine's greedy answer to its question alone, and compares.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import torch
import typer

from serve.api.dialogue import SENSES_OF
from serve.assistant import Assistant, Question
from serve.engine import Limits
from store import Modality, Storage, Turn, load_conversations
from store.console import console, make_app, make_table, run

LIMITS = Limits(32)
PAUSE = 0.05  # seconds between two looks at /health
app = make_app("The API under load.")


@dataclass(frozen=True)
class Asked:
    """A question about an item of the store, and the engine's answer to it alone."""

    key: str
    turn: Turn
    answer: str = ""

    @property
    def body(self) -> dict[str, Any]:
        """The request."""
        item = {"type": "store_item", "store_item": {"key": self.key}}
        messages = [{"role": "user", "content": [item, {"type": "text", "text": self.turn.instruction}]}]
        senses = sorted(SENSES_OF[self.turn.modality])
        limits = {"max_tokens": LIMITS.max_tokens, "stream": True}
        return {"model": "avllm", "messages": messages, "modalities_in": senses, **limits}


@dataclass
class Tally:
    """What some clients saw: seconds to the first text of each answer, and answers that were lost or wrong."""

    first: list[float] = field(default_factory=list)
    lost: int = 0
    wrong: int = 0
    health: list[float] = field(default_factory=list)

    def count(self, asked: Asked, text: str | None, first: float) -> None:
        """Count an answer, None if there was none."""
        self.lost += text is None
        self.wrong += text is not None and text.strip() != asked.answer
        if text is not None:
            self.first.append(first)


@contextlib.contextmanager
def serving(checkpoint: str, *words: str) -> Iterator[tuple[str, psutil.Process, Path]]:
    """A server process: its URL, and the folder of its cache and temporary files."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["--checkpoint", checkpoint, "--port", "0", f"cache={folder}/cache", *words]
        command, env = [sys.executable, "-m", "serve", "api", *settings], {**os.environ, "TMPDIR": folder}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            try:
                lines = process.stdout or ()
                url = next(found[1] for line in lines if (found := re.search(r" at (http://\S+)/v1; try:", line)))
                yield url, psutil.Process(process.pid), Path(folder)
            finally:
                process.terminate()


async def pieces(client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncGenerator[str]:
    """Yield the texts of a streamed answer."""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            choices = json.loads(data)["choices"] if data not in (line, "[DONE]") else []
            if choices and (text := choices[0]["delta"].get("content")):
                yield text


def over_http(url: str) -> Callable[[Sequence[Asked], int, float], Tally]:
    """Clients of a server, beside one that looks at /health."""

    async def work(client: httpx.AsyncClient, mine: Sequence[Asked], until: float, tally: Tally) -> None:
        number = 0
        while time.perf_counter() < until:
            asked, started, first, text = mine[number % len(mine)], time.perf_counter(), 0.0, ""
            try:
                async for piece in pieces(client, asked.body):
                    first = first or time.perf_counter() - started
                    text += piece
                tally.count(asked, text, first)
            except (httpx.HTTPError, KeyError) as error:
                console.print(f"lost: {error!r}", markup=False)
                tally.count(asked, None, 0.0)
            number += 1

    async def look(client: httpx.AsyncClient, until: float, tally: Tally) -> None:
        while time.perf_counter() < until:
            started = time.perf_counter()
            (await client.get("/health")).raise_for_status()
            tally.health.append(time.perf_counter() - started)
            await asyncio.sleep(PAUSE)

    async def all_of(asked: Sequence[Asked], clients: int, seconds: float) -> Tally:
        tally, until = Tally(), time.perf_counter() + seconds
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
            works = [work(client, asked[n::clients] or asked, until, tally) for n in range(clients)]
            await asyncio.gather(*works, look(client, until, tally))
        return tally

    return lambda asked, clients, seconds: asyncio.run(all_of(asked, clients, seconds))


def without_http(assistant: Assistant, store: str) -> Callable[[Sequence[Asked], int, float], Tally]:
    """Threads that ask the engine."""

    def work(mine: Sequence[Asked], until: float, tally: Tally) -> None:
        number = 0
        while time.perf_counter() < until:
            asked, started, first, text = mine[number % len(mine)], time.perf_counter(), 0.0, ""
            for piece in assistant.stream(_question(assistant, store, asked), LIMITS):
                first = first or (time.perf_counter() - started if piece.text else 0.0)
                text += piece.text
            tally.count(asked, text, first)
            number += 1

    def all_of(asked: Sequence[Asked], clients: int, seconds: float) -> Tally:
        tally, until = Tally(), time.perf_counter() + seconds
        threads = [
            threading.Thread(target=work, args=(asked[n::clients] or asked, until, tally)) for n in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return tally

    return all_of


def _question(assistant: Assistant, store: str, asked: Asked) -> Question:
    return Question((asked.turn,), assistant.features.load(store, asked.key, assistant.features.senses).arrays)


def _questions(assistant: Assistant, store: str, conversations: str, count: int) -> list[Asked]:
    """Each conversation's first question by sight, sound and both, with the engine's answer to it alone."""
    asked: list[Asked] = []
    modalities: tuple[Modality, ...] = ("audio_visual", "visual", "audio")
    for conversation in load_conversations(Storage(store), conversations):
        features = assistant.features.load(store, str(conversation.key), assistant.features.senses)
        for modality in modalities if not features.failures else ():
            asked.append(Asked(str(conversation.key), Turn(conversation.turns[0].instruction, modality, "")))
    step = max(1, len(asked) // count)
    return [
        Asked(one.key, one.turn, assistant.answer([_question(assistant, store, one)], LIMITS)[0].text)
        for one in asked[::step][:count]
    ]


@app.command()
def load(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint.")],
    store: Annotated[str, typer.Argument(help="A store with its features.")],
    conversations: Annotated[str, typer.Argument(help="Their first turns are asked.")],
    clients: Annotated[list[int] | None, typer.Option(help="At once; may be repeated. Else 1, 8 and 32.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each contender at each number of clients.")] = 120.0,
    questions: Annotated[int, typer.Option(help="Different ones.")] = 64,
    vllm: Annotated[str | None, typer.Option(help="URL of a vLLM server of the checkpoint.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch, here; OMP_NUM_THREADS is the server's.")] = 1,
) -> None:
    """Requests a second, time to the first text, lost and wrong answers, and /health meanwhile."""
    torch.set_num_threads(threads)
    assistant = Assistant.load(checkpoint)
    asked = _questions(assistant, store, conversations, questions)
    table = make_table("clients", "contender", "requests/s", "of the ceiling", "first text, median (p95) s", "lost",
                       "wrong", "/health p50, p99 ms")  # fmt: skip
    with contextlib.ExitStack() as stack:
        contenders = {"engine, no HTTP": without_http(assistant, store)}
        for name, words in {"API": [], **({"API on vLLM": ["--vllm", vllm]} if vllm else {})}.items():
            url, *_ = stack.enter_context(serving(checkpoint, "--store", f"clips={store}", *words))
            contenders[name] = over_http(url)
        for count in clients or [1, 8, 32]:
            ceiling = 0.0
            for name, contender in contenders.items():
                started = time.perf_counter()
                tally = contender(asked, count, seconds)
                rate = len(tally.first) / (time.perf_counter() - started)
                ceiling = ceiling or rate
                health = _parts(tally.health, 50, 99, scale=1000) if tally.health else "-"
                table.add_row(str(count), name, f"{rate:.2f}", f"{rate / ceiling:.2f}", _parts(tally.first, 50, 95),
                              str(tally.lost), str(tally.wrong), health)  # fmt: skip
                console.print(f"{count} clients, {name}: {len(tally.first)} answers, {rate:.2f}/s")
    console.print(table)
    assistant.close()


def _parts(seconds: Sequence[float], *percents: int, scale: float = 1.0) -> str:
    low, high = np.percentile(seconds, percents) * scale
    return f"{low:.2f} ({high:.2f})" if scale == 1 else f"{low:.1f}, {high:.1f}"


@app.command()
def uploads(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint.")],
    clip: Annotated[Path, typer.Argument(help="A small MP4; each upload gets a box of its own.")],
    count: Annotated[int, typer.Option(help="Uploads.")] = 500,
    at_once: Annotated[int, typer.Option(help="Uploads at once.")] = 4,
    words: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE for the server.")] = None,
) -> None:
    """Memory and disk of a server while distinct clips are sent."""
    content = clip.read_bytes()

    async def send(client: httpx.AsyncClient, number: int) -> None:
        data = base64.b64encode(content + b"\0\0\0\x0cfree" + number.to_bytes(4, "big")).decode()
        video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
        messages = [{"role": "user", "content": [video, {"type": "text", "text": "What?"}]}]
        asked = {"model": "avllm", "max_tokens": 1, "messages": messages}
        response = await client.post("/v1/chat/completions", json=asked)
        assert response.status_code == 200, response.text

    async def send_all(url: str, tell: Callable[[int], None]) -> None:
        turns = asyncio.Semaphore(at_once)

        async def in_turn(number: int) -> None:
            async with turns:
                await send(client, number)

        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            for start in range(0, count, max(1, count // 5)):
                tell(start)
                await asyncio.gather(*map(in_turn, range(start, min(count, start + count // 5))))
        tell(count)

    with serving(checkpoint, *(words or [])) as (url, process, folder):

        def tell(sent: int) -> None:
            family = [process, *process.children(recursive=True)]
            memory = [one.memory_info().rss >> 20 for one in family]
            disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) >> 10
            console.print(f"{sent} clips: server {memory[0]} MiB, children {sum(memory[1:])} MiB, disk {disk} KiB")

        asyncio.run(send_all(url, tell))


@app.command()
def leave(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint.")],
    count: Annotated[int, typer.Option(help="Clients that leave, one after the other.")] = 50,
) -> None:
    """Steps until the place of a client that left is free, counted by another client's pieces."""
    body = {"model": "avllm", "messages": [{"role": "user", "content": "Say much."}], "temperature": 2.0,
            "max_tokens": 1000, "stream": True}  # fmt: skip

    async def watch(client: httpx.AsyncClient, seen: list[int]) -> None:
        while True:
            async for _ in pieces(client, body):
                seen[0] += 1

    async def running(client: httpx.AsyncClient) -> float:
        page = (await client.get("/metrics")).text
        return float(next(line for line in page.splitlines() if line.startswith("avllm_requests_running ")).split()[1])

    async def measure(url: str) -> list[int]:
        seen, steps = [0], list[int]()
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            watching = asyncio.create_task(watch(client, seen))
            while len(steps) < count:
                leaving = pieces(client, body)
                await anext(leaving)
                before = seen[0]
                await leaving.aclose()
                while await running(client) > 1:
                    await asyncio.sleep(0.001)
                steps.append(seen[0] - before)
            watching.cancel()
        return steps

    with serving(checkpoint) as (url, *_):
        steps = asyncio.run(measure(url))
    console.print(f"{count} clients left: their places were free after {np.median(steps):.0f} steps (median), "
                  f"{max(steps)} at most")  # fmt: skip


if __name__ == "__main__":
    run(app)
