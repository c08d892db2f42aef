"""What a run will cost, measured on a few items before anything big starts."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table

from featurize.decode import decoded
from featurize.encoders import Encoder, Units, build_encoder
from featurize.media import MediaError
from featurize.settings import FeaturizeConfig
from featurize.shard_job import Batcher
from store import MediaItem, Storage, create_column
from store.console import console


@dataclass(frozen=True)
class ColumnEstimate:
    """What one column takes of an average item of the sample.

    Attributes:
        name: `<encoder>.<digest>`.
        usable: share of the items that the column will hold.
        seconds: of encoding, in one worker, without decoding.
        bytes: in the tars.
    """

    name: str
    usable: float
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Estimate:
    """What a run takes of an average item.

    Attributes:
        sampled: how many items were measured.
        decode_seconds: of decoding once for all columns, in one worker.
        columns: what each column takes.
        overlap: whether decoding and encoding run side by side (on a GPU) or share the cores.
    """

    sampled: int
    decode_seconds: float
    columns: tuple[ColumnEstimate, ...]
    overlap: bool

    @property
    def seconds(self) -> float:
        """Of an item in one worker, all told."""
        encode = sum(column.seconds for column in self.columns)
        return max(encode, self.decode_seconds) if self.overlap else encode + self.decode_seconds


def choose(items: Sequence[MediaItem], count: int) -> list[MediaItem]:
    """`count` items spread evenly over the sizes of the files that can be seen: small and large in their shares."""
    seen = sorted((item for item in items if item.bytes), key=lambda item: (item.bytes, item.key))
    count = min(count, len(seen))
    return [seen[(2 * i + 1) * len(seen) // (2 * count)] for i in range(count)]


def estimate(items: Sequence[MediaItem], config: FeaturizeConfig, count: int) -> Estimate:
    """Decode and encode `count` of the items on this machine, as a worker does, and keep nothing.

    Raises:
        UserError: an encoder cannot be had.
    """
    torch.set_num_threads(config.cpus)
    encoders = [build_encoder(settings) for settings in config.columns]
    sample = choose(items, count)
    began = time.perf_counter()
    prepared = list(decoded(sample, encoders, config.cpus))
    decode_seconds = (time.perf_counter() - began) / max(1, len(sample))
    columns = [_column(encoder, [(item, units[n]) for item, units in prepared]) for n, encoder in enumerate(encoders)]
    return Estimate(len(sample), decode_seconds, tuple(columns), any(e.device.type != "cpu" for e in encoders))


def _column(encoder: Encoder[Any], prepared: Sequence[tuple[MediaItem, Units | MediaError]]) -> ColumnEstimate:
    usable = [(item, units) for item, units in prepared if not isinstance(units, MediaError)]
    if usable:
        encoder.encode(usable[0][1].rows[: encoder.settings.batch])  # the first batch of a process is slow
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        column = create_column(Storage(folder), encoder.spec, {})
        with column.write_shard(0) as writer:
            batcher = Batcher(encoder, writer)
            for item, units in usable:
                batcher.push(item, units)
            batcher.flush()
        written = column.sidecar(0).tar_bytes if usable else 0
    seconds = (time.perf_counter() - began) * _share_of_real_rows(encoder, [len(units.rows) for _, units in usable])
    count = max(1, len(prepared))
    return ColumnEstimate(column.name, len(usable) / count, seconds / count, written / count)


def _share_of_real_rows(encoder: Encoder[Any], rows: Sequence[int]) -> float:
    """The last batch is filled up; a shard of a run has many before it, a sample has not."""
    total, batch = sum(rows), encoder.settings.batch
    return total / (math.ceil(total / batch) * batch) if total else 1.0


def show(found: Estimate, items: int, shard: int, config: FeaturizeConfig, price: float | None) -> None:
    """Print what `items` items will take.

    Args:
        found: what was measured.
        items: of the corpus, those that can be seen.
        shard: items of the largest shard: what is lost with a worker.
        config: of the run.
        price: of a worker for an hour.
    """
    table = Table("column", "usable items", "encoding, hours", "GB")
    for column in found.columns:
        table.add_row(
            column.name,
            f"{column.usable * items:.0f}",
            f"{column.seconds * items / 3600:.2f}",
            f"{column.bytes * items / 1e9:.3f}",
        )
    console.print(table)
    hours = found.seconds * items / 3600
    workers = f", {hours / config.workers:.2f} h with {config.workers} workers" if config.workers else ""
    cost = f", cost {hours * price:.2f}" if price is not None else ""
    console.print(
        f"from {found.sampled} of {items} items, measured here: decoding {found.decode_seconds * items / 3600:.2f} h, "
        f"all told {hours:.2f} worker-hours{workers}{cost}; "
        f"a lost worker costs at most {found.seconds * shard / 60:.1f} min, a shard of {shard} items"
    )
