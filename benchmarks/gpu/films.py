"""Whole shards of films, featurized as a worker does: how much of the encoder's own speed remains."""

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks.gpu.report import Report, median_ratio, race
from featurize.encoders import Encoder, build_encoder
from featurize.estimate import measure as estimate
from featurize.prepare import decoded
from featurize.settings import ClipSettings, FeaturizeConfig
from featurize.shard_job import encode_shard
from store import MediaItem, Storage, create_column
from store.items import Items

WIDTH, HEIGHT, RATE, SECONDS = 320, 240, 30, 4
FILES, FILMS = 16, 128  # files on disk; items of a shard, over the same files
SHARE = 0.9  # target share of the encoder's own speed, with the most threads


def write_film(path: Path, seed: int, seconds: float) -> None:
    """Write an H.264 film of moving shapes, with a key frame each second."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "g": str(RATE)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(int(seconds * RATE)):
            picture = np.roll(ground, (number, 2 * number), (0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def encode(items: Sequence[MediaItem], encoder: Encoder[Any], threads: int) -> None:
    """Featurize a shard as a worker of `featurize run` does."""
    with tempfile.TemporaryDirectory() as folder:
        column = create_column(Storage(folder), encoder.spec, {})
        report = encode_shard(items, [encoder], [column], threads)
        assert not report.failures[column.name], report.failures


def measure(report: Report) -> None:
    """Measure films a second with 1, 4 and 8 decoding threads, against the encoder alone on decoded frames."""
    if report.tiny:
        settings = ClipSettings(encoder="clip:ViT-S-32/random", layer=1, frames=(2,), batch=4)
        files, films, threads, seconds, rounds = 2, 4, [1, 2], 0.5, 1
    else:
        settings = ClipSettings(encoder="clip:ViT-L-14/random", frames=(32,), dtype="float16", batch=256)
        files, films, threads, seconds, rounds = FILES, FILMS, [1, 4, 8], SECONDS, 3
    encoder = build_encoder(settings)
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / f"{number}.mp4" for number in range(files)]
        for number, path in enumerate(paths):
            write_film(path, number, seconds)
        items = [
            MediaItem(f"film-{n}", str(paths[n % files]), "video", 0, n, paths[n % files].stat().st_size)
            for n in range(films)
        ]
        frames = [units.rows for _, (units,) in decoded(items[:files], [encoder], os.cpu_count() or 1)]  # type: ignore[union-attr]
        rows = np.concatenate([frames[n % files] for n in range(films)])
        batches = np.array_split(rows, range(settings.batch, len(rows), settings.batch))

        def alone() -> None:
            for batch in batches:
                encoder.encode_padded(batch)

        contenders = {f"{count} threads": (lambda count=count: encode(items, encoder, count)) for count in threads}
        taken = race({"encoder alone": alone, **contenders}, report.device, rounds)
        rate = films / statistics.median(taken["encoder alone"])
        report.measured("encoder alone, frames decoded already: films/s", f"{rate:.1f}")
        for count in threads:
            ratio = median_ratio(taken["encoder alone"], taken[f"{count} threads"])
            is_target = count == threads[-1]
            report.measured(
                f"decoded and encoded with {count} threads: films/s, share of the encoder alone",
                f"{films / statistics.median(taken[f'{count} threads']):.1f}, {ratio:.2f}",
                f">= {SHARE}" if is_target else "",
                ratio >= SHARE if is_target else None,
            )
        config = FeaturizeConfig(columns=(settings,), cpus=threads[-1], gpus=float(torch.cuda.is_available()))
        forecast = estimate(Items.of(items), config, min(films, 32))
        report.measured("featurize estimate says", forecast.bound(config.cpus / (config.gpus or 1)))
