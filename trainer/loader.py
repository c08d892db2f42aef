"""A rank's batches, read and packed in a thread one step ahead, and copied to the device before they are asked for."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from store import DamagedError
from trainer.batch import Allocate, Batch, Parts, lay_out, share_out
from trainer.data import PendingSample, TrainingData
from trainer.settings import TrainConfig

ALIGNMENT = 64  # bytes, of an array in a batch's memory
SLACK = 1.25  # a batch's memory grows to the largest so far and this much more
THREADS = 2  # that read; a disk, and more so a network's, gives more to several
FETCHERS = 4  # shards that are copied to the cache at once
LOOKAHEAD = 32  # steps before its turn that a shard begins to be copied to the cache


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a global batch, packed into passes.

    Attributes:
        passes: of one step, on the device.
        host: the same in host memory.
        tokens: response tokens.
        lengths: positions of each sample.
    """

    passes: list[Batch]
    host: list[Batch]
    tokens: int
    lengths: list[int]

    def split(self, count: int) -> list[Batch]:
        """Its passes, the fullest halved until there are `count`, as another rank needs; no more than samples."""
        passes = list(zip(self.passes, self.host, strict=True))
        while len(passes) < count:
            fullest = max(range(len(passes)), key=lambda p: (len(passes[p][1].packing.lengths), p))
            batch, host = passes[fullest]
            kept = -(-len(host.packing.lengths) // 2)
            passes[fullest], other = zip(batch.split(kept, host), host.split(kept, host), strict=True)
            passes.append(other)
        return [batch for batch, _ in passes]


class BatchMemory:
    """Host memory for one batch after another; page-locked where there is a GPU, which then copies at its own pace.

    It is as large as the largest batch before; what does not fit gets memory of its own this once.
    """

    def __init__(self) -> None:
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used = 0

    def clear(self) -> None:
        """Begin a batch in the memory of the last one, which nobody must need any more."""
        if self._used > len(self._memory):
            memory = torch.empty(int(self._used * SLACK), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            self._memory = memory.numpy()
        self._used = 0

    def allocate(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array of this batch, its values left as they are."""
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
    """One rank's share of a global batch in host memory, in as few passes as `batch_tokens` allows.

    The texts say where each item's rows go before any is read, so that they are read straight to their place.

    Args:
        data: of the run.
        config: of the run.
        step: from 0.
        rank: of this process.
        ranks: W.
        allocate: gives the memory.
        pool: of `THREADS` that read; without one, this thread does.

    Raises:
        DamagedError: more items are damaged than the run tolerates.
    """
    pending = data.pending(step, rank, ranks)
    while True:
        lengths = [min(len(each.tokens.ids), config.max_tokens) for each in pending]
        passes: list[Batch] = []
        wanted: list[tuple[int, Parts]] = []
        for numbers in share_out(lengths, config.batch_tokens):
            texts = [(pending[n].tokens, pending[n].rows) for n in numbers]
            batch, parts = lay_out(texts, data.rows, config.max_tokens, allocate)
            passes.append(batch)
            wanted += zip(numbers, parts, strict=True)
        damaged = _read(pending, wanted, pool)
        if not damaged:
            return RankBatch(passes, passes, sum(len(batch.targets) for batch in passes), lengths)
        for number in sorted(damaged):
            pending[number] = data.replace(pending[number], damaged[number])


def _read(
    pending: Sequence[PendingSample], wanted: Sequence[tuple[int, Parts]], pool: ThreadPoolExecutor | None
) -> dict[int, DamagedError]:
    """Read the items; those that are damaged, by their number in `pending`."""
    damaged: dict[int, DamagedError] = {}

    def read(some: Sequence[tuple[int, Parts]]) -> None:
        for number, parts in some:
            try:
                pending[number].read_into(parts)
            except DamagedError as error:
                damaged[number] = error

    if pool is None:
        read(wanted)
        return damaged
    share = -(-len(wanted) // THREADS)
    futures = [pool.submit(read, wanted[first : first + share]) for first in range(0, len(wanted), share)]
    wait(futures)  # all: memory must not be written to once this has raised
    for future in futures:
        future.result()
    return damaged


class Loader:
    """The batches of a run for one rank.

    A thread makes the next step's batch while this one is trained on, in one of two memories that are used again, and
    more threads read its items. For a GPU it copies from there on a stream of its own, so each step finds its batch
    on the device. Shards of a store elsewhere are copied to the cache ahead of their turn.

    Args:
        data: of the run.
        config: of the run.
        rank: of this process.
        ranks: W.
        device: where the model lies.
        threads: whether items are read by threads of their own.
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
        """The batches of all steps from `first` on, in order; each is valid until the next one is asked for.

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
        """Begin to copy the shards of a step; one that fails is met again, and told of, when it is read."""
        for reader, shard in self._data.remote_shards(step, self._rank, self._ranks):
            fetchers.submit(reader.open, shard)

    def _hold(self, ready: RankBatch) -> None:
        """Keep a batch's device memory from the stream of copies until the steps that use it are done."""
        if self._copies:
            for tensor in (tensor for batch in ready.passes for tensor in batch.tensors()):
                tensor.record_stream(torch.cuda.current_stream(self._device))
