"""What `featurize plan` takes as the records of a source grow: seconds, and memory that is its own.

    python -m benchmarks.planning --records 100000 --records 1000000

The source is a .jsonl file of conversations of three turns, each about a clip of its own. None of the clips exists, so
it is planned with --unseen, which asks as much of it as clips that do.
"""

import json
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.table import Table

from store.console import console, run

WORDS = ("the", "man", "in", "red", "slowly", "playing", "guitar", "behind", "a", "table", "music", "is")
TURNS, ASKED, ANSWERED = 3, 10, 24  # words of a question and an answer
LOOK_SECONDS = 0.05


def write_source(path: Path, records: int) -> None:
    """Write this many conversations, one on each line."""
    draw = random.Random(0)
    with open(path, "w") as file:
        for number in range(records):
            turns = [
                {"from": who, "value": " ".join(draw.choices(WORDS, k=count))}
                for _ in range(TURNS)
                for who, count in (("human", ASKED), ("gpt", ANSWERED))
            ]
            record = {
                "id": f"talk-{number:09d}",
                "video": f"{number % 1000:03d}/{number:09d}.mp4",
                "conversations": turns,
            }
            file.write(json.dumps(record) + "\n")


def measure(words: list[str]) -> tuple[float, float, float]:
    """Seconds, and the most private memory of a process and the most with what it maps, in bytes."""
    started = time.perf_counter()
    process = psutil.Popen([sys.executable, "-m", "avllm", *words], stdout=open(os.devnull, "w"))  # noqa: SIM115
    private = mapped = 0.0
    done = threading.Event()

    def look() -> None:
        nonlocal private, mapped
        while not done.wait(LOOK_SECONDS):
            try:
                memory = process.memory_info()
            except psutil.NoSuchProcess:
                return
            private, mapped = max(private, memory.rss - memory.shared), max(mapped, memory.rss)

    thread = threading.Thread(target=look)
    thread.start()
    status = process.wait()
    done.set()
    thread.join()
    if status:
        sys.exit(status)
    return time.perf_counter() - started, private, mapped


def main(records: Annotated[list[int], typer.Option(help="Records of the source; may be given again.")]) -> None:
    """Print what planning takes at each size, and what opening the plan takes then."""
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    table = Table("records", "plan s", "private MB", "with mapped MB", "store stats s", "private MB", "with mapped MB")
    for count in records:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["AVLLM_CACHE"] = f"{folder}/cache"
            source = Path(folder, "talk.jsonl")
            write_source(source, count)
            planned = measure(["featurize", "plan", str(source), "--store", f"{folder}/store", "--unseen"])
            opened = measure(["store", "stats", f"{folder}/store"])
            figures = (
                f"{value:.1f}" if n == 0 else f"{value / 1e6:.0f}"
                for each in (planned, opened)
                for n, value in enumerate(each)
            )
            table.add_row(f"{count:,}", *figures)
    console.print(table)


if __name__ == "__main__":
    run(lambda: typer.run(main))
