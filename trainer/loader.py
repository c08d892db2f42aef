"""A rank's batches, made in a thread one step ahead and copied to the device before they are asked for."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from trainer.batch import Allocate, Batch, Sample, pack, share_out
from trainer.data import TrainingData
from trainer.settings import TrainConfig

ALIGNMENT = 64  # bytes, of an array in pinned memory
SLACK = 1.25  # pinned memory grows to the largest batch so far and this much more


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a global batch, packed into passes.

    Attributes:
        samples: of the share.
        passes: of one step.
        tokens: response tokens.
        lengths: positions of each sample.
    """

    samples: list[Sample]
    passes: list[Batch]
    tokens: int
    lengths: list[int]


def rank_batch(data: TrainingData, config: TrainConfig, step: int, rank: int, ranks: int) -> RankBatch:
    """One rank's share of a global batch in new host memory, in as few passes as `batch_tokens` allows."""
    return pack_passes(data.samples(step, rank, ranks), data.widths, config)


def pack_passes(
    samples: list[Sample],
    widths: dict[str, int],
    config: TrainConfig,
    at_least: int = 1,
    allocate: Allocate = np.empty,
) -> RankBatch:
    """Pack samples into passes of at most `batch_tokens` rows.

    Args:
        samples: of a rank's share.
        widths: the D of each feature.
        config: of the run.
        at_least: passes, if there are as many samples; another rank may need more than this one.
        allocate: gives the memory of the passes.
    """
    lengths = [min(len(s.tokens.ids), config.max_tokens) for s in samples]
    shares = share_out(lengths, config.batch_tokens, at_least)
    passes = [pack([samples[i] for i in numbers], widths, config.max_tokens, allocate) for numbers in shares]
    return RankBatch(samples, passes, sum(len(b.targets) for b in passes), lengths)


class PinnedMemory:
    """Page-locked host memory for one batch after another, which a GPU copies from without holding up the host.

    It is as large as the largest batch before; what does not fit gets ordinary memory this once.
    """

    def __init__(self) -> None:
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used = 0

    def clear(self) -> None:
        """Begin a batch in the memory of the last one, which must have been copied."""
        if self._used > len(self._memory):
            pinned = torch.empty(int(self._used * SLACK), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            self._memory = pinned.numpy()
        self._used = 0

    def allocate(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array of this batch, its values left as they are."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        start = self._used
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        if self._used > len(self._memory):
            return np.empty(shape, dtype)
        return self._memory[start : start + size].view(dtype).reshape(shape)


class Loader:
    """The batches of a run for one rank.

    A thread reads, tokenizes and packs the next step's batch while this one is trained on. For a GPU it packs into
    reused pinned memory and copies from there on its own stream, so each step finds its batch on the device.

    Args:
        data: of the run.
        config: of the run.
        rank: of this process.
        ranks: W.
        device: where the model lies.
    """

    def __init__(self, data: TrainingData, config: TrainConfig, rank: int, ranks: int, device: torch.device) -> None:
        self._data, self._config, self._device = data, config, device
        self._rank, self._ranks = rank, ranks
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._memory = PinnedMemory()

    def batches(self, first: int) -> Generator[RankBatch, None, None]:
        """The batches of all steps from `first` on, in order."""
        steps = range(first, self._data.steps)
        with ThreadPoolExecutor(1) as pool:
            coming = [pool.submit(self._make, step) for step in steps[:1]]
            for step in steps:
                ready = coming.pop().result()
                if step + 1 in steps:
                    coming.append(pool.submit(self._make, step + 1))
                self._hold(ready)
                yield ready

    def repack(self, ready: RankBatch, passes: int) -> list[Batch]:
        """A batch's samples in as many passes as another rank needs."""
        packed = pack_passes(ready.samples, self._data.widths, self._config, passes).passes
        return [batch.to(self._device) for batch in packed]

    def _make(self, step: int) -> RankBatch:
        if self._copies is None:
            return rank_batch(self._data, self._config, step, self._rank, self._ranks)
        samples = self._data.samples(step, self._rank, self._ranks)
        self._memory.clear()
        packed = pack_passes(samples, self._data.widths, self._config, allocate=self._memory.allocate)
        with torch.cuda.stream(self._copies):
            passes = [batch.to(self._device) for batch in packed.passes]
        self._copies.synchronize()
        return replace(packed, passes=passes)

    def _hold(self, ready: RankBatch) -> None:
        """Keep a batch's device memory from the stream of copies until the steps that use it are done."""
        if self._copies:
            for tensor in (tensor for batch in ready.passes for tensor in batch.tensors()):
                tensor.record_stream(torch.cuda.current_stream(self._device))
