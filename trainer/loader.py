"""A rank's batches: read and packed one step ahead in a thread, and on the device before the step needs them."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from store import DamagedError
from trainer.batch import Allocate, Batch, Parts, fill_passes, lay_out
from trainer.data import TrainingData
from trainer.pool import PendingSample
from trainer.settings import TrainConfig

ALIGNMENT = 64  # bytes; each array in a batch's memory starts at a multiple
SLACK = 1.25  # a batch's memory, when it grows, gets this times the size of the batch that did not fit
THREADS = 2  # that read; disks, and network storage even more, serve several at once faster
FETCHERS = 4  # shards copied to the cache at once
LOOKAHEAD = 32  # steps before its turn at which a shard's copy to the cache starts


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a global batch, packed into passes.

    Attributes:
        passes: of one step, on the device.
        host: the same passes in host memory.
        targets: number of this rank's response tokens.
        lengths: positions of each sample.
    """

    passes: list[Batch]
    host: list[Batch]
    targets: int
    lengths: list[int]

    def split(self, count: int) -> list[Batch]:
        """The passes, that of the most samples halved until there are `count`: all ranks run as many as any rank needs.

        `count` is at most the number of samples.
        """
        passes = list(zip(self.passes, self.host, strict=True))
        while len(passes) < count:
            largest = max(range(len(passes)), key=lambda p: (len(passes[p][1].packing.lengths), p))
            batch, host = passes[largest]
            kept = -(-len(host.packing.lengths) // 2)
            passes[largest], other = zip(batch.split(kept, host), host.split(kept, host), strict=True)
            passes.append(other)
        return [batch for batch, _ in passes]


class BatchMemory:
    """Host memory reused by one batch after another; page-locked if there is a GPU, so that copies run asynchronously.

    An array that does not fit gets memory of its own, for this batch alone; before the next one, the shared one grows.
    """

    def __init__(self) -> None:
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used = 0

    def clear(self) -> None:
        """Start a batch in the memory of the last one, which must no longer be in use."""
        if self._used > len(self._memory):
            memory = torch.empty(int(self._used * SLACK), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            self._memory = memory.numpy()
        self._used = 0

    def allocate(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An uninitialized array of this batch."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        start = self._used
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        if self._used > len(self._memory):
            return np.empty(shape, dtype)
        return self._memory[start : start + size].view(dtype).reshape(shape)


def rank_batch(
    data: TrainingData,
    config: TrainConfig,
    step: int,
    rank: int,
    ranks: int,
    allocate: Allocate = np.empty,
    pool: ThreadPoolExecutor | None = None,
) -> RankBatch:
    """One rank's share of a global batch in host memory, in few passes of at most `batch_tokens` positions.

    The texts decide where each item's rows go before any item is read, so rows are read straight into place.

    Args:
        data: of the run.
        config: of the run.
        step: from 0.
        rank: of this process.
        ranks: W.
        allocate: allocates the batch's arrays.
        pool: of `THREADS` reader threads; without it, the calling thread reads.

    Raises:
        DamagedError: more items are damaged than the run tolerates.
    """
    pending = data.pending(step, rank, ranks)
    while True:
        lengths = [min(len(sample.tokens.ids), config.max_tokens) for sample in pending]
        passes: list[Batch] = []
        destinations: list[tuple[int, Parts]] = []
        for numbers in fill_passes(lengths, config.batch_tokens):
            texts = [(pending[n].tokens, pending[n].rows) for n in numbers]
            batch, parts = lay_out(texts, data.rows, config.max_tokens, allocate)
            passes.append(batch)
            destinations += zip(numbers, parts, strict=True)
        damaged = read_items(pending, destinations, pool)
        if not damaged:
            return RankBatch(passes, passes, sum(len(batch.targets) for batch in passes), lengths)
        for number in sorted(damaged):
            pending[number] = data.replace(pending[number], damaged[number])


def read_items(
    pending: Sequence[PendingSample], destinations: Sequence[tuple[int, Parts]], pool: ThreadPoolExecutor | None
) -> dict[int, DamagedError]:
    """Read the items into place.

    Args:
        pending: the samples.
        destinations: the number of each sample, and where its item's rows go.
        pool: of `THREADS` that read; without one, this thread does.

    Returns:
        The errors of damaged items, by the samples' numbers.
    """
    damaged: dict[int, DamagedError] = {}

    def read(chunk: Sequence[tuple[int, Parts]]) -> None:
        for number, parts in chunk:
            try:
                pending[number].read_features_into(parts)
            except DamagedError as error:
                damaged[number] = error

    if pool is None:
        read(destinations)
        return damaged
    share = -(-len(destinations) // THREADS)
    futures = [pool.submit(read, destinations[first : first + share]) for first in range(0, len(destinations), share)]
    wait(futures)  # for all: no thread may still write to the memory once this raises
    for future in futures:
        future.result()
    return damaged


class Loader:
    """The batches of a run for one rank.

    While a step trains, a thread makes the next step's batch in one of two alternating memories, and more threads read
    its items. For a GPU, the thread then copies the batch on a stream of its own, so each step finds its batch on the
    device. Shards of a remote store are copied to the cache ahead of their turn.

    Args:
        data: of the run.
        config: of the run.
        rank: of this process.
        ranks: W.
        device: where the model lies.
        threads: whether `THREADS` more threads read the items, instead of the one that makes the batch.
    """

    def __init__(
        self,
        data: TrainingData,
        config: TrainConfig,
        rank: int,
        ranks: int,
        device: torch.device,
        *,
        threads: bool = True,
    ) -> None:
        self._data, self._config, self._device = data, config, device
        self._rank, self._ranks, self._threads = rank, ranks, threads
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._memories = BatchMemory(), BatchMemory()

    def batches(self, first: int) -> Generator[RankBatch, None, None]:
        """The batches of all steps from `first` on, in order; each is valid until the next one is requested.

        Raises:
            DamagedError: more items are damaged than the run tolerates.
        """
        steps = range(first, self._data.steps)
        with ExitStack() as stack:
            maker, fetchers = (stack.enter_context(ThreadPoolExecutor(n)) for n in (1, FETCHERS))
            readers = stack.enter_context(ThreadPoolExecutor(THREADS)) if self._threads else None
            stack.callback(fetchers.shutdown, cancel_futures=True)
            for step in steps[:LOOKAHEAD]:
                self._fetch(step, fetchers)
            coming = [maker.submit(self._make, step, readers) for step in steps[:1]]
            for step in steps:
                ready = coming.pop().result()
                if step + 1 in steps:
                    coming.append(maker.submit(self._make, step + 1, readers))
                if step + LOOKAHEAD in steps:
                    self._fetch(step + LOOKAHEAD, fetchers)
                self._hold(ready)
                yield ready

    def _make(self, step: int, readers: ThreadPoolExecutor | None) -> RankBatch:
        memory = self._memories[step % 2]
        memory.clear()
        made = rank_batch(self._data, self._config, step, self._rank, self._ranks, memory.allocate, readers)
        if self._copies is None:
            return made
        with torch.cuda.stream(self._copies):
            passes = [batch.to(self._device) for batch in made.host]
        self._copies.synchronize()
        return replace(made, passes=passes)

    def _fetch(self, step: int, fetchers: ThreadPoolExecutor) -> None:
        """Start copying a step's shards to the cache; a failure here is ignored, and raised when the shard is read."""
        for reader, shard in self._data.remote_shards(step, self._rank, self._ranks):
            fetchers.submit(reader.open, shard)

    def _hold(self, ready: RankBatch) -> None:
        """Keep the copy stream from reusing a batch's device memory before the steps that use it are done."""
        if self._copies:
            for tensor in (tensor for batch in ready.passes for tensor in batch.tensors()):
                tensor.record_stream(torch.cuda.current_stream(self._device))
