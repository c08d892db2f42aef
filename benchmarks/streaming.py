"""Stream a column of the paper's size into collated batches: ours, the peers, and the ceiling (bare readinto).

    make bench            # in its own environment: some peers pin older versions than the project uses

Each contender is its own process, which runs one epoch on request. Every round runs all of them, in a new order, and
ratios are taken within a round, so that a busy moment hits all alike. Data are in the page cache: this measures
software, not the disk. Worker processes start before the clock and are kept between epochs.
"""

import importlib.metadata
import mmap
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
import xxhash
from rich.table import Table

from benchmarks.peers import BATCH, PEERS, SHARD, Sample, sizes
from benchmarks.s3 import s3_server
from store import (
    Candidate,
    ColumnReader,
    ColumnSpec,
    Conversation,
    Corpus,
    Feature,
    Storage,
    Stream,
    Turn,
    create_column,
    open_column,
    save_conversations,
)
from store.console import Meter, console, make_app, run

if TYPE_CHECKING:
    from trainer.settings import TrainConfig

SHAPES = {"temporal": (32, 1024), "spatial.t32": (256, 1024)}  # ViT-L/14 on 32 frames, float16: 590 kB an item
COLUMN = "clip-vit-l-14"
CEILING, CHECKED = "readinto (ceiling)", "readinto and xxh3"
OURS = ("avllm, first epoch", "avllm, later epochs", "avllm, with its texts", "avllm, DataLoader")
COUNTS = (0, 2)
TALK = "described"
SMOLLM = Path("build/smollm2").absolute()
app = make_app("Stream a column into batches, beside its peers and the raw ceiling.")


def make_samples(count: int) -> list[Sample]:
    """Random features of the paper's shapes."""
    rng = np.random.default_rng(0)
    return [{name: rng.random(shape, np.float32).astype("f2") for name, shape in SHAPES.items()} for _ in range(count)]


def write_column(folder: Path | str, samples: list[Sample]) -> None:
    """Write the samples as a column of ours, with a conversation about each."""
    storage, corpus = Storage(folder), Corpus()
    corpus.append([Candidate(f"{i}.mp4", f"/{i}.mp4", "video") for i in range(len(samples))], SHARD)
    features = {name: Feature(shape=shape, dtype="float16") for name, shape in SHAPES.items()}
    spec = ColumnSpec(name=COLUMN, modality="visual", numerics={"random": True}, features=features)
    column, coming = create_column(storage, spec, {}), iter(samples)
    for shard, members in corpus.shards.items():
        with column.write_shard(shard) as writer:
            for item in members:
                writer.add(item.key, next(coming), {})
    turns = (Turn("What happens in the video?", "visual", "A dog runs over a field and catches a red ball. " * 4),)
    save_conversations(storage, TALK, [Conversation(item.key, item.key, turns) for item in corpus.items])


# Contenders: each returns a function that prepares an epoch, which returns the function that runs it.


def ceiling(folder: Path, threads: int, check: bool) -> Callable[[], Callable[[], int]]:
    """Read the tars' bytes into reused buffers of a batch's size, one for each thread; with `check`, hash them too."""
    tars = sorted((folder / "columns").glob("*/*.tar"))
    size = BATCH * sum(2 * rows * width for rows, width in SHAPES.values())
    buffers = [
        memoryview(mmap.mmap(-1, size)) for _ in range(max(1, threads))
    ]  # page-aligned, which is fastest on an AMD EPYC

    def read(part: int) -> int:
        for tar in tars[part :: len(buffers)]:
            with open(tar, "rb", buffering=0) as file:
                while count := file.readinto(buffers[part]):
                    if check:
                        xxhash.xxh3_64_intdigest(buffers[part][:count])
        return len(tars[part :: len(buffers)]) * SHARD

    pool = ThreadPoolExecutor(len(buffers))
    return lambda: lambda: sum(pool.map(read, range(len(buffers)))) if threads else read(0)


def configuration(store: str) -> "TrainConfig":
    """Settings of one epoch in batches of `BATCH`, each in one pass."""
    from trainer.settings import Source, TrainConfig

    return TrainConfig(
        stage=1,
        model=str(SMOLLM),
        sources=(Source(store=store, conversations=TALK),),
        visual=COLUMN,
        audio=None,
        output="none",
        global_batch=BATCH,
        batch_tokens=BATCH * 512,
        epochs=1,
        lr=1e-3,
    )


def reading(folder: Path, threads: int, again: bool) -> Callable[[], Callable[[], int]]:
    """What the trainer's loader does once a batch's texts are tokenized and laid out: read each item to its place.

    The order is the trainer's, shuffled; memory is used again, and pinned where there is a GPU. A first epoch compares
    every array's checksum; with `again`, the reader is kept, so later epochs do not.
    """
    from transformers import AutoTokenizer

    from trainer.batch import lay_out
    from trainer.data import TrainingData
    from trainer.loader import THREADS, BatchMemory, read_items

    config, tokenizer = configuration(str(folder)), AutoTokenizer.from_pretrained(SMOLLM)
    pool = ThreadPoolExecutor(THREADS) if threads else None
    memory, laid_out = BatchMemory(), list[Any]()

    def epoch() -> Callable[[], int]:
        if not (again and laid_out):
            data = TrainingData(config, tokenizer)
            steps = [data.pending(step, 0, 1) for step in range(data.steps)]
            for _ in range(2):  # the first time, memory is not large enough yet
                laid_out.clear()
                for pending in steps:
                    memory.clear()
                    texts = [(sample.tokens, sample.rows) for sample in pending]
                    _, parts = lay_out(texts, data.rows, config.max_tokens, memory.allocate)
                    laid_out.append((pending, list(enumerate(parts))))
        return lambda: sum(len(pending) - len(read_items(pending, parts, pool)) for pending, parts in laid_out)

    return epoch


def training(folder: Path, threads: int) -> Callable[[], Callable[[], int]]:
    """The trainer's batches from its loader, texts tokenized and packed: what peers leave to the training script."""
    import torch
    from transformers import AutoTokenizer

    from trainer.data import TrainingData
    from trainer.loader import Loader

    config, tokenizer = configuration(str(folder)), AutoTokenizer.from_pretrained(SMOLLM)
    loader = Loader(TrainingData(config, tokenizer), config, 0, 1, torch.device("cpu"), threads=threads > 0)
    return lambda: lambda: sum(len(batch.lengths) for batch in loader.batches(0))


def ours_in_loader(folder: Path, workers: int) -> Callable[[], Callable[[], int]]:
    """Our stream as the dataset of torch's DataLoader, as tensors, which workers share fastest."""
    import torch
    from torch.utils.data import DataLoader

    reader = ColumnReader(open_column(Storage(folder), COLUMN))
    places = [list(range(i, min(i + BATCH, len(reader)))) for i in range(0, len(reader), BATCH)]
    stream: Any = Stream([reader], reader.keys())

    def tensors(batch: Any) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array) for name, array in batch.arrays.items()}

    loader: Any = DataLoader(
        stream,
        batch_sampler=places,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=tensors,
    )
    return lambda: lambda: sum(sizes(loader))


def contender(name: str, count: int, folder: Path) -> Callable[[], Callable[[], int]]:
    """The contender of that name with `count` threads or workers."""
    if name in (CEILING, CHECKED):
        return ceiling(folder / "avllm", count, check=name == CHECKED)
    if name == OURS[2]:
        return training(folder / "avllm", count)
    if name == OURS[3]:
        return ours_in_loader(folder / "avllm", count)
    if name in OURS:
        return reading(folder / "avllm", count, again=name == OURS[1])
    batches = PEERS[name].batches(folder / name, count)
    return lambda: lambda: sum(sizes(batches))


@app.command(hidden=True)
def serve(name: str, count: int, folder: Path) -> None:
    """Run an epoch for each line of input, and print its samples and seconds."""
    prepare = contender(name, count, folder)
    prepare()()
    print("ready", flush=True)
    for _ in sys.stdin:
        epoch = prepare()
        start = time.perf_counter()
        samples = epoch()
        print(samples, time.perf_counter() - start, flush=True)


class Child:
    """A contender's process."""

    def __init__(self, python: str, name: str, count: int, folder: Path) -> None:
        self.name, self.count = name, count
        words = [python, "-m", "benchmarks.streaming", "serve", name, str(count), str(folder)]
        self.log = open(folder / f"{name}-{count}.log", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1
        )

    def wait(self) -> None:
        """Wait until it has run a warm-up epoch."""
        self._expect("ready")

    def _expect(self, word: str) -> str:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if not word or line.strip() == word:
                return line
        self.log.seek(0)
        raise SystemExit(f"{self.name} with {self.count}: it ended\n{self.log.read()[-2000:]}")

    def rate(self, items: int) -> float:
        """Run one epoch. Returns its samples a second."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        samples, seconds = self._expect("").split()
        assert int(samples) == items, (self.name, self.count, samples)
        return items / float(seconds)

    def end(self) -> None:
        """End the process, and wait for it."""
        self.process.communicate()
        self.log.close()


@app.command()
def streaming(
    items: Annotated[int, typer.Option(help="Items of 590 kB, a multiple of 64.")] = 1024,
    rounds: Annotated[int, typer.Option(help="Epochs of each, in turns; each round has an order of its own.")] = 9,
    only: Annotated[list[str] | None, typer.Option(help="Contenders; all if not given.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the data are written, and left; temporary if not given.")
    ] = None,
    python: Annotated[str, typer.Option(help="The project's own environment, in which ours run.")] = sys.executable,
) -> None:
    """Print the median samples a second of each, and the median of its ratio to the ceiling of the same round."""
    names = [name for name in (*OURS, *PEERS) if not only or name in only]
    root = folder or Path(tempfile.mkdtemp())
    children: list[Child] = []
    rates: list[list[float]] = []
    try:
        _make_tokenizer(python)
        _write(root, names, items)
        limits = [(name, count) for name in (CEILING, CHECKED) for count in (0, 2)]
        contenders = [*limits, *((name, count) for name in names for count in COUNTS)]
        with Meter("starting", len(contenders), "contenders") as meter:
            for name, count in contenders:
                children.append(Child(python if name in OURS else sys.executable, name, count, root))
                children[-1].wait()
                meter.advance(1, name)
        with Meter("measuring", rounds, "rounds") as meter:
            for number in range(rounds):
                turns = random.Random(number).sample(range(len(children)), len(children))
                round_rates = {turn: children[turn].rate(items) for turn in turns}
                rates.append([round_rates[turn] for turn in sorted(round_rates)])
                meter.advance(1, "")
    finally:
        for child in children:
            child.end()
        if folder is None:
            shutil.rmtree(root)
    _report(python, contenders, np.array(rates))


@app.command()
def remote(
    items: Annotated[int, typer.Option(help="Items of 590 kB, a multiple of 64.")] = 512,
    rounds: Annotated[int, typer.Option(help="Epochs of each, in turns, with an empty cache.")] = 5,
) -> None:
    """Print items a second of a first epoch from an S3 server's store, and of copying its shards alone, in turns."""
    import torch
    from transformers import AutoTokenizer

    from trainer.data import TrainingData
    from trainer.loader import FETCHERS, Loader

    _make_tokenizer(sys.executable)
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM)
    rates: dict[str, list[float]] = {"copying alone": [], "a first epoch": []}
    with s3_server() as url, Meter("measuring", rounds, "rounds") as meter:
        write_column(url, make_samples(items))
        for _ in range(rounds):
            for name, taken in rates.items():
                with tempfile.TemporaryDirectory(dir="/dev/shm") as cache:
                    os.environ["AVLLM_CACHE"] = cache
                    data = TrainingData(configuration(url), tokenizer)
                    loader = Loader(data, configuration(url), 0, 1, torch.device("cpu"))
                    reader = ColumnReader(open_column(Storage(url), COLUMN))
                    tars = [reader.column.path(f"{shard:06d}.tar") for shard in reader.column.shards()]
                    start = time.perf_counter()
                    if name == "copying alone":
                        with ThreadPoolExecutor(FETCHERS) as pool:
                            places = [Path(cache) / str(number) for number in range(len(tars))]
                            list(pool.map(reader.column.storage.fetch, tars, places))
                    else:
                        assert sum(len(batch.lengths) for batch in loader.batches(0)) == items
                    taken.append(items / (time.perf_counter() - start))
            meter.advance(1, "")
    ratios = [epoch / copied for copied, epoch in zip(*rates.values(), strict=True)]
    for name, taken in rates.items():
        console.print(f"{name}: {statistics.median(taken):.0f} items/s")
    console.print(f"of copying alone: {statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})")


def _make_tokenizer(python: str) -> None:
    """Make SmolLM2's folder, if it does not exist."""
    code = f"from pathlib import Path; from demo.llm import make_llm; make_llm(Path({str(SMOLLM)!r}))"
    subprocess.run([python, "-c", code], check=True)


def _write(root: Path, names: list[str], items: int) -> None:
    """Write every format that does not exist yet."""
    samples = make_samples(items)
    writers = {"avllm": write_column} | {name: PEERS[name].write for name in names if name in PEERS}
    for name, write in writers.items():
        if not (root / name).exists():
            console.print(f"writing {name}")
            (root / name).mkdir(parents=True)
            write(root / name, samples)
            _read_back(root / name)


def _read_back(folder: Path) -> None:
    """Refill the page cache by reading the files: pages left by writing are laid out as the writer cut them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while file.read(1 << 20):
                    pass


def _report(
    python: str, contenders: list[tuple[str, int]], rates: "np.ndarray[tuple[int, int], np.dtype[np.float64]]"
) -> None:
    peers = {PEERS[name].package for name, _ in contenders if name in PEERS}
    packages = ["torch", *sorted(peers)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    code = "from importlib.metadata import version; print(', '.join(f'{n} {version(n)}' for n in ('numpy', 'xxhash')))"
    ours_versions = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    console.print(f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    console.print(f"Python {platform.python_version()}, {versions}; ours: {ours_versions}")
    table = Table("reader", "threads or workers", "samples/s", "of the ceiling", "worst and best round")
    for (name, count), reader_rates in zip(contenders, rates.T, strict=True):
        ratios = reader_rates / rates[:, 0]
        table.add_row(
            name,
            str(count),
            f"{statistics.median(reader_rates):.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{ratios.min():.2f} - {ratios.max():.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    run(app)
