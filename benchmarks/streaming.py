"""Stream a column of the paper's size into batches: ours, webdataset, and the ceiling (the same bytes by readinto).

    python -m benchmarks.streaming --items 256 --rounds 7

No prefetching, one process each. Pages are in the file cache, so this measures software, not the disk.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import webdataset
from rich.table import Table

from store import Candidate, Column, ColumnReader, ColumnSpec, Corpus, Feature, Storage, create_column
from store.console import console, make_app, run

SHAPES = {"temporal": (32, 1024), "spatial.t32": (256, 1024)}  # ViT-L/14 on 32 frames, float16: 590 kB an item
BATCH = 16
SHARD = 64
RAW = bytearray(2 * BATCH * sum(rows * width for rows, width in SHAPES.values()))
app = make_app("Stream a column into batches, beside webdataset and the raw ceiling.")


def build(folder: str, items: int) -> Column:
    """A column of random features."""
    storage = Storage(folder)
    corpus = Corpus()
    corpus.append([Candidate(f"{i}.mp4", f"/{i}.mp4", "video") for i in range(items)], SHARD)
    features = {name: Feature(shape=shape, dtype="float16") for name, shape in SHAPES.items()}
    spec = ColumnSpec(name="clip-vit-l-14", modality="visual", numerics={"random": True}, features=features)
    column = create_column(storage, spec, {})
    rng = np.random.default_rng(0)
    for shard, members in corpus.shards.items():
        with column.write_shard(shard) as writer:
            for item in members:
                writer.add(item.key, {n: rng.random(s, np.float32).astype("f2") for n, s in SHAPES.items()}, {})
    return column


def ours(column: Column) -> Iterator[int]:
    """Batches by our reader, copied into reused buffers; checksums are compared, as always at first touch."""
    reader = ColumnReader(column)
    buffers = {name: np.empty((BATCH, *shape), np.float16) for name, shape in SHAPES.items()}
    for place, key in enumerate(reader.keys()):
        for name, array in reader.read(key).items():
            buffers[name][place % BATCH] = array
        yield 1


def plain_webdataset(column: Column) -> Iterator[int]:
    """Batches by webdataset's own pipeline."""
    urls = sorted(str(path) for path in Path(column.storage.path(column.path(""))).glob("*.tar"))
    names = [f"{name}.npy" for name in SHAPES]
    for batch in webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple(*names).batched(BATCH):
        yield len(batch[0])


def ceiling(column: Column) -> Iterator[int]:
    """The same bytes into one reused buffer of a batch's size, and nothing else."""
    for shard in column.shards():
        with open(column.storage.path(column.path(f"{shard:06d}.tar")), "rb", buffering=0) as file:
            while file.readinto(RAW):
                pass
        yield len(column.sidecar(shard).items)


@app.command()
def streaming(
    items: Annotated[int, typer.Option(help="Items of 590 kB.")] = 256,
    rounds: Annotated[int, typer.Option(help="Times each is run, interleaved.")] = 7,
) -> None:
    """Print median samples a second of each, and the ratio to the ceiling."""
    contenders: dict[str, Callable[[Column], Iterator[int]]] = {
        "readinto (ceiling)": ceiling,
        "avllm": ours,
        "webdataset": plain_webdataset,
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        column = build(folder, items)
        for _ in range(rounds):
            for name, contender in contenders.items():
                began = time.perf_counter()
                count = sum(contender(column))
                rates[name].append(count / (time.perf_counter() - began))
                assert count == items, (name, count)
    table = Table("reader", "samples/s (median)", "of the ceiling")
    top = statistics.median(rates["readinto (ceiling)"])
    for name, values in rates.items():
        table.add_row(name, f"{statistics.median(values):.0f}", f"{statistics.median(values) / top:.2f}")
    console.print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    console.print(table)


if __name__ == "__main__":
    run(app)
