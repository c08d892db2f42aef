"""What the ranks of one machine hold, and how long they take to start, as items and conversations grow.

    python -m benchmarks.ranks ranks --items 100000 --items 1000000
    python -m benchmarks.ranks ranks --items 2000000 --processes 8
    python -m benchmarks.ranks remote --shards 10000

Each item has one conversation of three turns, and small arrays. A store of ten million items is made in minutes: texts
are drawn from a pool, the sidecars of all shards are the first one's with other keys, and the tars are hard links of
the first one, since arrays are found by the sidecars alone. Every rank is a process that joins the conversations with
the column and reads batches as training does, once on a machine that has not seen the store and once on one that has.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich.table import Table

from benchmarks.s3 import counted_requests, s3_server
from store import Column, ColumnSpec, Feature, Storage, create_column
from store.console import console, make_app, run
from store.conversation import FOLDER, SCHEMA
from store.index import open_index, publish_index
from store.sealed import seal_json
from store.shard import shard_name
from store.table import save_batches

PER_SHARD, FEW = 1000, 4
AT_ONCE = 100_000  # conversations made and written at once
TURNS = 3
POOL = 20_000  # different texts
ASKED, ANSWERED = 10, 24  # words
BATCH, BATCHES = 128, 30
TIMES = ("new s", "of processor", "known s", "of processor", "a batch ms of processor")
EMPTY = 1000  # items of the run whose memory is subtracted
FEATURES = {"temporal": Feature(shape=(None, 4), dtype="float16"), "spatial.t4": Feature(shape=(2, 4), dtype="float16")}
SPEC = ColumnSpec(name="small", modality="visual", numerics={}, features=FEATURES)
app = make_app("What the ranks of a machine hold as items and conversations grow.")


def make_store(folder: Path, items: int) -> None:
    """Write a column and conversations of this many items."""
    storage = Storage(folder)
    _write_column(create_column(storage, SPEC, {}), items)
    save_batches(storage, f"{FOLDER}/talk.parquet", _conversations(items), SCHEMA)


def _write_column(column: Column, items: int, per_shard: int = PER_SHARD) -> None:
    numbers = [f"clip-{n:09d}" for n in range(per_shard)]
    with column.write_shard(0) as writer:
        for n, key in enumerate(numbers):
            arrays = {name: np.full((4 if f.shape[0] is None else 2, 4), n, np.float16) for name, f in FEATURES.items()}
            writer.add(key, arrays, {})
    first, storage = column.sidecar(0), column.storage
    tar = Path(storage.path(column.path(shard_name(0, "tar"))))
    for shard in range(1, -(-items // per_shard)):
        keys = tuple(f"clip-{shard * per_shard + n:09d}" for n in range(per_shard))
        os.link(tar, tar.with_name(shard_name(shard, "tar")))
        sidecar = seal_json(replace(first, shard=shard, keys=keys).dump())
        tar.with_name(shard_name(shard, "json")).write_bytes(sidecar)


def _conversations(items: int) -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng(0)
    words = np.array(["the", "man", "in", "red", "slowly", "playing", "guitar", "behind", "a", "table", "music", "is"])
    asked, answered = (
        pa.array([" ".join(rng.choice(words, count)) for _ in range(POOL)]) for count in (ASKED, ANSWERED)
    )
    for first in range(0, items, AT_ONCE):
        count = min(AT_ONCE, items - first)
        digits = pc.utf8_lpad(pc.cast(pa.array(np.arange(first, first + count)), pa.string()), 9, "0")
        turns = pa.StructArray.from_arrays(
            [
                asked.take(pa.array(rng.integers(0, POOL, count * TURNS))),
                pa.repeat("visual", count * TURNS),
                answered.take(pa.array(rng.integers(0, POOL, count * TURNS))),
            ],
            fields=list(SCHEMA.field("turns").type.value_type),
        )
        yield pa.record_batch(
            [
                pc.binary_join_element_wise("talk", digits, "-"),
                pc.binary_join_element_wise("clip", digits, "-"),
                pa.ListArray.from_arrays(np.arange(0, count * TURNS + 1, TURNS, np.int32), turns),
                pa.repeat("{}", count),
            ],
            schema=SCHEMA,
        )


def _make_tokenizer() -> Any:
    """A small byte-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@app.command(hidden=True)
def rank(folder: Path, number: int, ranks: int) -> None:
    """One rank, in this process: prints its seconds and bytes as JSON, and ends when its input does."""
    from store import parse_settings
    from trainer.data import TrainingData
    from trainer.loader import rank_batch
    from trainer.settings import TrainConfig

    settings = {
        **{"stage": 1, "model": "unused", "output": "unused", "lr": 1e-3, "epochs": 1.0, "global_batch": BATCH * ranks},
        **{"visual": "small", "audio": None, "frames": 4},
        "sources": [{"store": str(folder), "conversations": "talk"}],
    }
    config, tokenizer = parse_settings(TrainConfig, settings, "benchmark"), _make_tokenizer()
    started, busy, each = time.perf_counter(), time.process_time(), list[float]()
    data = TrainingData(config, tokenizer)
    rank_batch(data, config, 0, number, ranks)
    first, busy = time.perf_counter() - started, time.process_time() - busy
    for step in range(1, min(data.steps, BATCHES)):
        before = time.process_time()
        rank_batch(data, config, step, number, ranks)
        each.append(time.process_time() - before)
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {name: 1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile", "VmHWM")}
    batch = statistics.median(each or [busy])
    print(json.dumps({"first": first, "busy": busy, "batch": batch, **sizes}), flush=True)
    sys.stdin.read()  # pages stay shared until all have been measured


def measure(folder: Path, processes: int) -> list[dict[str, float]]:
    """Start all ranks at once; return the figures of each."""
    words = [sys.executable, "-m", "benchmarks.ranks", "rank", str(folder)]
    started = [
        subprocess.Popen([*words, str(n), str(processes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for n in range(processes)
    ]
    figures = [json.loads(process.stdout.readline()) for process in started if process.stdout]
    for process in started:
        process.communicate()
    return figures


@app.command()
def ranks(
    items: Annotated[list[int], typer.Option(help="Items, each with a conversation; may be given again.")],
    processes: Annotated[int, typer.Option(help="Ranks that start at once.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="Keeps the stores here; default: a temporary folder.")] = None,
) -> None:
    """Print the memory of the ranks, and their times to the first batch and of a batch, at each size.

    `private` is of the rank that has most, above a run of few items, and `together` of all ranks; `shared` is mapped.
    Seconds are of the clock, then of the processor; a store is `new` to the machine, or `known`.
    """
    console.print(
        f"{processes} ranks, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"
    )
    table = Table("items", *(f"{name} MB" for name in ("private", "together", "shared", "peak")), *TIMES)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["AVLLM_CACHE"] = str(Path(scratch, "cache"))
        empty = 0.0
        for count in (EMPTY, *items):
            store = (folder or Path(scratch)) / str(count)
            if not store.exists():
                make_store(store, count)
            new, known = measure(store, processes), measure(store, processes)
            empty = empty or statistics.median(f["RssAnon"] for f in known)
            private = [f["RssAnon"] - empty for f in known]
            sizes = max(private), sum(private), *(max(f[name] for f in known) for name in ("RssFile", "VmHWM"))
            times = [f"{max(f[name] for f in run):.2f}" for run in (new, known) for name in ("first", "busy")]
            batch = statistics.median(f["batch"] for f in known)
            table.add_row(f"{count:,}", *(f"{size / 1e6:.0f}" for size in sizes), *times, f"{1e3 * batch:.1f}")
    console.print(table)


@app.command()
def remote(
    shards: Annotated[int, typer.Option(help="Of the column; each has four items.")] = 10_000,
) -> None:
    """Print the requests and seconds of opening a column on an S3 server, by machines that know it or do not.

    First it has no index beside it, then one that `publish_index` put there, as a run does at its end.
    """
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    table = Table("opening", "requests", "seconds")
    with tempfile.TemporaryDirectory() as scratch, s3_server() as url:
        local = create_column(Storage(scratch), SPEC, {})
        _write_column(local, shards * FEW, FEW)
        column = create_column(Storage(url), SPEC, {})
        sidecars = [str(path) for path in Path(local.storage.path(local.path(""))).glob("[0-9]*.json")]
        column.storage.fs.put(sidecars, column.storage.path(column.path("")).rstrip("/") + "/")

        def opened(what: str, cache: str) -> None:
            os.environ["AVLLM_CACHE"] = f"{scratch}/{cache}"
            column.storage.fs.invalidate_cache()
            started = time.perf_counter()
            with counted_requests() as counts:
                assert len(open_index(column)) == shards * FEW
            said = ", ".join(f"{number} {method}" for method, number in counts.most_common())
            table.add_row(what, f"{counts.total()}: {said}", f"{time.perf_counter() - started:.1f}")

        opened("no index beside it, a new machine", "a")
        opened("the same machine again", "a")
        publish_index(column)
        opened("an index beside it, a new machine", "b")
        opened("the same machine again", "b")
    console.print(table)


if __name__ == "__main__":
    run(app)
