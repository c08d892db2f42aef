"""How time and memory grow with items (100 to 10,000, in shards of one size) and shards (1 to 10,000, of few items).

    TMPDIR=/dev/shm python -m benchmarks.growth growth

Arrays are small, so that the work per item and shard is measured. Each step of each point runs in its own process, so
that its peak memory is its own. A straight line fitted to the points shows how linear the time is. Files are in the
temporary folder; if it is in memory, other users of the disk do not bend the lines.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from store import (
    Candidate,
    ColumnReader,
    ColumnSpec,
    Corpus,
    Feature,
    Order,
    Storage,
    Stream,
    create_column,
    open_column,
    verify_column,
)
from store.console import Meter, console, make_app, run

SHAPE = (4, 16)
PER_SHARD = 100  # items in a shard, as items grow
FEW = 4  # items in a shard, as shards grow
BATCH = 16
NAME = "small"
REPEATS, ENOUGH = 50, 1.0  # a step is repeated at most this often, and for about this many seconds
ITEMS = (100, 300, 1000, 3000, 10000)
SHARDS = (1, 10, 100, 1000, 3000, 10000)
app = make_app("How time and memory grow with items and shards.")


def plan(folder: Path, items: int, per_shard: int) -> None:
    """Plan the corpus and save it."""
    corpus = Corpus()
    corpus.append((Candidate(f"{i}.mp4", f"/{i}.mp4", "video", i) for i in range(items)), per_shard)
    corpus.save(Storage(folder))


def write(folder: Path, items: int, per_shard: int) -> None:
    """Write a tar and a sidecar for each shard."""
    storage = Storage(folder)
    spec = ColumnSpec(
        name=NAME, modality="visual", numerics={}, features={"temporal": Feature(shape=SHAPE, dtype="float16")}
    )
    column = create_column(storage, spec, {})
    for shard, members in Corpus.load(storage).shards.items():
        with column.write_shard(shard) as writer:
            for item in members:
                writer.add(item.key, {"temporal": np.full(SHAPE, item.position, np.float16)}, {})


def open_(folder: Path, items: int, per_shard: int) -> None:
    """Open a reader, which indexes all shards."""
    assert len(ColumnReader(open_column(Storage(folder), NAME))) == items


def epoch(folder: Path, items: int, per_shard: int) -> None:
    """Open the column and stream one shuffled epoch."""
    reader = ColumnReader(open_column(Storage(folder), NAME))
    stream, order = Stream([reader], reader.keys()), Order(items, 0)
    places = ([order[c] for c in range(i, min(i + BATCH, items))] for i in range(0, items, BATCH))
    assert sum(len(stream.__getitems__(batch)) for batch in places) == items


def verify(folder: Path, items: int, per_shard: int) -> None:
    """Compare every byte with its checksum."""
    storage = Storage(folder)
    faults = [checked.fault for checked in verify_column(open_column(storage, NAME), Corpus.load(storage))]
    assert faults == [None] * -(-items // per_shard)


STEPS = {"plan": plan, "write": write, "open": open_, "epoch": epoch, "verify": verify}


@app.command(hidden=True)
def step(name: str, folder: Path, items: int, per_shard: int) -> None:
    """One step of one point, in this process: prints its seconds and its peak of memory as JSON.

    A step of milliseconds is repeated, and the least is said; what writes does so in a new folder each time. All runs
    on one core: how long another takes to wake for a thread is no growth.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as other:  # warm up: the first use of parquet and tar is no growth
        for warm_up in STEPS.values():
            warm_up(Path(other), 1, 1)
        taken = [_timed(name, folder, items, per_shard)]
        while len(taken) < REPEATS and sum(seconds for seconds, _ in taken) < ENOUGH:
            where = Path(other) / str(len(taken)) if name in ("plan", "write") else folder
            if name == "write":
                plan(where, items, per_shard)
            taken.append(_timed(name, where, items, per_shard))
    seconds, cpu = min(taken)
    print(
        json.dumps({"seconds": seconds, "cpu": cpu, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
    )


def _timed(name: str, folder: Path, items: int, per_shard: int) -> tuple[float, float]:
    """Wall and CPU seconds of a step."""
    start = time.perf_counter(), time.process_time()
    STEPS[name](folder, items, per_shard)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(items: int, per_shard: int) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of each step of a point."""
    figures = {}
    folder = Path(tempfile.mkdtemp())
    try:
        for name in STEPS:
            words = [sys.executable, "-m", "benchmarks.growth", "step", name, folder, items, per_shard]
            done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, check=True)
            figures[name] = json.loads(done.stdout)
    finally:
        shutil.rmtree(folder)
    return figures


def best(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """For each step of a point, the least seconds and the largest peak of all rounds."""
    choose = {"seconds": min, "cpu": min, "peak": max}
    return {
        name: {field: pick(figures[name][field] for figures in rounds) for field, pick in choose.items()}
        for name in STEPS
    }


def line(sizes: tuple[int, ...], values: list[float]) -> tuple[float, float, list[float]]:
    """Fit a line by relative error. Returns its start, its slope and each point's relative deviation."""
    x, y = np.array(sizes, float), np.array(values)
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    return float(start), float(slope), ((start + slope * x) / y - 1).tolist()


def report(what: str, sizes: tuple[int, ...], points: list[dict[str, dict[str, float]]]) -> None:
    """Print a table of seconds and peaks for each step, and the line fitted to them."""
    for name in STEPS:
        seconds = [point[name]["seconds"] for point in points]
        start, slope, deviations = line(sizes, seconds)
        table = Table(what, "seconds", "of the processor", f"us a {what[:-1]}", "from the line", "peak MiB")
        for size, point, deviation in zip(sizes, points, deviations, strict=True):
            figures = point[name]
            table.add_row(
                str(size),
                f"{figures['seconds']:.3f}",
                f"{figures['cpu']:.3f}",
                f"{1e6 * figures['seconds'] / size:.0f}",
                f"{deviation:+.1%}",
                f"{figures['peak']:.0f}",
            )
        console.print(f"{name}: {start * 1e3:.1f} ms + {slope * 1e6:.1f} us a {what[:-1]}")
        console.print(table)


@app.command()
def growth(
    rounds: Annotated[int, typer.Option(help="Times each point is run, in turns; the least time counts.")] = 3,
    out: Annotated[Path | None, typer.Option(help="A folder for growth.json and growth.png.")] = None,
) -> None:
    """Print seconds and peak of memory of plan, write, open, an epoch and verify at each size."""
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    points = [(items, PER_SHARD) for items in ITEMS] + [(shards * FEW, FEW) for shards in SHARDS]
    measurements: list[list[dict[str, dict[str, float]]]] = [[] for _ in points]
    with Meter("measuring", rounds * len(points), "points") as meter:
        for number in range(rounds):
            for at in random.Random(number).sample(range(len(points)), len(points)):
                measurements[at].append(measure(*points[at]))
                meter.advance(1, f"{points[at][0]} items")
    bests = list(map(best, measurements))
    by_items, by_shards = bests[: len(ITEMS)], bests[len(ITEMS) :]
    report("items", ITEMS, by_items)
    report("shards", SHARDS, by_shards)
    if out:
        save(out, {"items": (ITEMS, by_items), "shards": (SHARDS, by_shards)})


def save(folder: Path, series: dict[str, Any]) -> None:
    """Save the numbers and a plot of them."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.json").write_text(json.dumps(series, indent=1))
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for row, (what, (sizes, points)) in zip(axes, series.items(), strict=True):
        for axis, field, label in zip(row, ("seconds", "peak"), ("seconds", "peak MiB"), strict=True):
            for name in STEPS:
                axis.plot(sizes, [point[name][field] for point in points], "o-", label=name)
            axis.set(xlabel=what, ylabel=label, ylim=(0, None))
            axis.legend()
    figure.savefig(folder / "growth.png", dpi=150)


if __name__ == "__main__":
    run(app)
