"""The keys and values of answers under way, in one cache that they join and leave at any step.

All rows end at the same position, so the padding is on the left, as the attention masks of `transformers` expect it.
Each layer holds one buffer [slots, heads, capacity, D]; a step writes one position of it and copies nothing.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

SPARE = 128  # positions that a buffer grows by at least


@dataclass
class Window:
    """The part of the buffers that is in use.

    Attributes:
        lengths: positions of each row.
        end: of all rows; row r takes the positions from `end - lengths[r]`.
    """

    lengths: list[int] = field(default_factory=list)
    end: int = 0

    @property
    def longest(self) -> int:
        """Positions of the longest row."""
        return max(self.lengths, default=0)

    @property
    def start(self) -> int:
        """The first position that a row takes."""
        return self.end - self.longest


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values."""

    is_sliding = False

    def __init__(self, window: Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window
        self._buffers: list[torch.Tensor] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the shapes and the dtype of keys and values; there is no room yet."""
        self._buffers = [
            states.new_empty(0, states.shape[1], 0, states.shape[3]) for states in (key_states, value_states)
        ]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a step's keys and values [n, heads, 1, D]; return all of the n rows, as views."""
        rows, start, end = len(self._window.lengths), self._window.start, self._window.end
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, end] = states[:, :, 0]
        keys, values = (buffer[:rows, :, start : end + 1] for buffer in self._buffers)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Positions that a step's queries see, and where they begin."""
        return self._window.longest + query_length, 0

    def get_seq_length(self) -> int:
        """Positions of the longest row."""
        return self._window.longest

    def get_max_length(self) -> int:
        """There is none."""
        return -1

    def write(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write a row's keys and values [heads, length, D], which end where all rows do, and clear what is left of it.

        Masked positions count zero times, but zero times NaN is NaN, so an earlier row's numbers must not stay.
        """
        end = self._window.end
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            start = end - states.shape[1]
            buffer[row, :, start:end] = states
            buffer[row, :, :start] = 0

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        for buffer in self._buffers:
            buffer[target, :, : self._window.end] = buffer[source, :, : self._window.end]

    def resize(self, slots: int, capacity: int, start: int) -> None:
        """Copy the rows into a buffer of a new size, so that they begin at `start`."""
        window = self._window
        for number, old in enumerate(self._buffers):
            new = old.new_zeros(slots, old.shape[1], capacity, old.shape[3])
            rows = old[: len(window.lengths), :, window.start : window.end]
            new[: len(rows), :, start : start + window.longest] = rows
            self._buffers[number] = new


class SlotCache(Cache):
    """A cache of `transformers` whose rows come and go.

    Args:
        layers: of the LLM.
    """

    def __init__(self, layers: int) -> None:
        self.window = Window()
        self._slots = self._capacity = 0
        self._layers = [SlotLayer(self.window) for _ in range(layers)]
        super().__init__(layers=[*self._layers])

    def join(self, prompts: DynamicCache, lengths: list[int]) -> None:
        """Add rows.

        Args:
            prompts: their keys and values, padded on the left.
            lengths: of each row, without padding.
        """
        read: list[Any] = prompts.layers
        for layer, new in zip(self._layers, read, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(new.keys, new.values)
        first = len(self.window.lengths)
        self._make_room(first + len(lengths), max(lengths))
        for layer, new in zip(self._layers, read, strict=True):
            for row, length in enumerate(lengths):
                layer.write(first + row, new.keys[row, :, -length:], new.values[row, :, -length:])
        self.window.lengths += lengths

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last = len(self.window.lengths) - 1
        if row != last:
            for layer in self._layers:
                layer.move(last, row)
            self.window.lengths[row] = self.window.lengths[last]
        self.window.lengths.pop()

    def begin_step(self) -> None:
        """Make sure that there is room for one more position of each row."""
        self._make_room(len(self.window.lengths), 0)

    def end_step(self) -> None:
        """Count the position that a step wrote."""
        self.window.lengths[:] = [length + 1 for length in self.window.lengths]
        self.window.end += 1

    def _make_room(self, rows: int, length: int) -> None:
        """Move the rows, or grow, unless another position and a row of `length` have room."""
        window, longest = self.window, max(self.window.longest, length)
        if rows <= self._slots and window.end >= longest and window.end < self._capacity:
            return
        if rows > self._slots:
            self._slots = rows + rows // 4
        self._capacity = max(self._capacity, longest + max(SPARE, longest // 4))
        for layer in self._layers:
            layer.resize(self._slots, self._capacity, longest - window.longest)
        window.end = longest
