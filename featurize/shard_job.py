"""Encode one shard into every column that lacks it, decoding each item once."""

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from featurize.encoders import Encoder, Units
from featurize.media import MediaError
from featurize.pending import ShardReport
from featurize.prepare import decoded
from store import Arrays, Column, Failure, MediaItem


class Results(Protocol):
    """What takes the items of a `Batcher`, such as a `ShardWriter`."""

    def add(self, key: str, arrays: Arrays, facts: Mapping[str, JsonValue]) -> None:
        """Take an item's arrays, and its facts."""

    def fail(self, failure: Failure) -> None:
        """Take the reason for which an item failed."""


class Batcher:
    """Cut the rows of consecutive items into batches of equal size, across item boundaries.

    Batches take items in order, and the last one is padded to full size (`encode_padded`), so a row's result depends on
    that row alone.
    """

    def __init__(self, encoder: Encoder[Any], writer: Results) -> None:
        self.failures: list[Failure] = []
        self._encoder, self._writer = encoder, writer
        self._rows: deque[NDArray[Any]] = deque()
        self._items: deque[tuple[MediaItem, Units]] = deque()
        self._encoded: list[Any] = []
        self._waiting = 0

    def push(self, item: MediaItem, units: Units) -> None:
        """Add an item; encode every full batch and write the items that are complete."""
        self._items.append((item, units))
        self._rows.append(units.rows)
        self._waiting += len(units.rows)
        while self._waiting >= self._encoder.settings.batch:
            self._encode(self._encoder.settings.batch)

    def fail(self, item: MediaItem, error: MediaError) -> None:
        """Record an item as failed; the column will not hold it."""
        failure = Failure(key=item.key, code=error.code, reason=error.reason)
        self.failures.append(failure)
        self._writer.fail(failure)

    def flush(self) -> None:
        """Encode and write what is left."""
        if self._waiting:
            self._encode(self._waiting)
        self._write_complete()
        assert not self._items

    def _encode(self, size: int) -> None:
        batch: list[NDArray[Any]] = []
        missing = size
        while missing:
            rows = self._rows.popleft()
            if len(rows) > missing:
                self._rows.appendleft(rows[missing:])
                rows = rows[:missing]
            batch.append(rows)
            missing -= len(rows)
        self._waiting -= size
        encoded = self._encoder.encode_padded(batch[0] if len(batch) == 1 else np.concatenate(batch))
        with self._encoder.transfers.results_of_earlier_batches():  # meanwhile the GPU works on this batch
            self._write_complete()
        self._encoded.extend(encoded)

    def _write_complete(self) -> None:
        while self._items and len(self._encoded) >= len(self._items[0][1].rows):
            item, units = self._items.popleft()
            count = len(units.rows)
            rows, self._encoded = self._encoded[:count], self._encoded[count:]
            try:
                arrays = self._encoder.collect(rows, units.index)
            except MediaError as error:
                self.fail(item, error)
            else:
                self._writer.add(item.key, arrays, {"kind": item.kind, **units.facts})


def encode_shard(
    items: Sequence[MediaItem],
    encoders: Sequence[Encoder[Any]],
    columns: Sequence[Column],
    threads: int,
    careful: bool = False,
) -> ShardReport:
    """Encode the items of one shard and publish the shard in each column.

    `threads` threads decode ahead of the encoders. With `careful`, set after a shard has lost two workers, a child
    process decodes the items one by one, and one that crashes it, hangs or takes too much memory is recorded as failed.
    """
    shard = items[0].shard
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(column.write_shard(shard)) for column in columns]
        batchers = [Batcher(encoder, writer) for encoder, writer in zip(encoders, writers, strict=True)]
        for item, prepared in decoded(items, encoders, threads, careful):
            for batcher, units in zip(batchers, prepared, strict=True):
                if isinstance(units, MediaError):
                    batcher.fail(item, units)
                else:
                    batcher.push(item, units)
        for batcher in batchers:
            batcher.flush()
    failures = {column.name: batcher.failures for column, batcher in zip(columns, batchers, strict=True)}
    return ShardReport(shard, len(items), failures)
