"""Packing: the conversations of a batch in one row, end to end, with no padding and no attention across them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from store import Arrays, Modality
from trainer.attention import Packing
from trainer.features import FEATURES, PERCEIVES
from trainer.prompt import ROW, Tokens

Allocate = Callable[..., NDArray[Any]]  # of a shape and a dtype, as `np.empty`


@dataclass(frozen=True)
class Sample:
    """A conversation in tokens with its item's arrays, what it perceives, and where it comes from for messages."""

    tokens: Tokens
    arrays: Arrays
    modality: Modality
    origin: str


@dataclass(frozen=True)
class Batch:
    """A packed batch of B conversations, S positions in all, R rows of a feature, M response tokens.

    Attributes:
        ids: int64 [S]; 0 where a row of features stands.
        positions: int64 [S], from 0 in each conversation.
        packing: where each conversation begins and ends.
        rows: for each feature, its rows [R, D], as stored.
        rows_at: for each feature, the positions of its rows, int64 [R].
        targets: the response tokens, int64 [M].
        targets_at: the position that predicts each of them, int64 [M].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    packing: Packing
    rows: dict[str, torch.Tensor]
    rows_at: dict[str, torch.Tensor]
    targets: torch.Tensor
    targets_at: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """A copy on a device; from pinned memory it may still be under way on the current stream."""
        return replace(self, **{f.name: _to(getattr(self, f.name), device) for f in fields(self)})

    def tensors(self) -> Iterator[torch.Tensor]:
        """All its tensors."""
        yield from (self.ids, self.positions, self.packing.bounds, self.targets, self.targets_at)
        yield from (*self.rows.values(), *self.rows_at.values())


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _to(inner, device) for name, inner in value.items()}
    return value.to(device, non_blocking=True)


def share_out(lengths: Sequence[int], budget: int, at_least: int = 1) -> list[list[int]]:
    """Share out samples over passes of at most `budget` rows: the longest first, each where it leaves least room.

    Args:
        lengths: rows of each sample, none above `budget`.
        budget: rows of a pass.
        at_least: passes, where there are as many samples: every rank has to take part in as many as any other.

    Returns:
        The numbers of each pass's samples, ascending: few passes, hardly any room left in them.
    """
    passes: list[list[int]] = []
    rooms: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        fits = [p for p, room in enumerate(rooms) if room >= lengths[number]]
        chosen = min(fits, key=lambda p: (rooms[p], p), default=len(passes))
        if chosen == len(passes):
            passes.append([])
            rooms.append(budget)
        passes[chosen].append(number)
        rooms[chosen] -= lengths[number]
    while len(passes) < at_least:
        fullest = max(passes, key=lambda p: (len(p), p))
        passes.append([fullest.pop() for _ in range(len(fullest) // 2)])
    return [sorted(numbers) for numbers in passes]


def pack(samples: Sequence[Sample], widths: dict[str, int], max_tokens: int, allocate: Allocate = np.empty) -> Batch:
    """Pack conversations end to end.

    Args:
        samples: conversations, each cut after `max_tokens` positions.
        widths: the D of the features that a run has.
        max_tokens: positions of a conversation.
        allocate: gives the memory of the batch's tensors, by shape and dtype.
    """
    cut = [min(len(sample.tokens.ids), max_tokens) for sample in samples]
    starts = np.concatenate([[0], np.cumsum(cut)])
    ids = np.concatenate([np.asarray(s.tokens.ids[:n], np.int64) for s, n in zip(samples, cut, strict=True)])
    answers = np.concatenate([np.asarray(s.tokens.answers[:n], bool) for s, n in zip(samples, cut, strict=True)])
    targets_at = np.flatnonzero(answers) - 1
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in widths}
    rows_at: dict[str, list[NDArray[np.int64]]] = {name: [] for name in widths}
    for sample, start, end in zip(samples, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        for modality, first in sample.tokens.media:
            at = start + first
            for name in FEATURES:
                if name in PERCEIVES[modality]:
                    array = sample.arrays[name][: max(0, end - at)]
                    rows[name].append(array)
                    rows_at[name].append(np.arange(at, at + len(array)))
                    at += len(array)

    def joined(arrays: Sequence[NDArray[Any]]) -> torch.Tensor:
        shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
        return torch.from_numpy(np.concatenate(arrays, out=allocate(shape, np.result_type(*arrays))))

    return Batch(
        ids=joined([np.where(ids == ROW, 0, ids)]),
        positions=joined([np.arange(n) for n in cut]),
        packing=Packing(tuple(cut), joined([starts.astype(np.int32)])),
        rows={name: joined(rows[name] or [np.zeros((0, width), np.float32)]) for name, width in widths.items()},
        rows_at={name: joined([*rows_at[name], np.empty(0, np.int64)]) for name in widths},
        targets=joined([ids[targets_at + 1]]),
        targets_at=joined([targets_at]),
    )
