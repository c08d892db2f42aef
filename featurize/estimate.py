"""Estimate the cost of a run by measuring a few items before it starts."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from featurize.encoders import Encoder, Units, build_encoders
from featurize.media import MediaError
from featurize.prepare import decoded
from featurize.settings import FeaturizeConfig
from featurize.shard_job import Batcher
from store import MediaItem, Storage, create_column
from store.console import console, make_table
from store.items import Items


@dataclass(frozen=True)
class ColumnEstimate:
    """What one column costs for an average item of the sample.

    Attributes:
        name: `<encoder>.<digest>`.
        usable: share of the items that the column will hold.
        seconds: of encoding in one worker, without decoding.
        bytes: written to the tars.
        failed: keys of the sampled items that failed (absent streams do not count).
    """

    name: str
    usable: float
    seconds: float
    bytes: float
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Estimate:
    """What a run costs for an average item.

    Attributes:
        sampled: how many items were measured.
        load_seconds: of building the encoders, once per worker; not part of `seconds`.
        decode_seconds: of decoding once for all columns, in one worker.
        decode_core_seconds: the same in CPU time, summed over the cores.
        columns: what each column costs.
        overlap: whether decoding and encoding run side by side (on a GPU) or share the cores.
    """

    sampled: int
    load_seconds: float
    decode_seconds: float
    decode_core_seconds: float
    columns: tuple[ColumnEstimate, ...]
    overlap: bool

    @property
    def encode_seconds(self) -> float:
        """Seconds to encode an item into all columns."""
        return sum(column.seconds for column in self.columns)

    @property
    def seconds(self) -> float:
        """Seconds to decode and encode an item in one worker."""
        both = self.encode_seconds, self.decode_seconds
        return max(both) if self.overlap else sum(both)

    def bound(self, cores: float) -> str:
        """The bottleneck, decoding or encoding, and how many cores decode as fast as a GPU encodes.

        Args:
            cores: CPU cores per GPU in the configuration.
        """
        slower = "decoding" if self.decode_seconds > self.encode_seconds else "encoding"
        if not self.overlap:
            share = self.decode_seconds / max(self.seconds, 1e-9)
            return f"{slower} bounds this node: they share its cores, decoding takes {share:.0%} of the time"
        needed = self.decode_core_seconds / max(self.encode_seconds, 1e-9)
        return f"{slower} bounds this node: a GPU needs {needed:.1f} cores for decoding, here it has {cores:g}"

    @property
    def failed(self) -> int:
        """Number of sampled items that failed in some column."""
        return len(frozenset[str]().union(*(column.failed for column in self.columns)))


def choose(items: Items, count: int) -> list[MediaItem]:
    """`count` items at even quantiles of file size, among the files that can be seen."""
    seen = items.where(lambda rows: pc.greater(rows.column("bytes").fill_null(0), 0))
    by_size = np.argsort(np.concatenate([rows.column("bytes").to_numpy() for rows in seen.batches()]), kind="stable")
    count = min(count, len(seen))
    return [seen[by_size.item((2 * i + 1) * len(seen) // (2 * count))] for i in range(count)]


def measure(items: Items, config: FeaturizeConfig, count: int) -> Estimate:
    """Decode and encode `count` of the items on this machine, as a worker does, and keep nothing.

    Raises:
        UserError: an encoder cannot be loaded.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    encoders = build_encoders(config.columns)
    load_seconds = time.perf_counter() - start
    sample = choose(items, count)
    start, cpu_start = time.perf_counter(), time.process_time()
    prepared = list(decoded(sample, encoders, config.cpus))
    decode_seconds = (time.perf_counter() - start) / max(1, len(sample))
    decode_core_seconds = (time.process_time() - cpu_start) / max(1, len(sample))
    columns = [_column(encoder, [(item, units[n]) for item, units in prepared]) for n, encoder in enumerate(encoders)]
    overlap = any(encoder.device.type != "cpu" for encoder in encoders)
    return Estimate(len(sample), load_seconds, decode_seconds, decode_core_seconds, tuple(columns), overlap)


def _column(encoder: Encoder[Any], prepared: Sequence[tuple[MediaItem, Units | MediaError]]) -> ColumnEstimate:
    rows = [units.rows for _, units in prepared if not isinstance(units, MediaError)]
    if rows:
        encoder.encode_padded(rows[0][: encoder.settings.batch])  # warm-up: the first batch of a process is slow
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        column = create_column(Storage(folder), encoder.spec, {})
        with column.write_shard(0) as writer:
            batcher = Batcher(encoder, writer)
            for item, units in prepared:
                if isinstance(units, MediaError):
                    batcher.fail(item, units)
                else:
                    batcher.push(item, units)
            batcher.flush()
        sidecar = column.sidecar(0)
    seconds = (time.perf_counter() - start) * _share_of_real_rows(encoder, list(map(len, rows)))
    count, written = max(1, len(prepared)), sidecar.tar_bytes if sidecar.keys else 0
    failed = frozenset(failure.key for failure in sidecar.failed if failure.code != "absent")
    return ColumnEstimate(column.name, len(sidecar.keys) / count, seconds / count, written / count, failed)


def _share_of_real_rows(encoder: Encoder[Any], rows: Sequence[int]) -> float:
    """Share of rows that are not padding: one padded batch weighs little in a shard, but much in a sample."""
    total, batch = sum(rows), encoder.settings.batch
    return total / (math.ceil(total / batch) * batch) if total else 1.0


def show(found: Estimate, items: int, shard: int, config: FeaturizeConfig, price: float | None) -> None:
    """Print what `items` items will take.

    Args:
        found: the measured estimate.
        items: number of corpus items whose files can be seen.
        shard: items in the largest shard, the most that a lost worker costs.
        config: of the run.
        price: per worker-hour.
    """
    table = make_table("column", "usable items", "encoding, hours", "GB")
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
        f"from {found.sampled} of {items} items, {found.failed} of them failed, measured here: "
        f"loading the encoders {found.load_seconds:.1f} s in each worker, "
        f"then decoding {found.decode_seconds * items / 3600:.2f} h, all told {hours:.2f} worker-hours{workers}{cost}; "
        f"a lost worker costs at most {found.seconds * shard / 60:.1f} min, a shard of {shard} items"
    )
    console.print(found.bound(config.cpus / (config.gpus or 1)))
