"""Keep a GPU busy: copy rows to it and fetch results from it while it works on another batch."""

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

new_event: Callable[[], torch.cuda.Event] = torch.cuda.Event
BUFFERS = 2  # of pinned memory: one is filled while the other is copied


class Transfers:
    """Copies to and from the device of an encoder: the first GPU of this process, else the CPU, which needs no copies.

    Work is launched on the current stream. A second stream copies rows to the GPU from reused pinned memory, so no copy
    waits for the batch before it. A third reduces and fetches results of earlier batches while the newest is encoded.

    Attributes:
        device: the torch device.
    """

    def __init__(self) -> None:
        self._gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self._gpu else "cpu")
        if self._gpu:
            # spectrograms are convolutions, which torch by default rounds to TensorFloat-32's 10 bits
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.deterministic = True  # else a column's bytes could differ from run to run
            new_stream: Callable[[], torch.cuda.Stream] = torch.cuda.Stream
            self._copies, self._results = new_stream(), new_stream()
            self._earlier = new_event()
            self._pinned: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def upload(self, rows: NDArray[Any]) -> torch.Tensor:
        """A copy of rows on the device, for work on the current stream."""
        if not self._gpu:
            return torch.from_numpy(np.ascontiguousarray(rows))
        memory, copied = self._buffer(rows.nbytes)
        host = memory[: rows.nbytes].numpy().view(rows.dtype).reshape(rows.shape)
        np.copyto(host, rows)
        current = torch.cuda.current_stream()
        with torch.cuda.stream(self._copies):
            on_device = torch.from_numpy(host).to(self.device, non_blocking=True)
            copied.record()
        current.wait_event(copied)
        on_device.record_stream(current)
        self._pinned.append((memory, copied))
        return on_device

    def _buffer(self, size: int) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Pinned memory of at least `size` bytes whose last copy is done."""
        if len(self._pinned) < BUFFERS:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True), new_event()
        memory, copied = self._pinned.popleft()
        copied.synchronize()
        if len(memory) < size:
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return memory, copied

    def begin_batch(self) -> None:
        """Mark all work launched so far as that of earlier batches."""
        if self._gpu:
            self._earlier.record()

    def results_of_earlier_batches(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, work waits for what was launched before `begin_batch`, not after it."""
        if not self._gpu:
            return contextlib.nullcontext()
        self._results.wait_event(self._earlier)
        return torch.cuda.stream(self._results)
