"""Packing: a pass's conversations end to end, with no padding and no attention across conversations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from store import Arrays
from trainer.attention import Packing
from trainer.features import FEATURES, FEATURES_OF, RowType
from trainer.prompt import ROW, Tokens

Allocate = Callable[..., NDArray[Any]]  # takes a shape and a dtype, like `np.empty`
Parts = dict[str, list[NDArray[Any]]]  # by feature, the arrays that an item's rows are read into


@dataclass(frozen=True)
class Sample:
    """A tokenized conversation and its item's arrays."""

    tokens: Tokens
    arrays: Arrays


@dataclass(frozen=True)
class Batch:
    """One pass: B packed conversations, S positions in all, R rows of each feature, M response tokens.

    Attributes:
        ids: int64 [S]; 0 where a feature row stands.
        positions: int64 [S], from 0 in each conversation.
        packing: where each conversation begins and ends.
        rows: for each feature, its rows [R, D], as stored.
        rows_at: for each feature, the positions of its rows, int64 [R].
        targets: the response tokens, int64 [M].
        targets_at: the position that predicts each target, int64 [M].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    packing: Packing
    rows: dict[str, torch.Tensor]
    rows_at: dict[str, torch.Tensor]
    targets: torch.Tensor
    targets_at: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """A copy on a device; from pinned memory, the copy may still be running on the current stream."""
        return replace(self, **{f.name: _to(getattr(self, f.name), device) for f in fields(self)})

    def split(self, count: int, host: "Batch") -> tuple["Batch", "Batch"]:
        """Its first `count` conversations, and the others, both as views.

        Args:
            count: of conversations.
            host: this batch in host memory, where searching it costs no synchronization.
        """
        lengths, bounds = self.packing.lengths, self.packing.bounds
        at = sum(lengths[:count])
        rows = {name: int(np.searchsorted(places.numpy(), at)) for name, places in host.rows_at.items()}
        target = int(np.searchsorted(host.targets_at.numpy(), at))
        first = Batch(
            ids=self.ids[:at],
            positions=self.positions[:at],
            packing=Packing(lengths[:count], bounds[: count + 1]),
            rows={name: self.rows[name][:n] for name, n in rows.items()},
            rows_at={name: self.rows_at[name][:n] for name, n in rows.items()},
            targets=self.targets[:target],
            targets_at=self.targets_at[:target],
        )
        others = Batch(
            ids=self.ids[at:],
            positions=self.positions[at:],
            packing=Packing(lengths[count:], bounds[count:] - at),
            rows={name: self.rows[name][n:] for name, n in rows.items()},
            rows_at={name: self.rows_at[name][n:] - at for name, n in rows.items()},
            targets=self.targets[target:],
            targets_at=self.targets_at[target:] - at,
        )
        return first, others

    def tensors(self) -> Iterator[torch.Tensor]:
        """All its tensors."""
        yield from (self.ids, self.positions, self.packing.bounds, self.targets, self.targets_at)
        yield from (*self.rows.values(), *self.rows_at.values())


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _to(inner, device) for name, inner in value.items()}
    return value.to(device, non_blocking=True)


def fill_passes(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Distribute samples over passes of at most `budget` positions: the longest first, each into the fullest it fits.

    Args:
        lengths: positions of each sample, none above `budget`.
        budget: positions of a pass.

    Returns:
        The numbers of each pass's samples, ascending; the passes are few and nearly full.
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
    return [sorted(numbers) for numbers in passes]


def lay_out(
    conversations: Sequence[tuple[Tokens, Mapping[str, int]]],
    rows: Mapping[str, RowType],
    max_tokens: int,
    allocate: Allocate = np.empty,
) -> tuple[Batch, list[Parts]]:
    """Lay conversations end to end; the caller then fills in their feature rows.

    Args:
        conversations: the tokens of each, and how many feature rows its item has of each feature.
        rows: width D and dtype of a feature row, for each feature of the run.
        max_tokens: positions after which a conversation is cut.
        allocate: allocates the batch's tensors, by shape and dtype.

    Returns:
        The batch, and for each conversation the parts of the batch's `rows` to fill: by feature, one array for each
        turn that perceives it. A part of n rows takes the item's first n.
    """
    cut = [min(len(tokens.ids), max_tokens) for tokens, _ in conversations]
    starts = np.concatenate([[0], np.cumsum(cut)])
    ids = np.concatenate([np.asarray(t.ids[:n], np.int64) for (t, _), n in zip(conversations, cut, strict=True)])
    answers = np.concatenate([np.asarray(t.answers[:n], bool) for (t, _), n in zip(conversations, cut, strict=True)])
    targets_at = np.flatnonzero(answers) - 1
    spans: dict[str, list[tuple[int, int, int]]] = {name: [] for name in rows}  # conversation, position, rows
    bounds = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    for number, ((tokens, counts), (start, end)) in enumerate(zip(conversations, bounds, strict=True)):
        for modality, first in tokens.media:
            at = start + first
            for name in FEATURES:
                if name in FEATURES_OF[modality]:
                    count = min(counts[name], max(0, end - at))
                    spans[name].append((number, at, count))
                    at += count
    parts: list[Parts] = [{} for _ in conversations]
    memory: dict[str, NDArray[Any]] = {}
    for name, (width, dtype) in rows.items():
        memory[name] = allocate((sum(count for *_, count in spans[name]), width), dtype)
        first = 0
        for number, _, count in spans[name]:
            parts[number].setdefault(name, []).append(memory[name][first : first + count])
            first += count

    def joined(arrays: Sequence[NDArray[Any]], dtype: DTypeLike = np.int64) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays, out=allocate((sum(map(len, arrays)),), dtype)))

    none = np.empty(0, np.int64)
    batch = Batch(
        ids=joined([np.where(ids == ROW, 0, ids)]),
        positions=joined([np.arange(n) for n in cut]),
        packing=Packing(tuple(cut), joined([starts.astype(np.int32)], np.int32)),
        rows={name: torch.from_numpy(array) for name, array in memory.items()},
        rows_at={name: joined([none, *(np.arange(at, at + n) for _, at, n in spans[name])]) for name in rows},
        targets=joined([ids[targets_at + 1]]),
        targets_at=joined([targets_at]),
    )
    return batch, parts


def pack(samples: Sequence[Sample], widths: Mapping[str, int], max_tokens: int) -> Batch:
    """`lay_out` of samples whose arrays are in memory, copied into place; `widths` gives D of each feature of a run."""
    dtypes = {name: [s.arrays[name].dtype for s in samples if name in s.arrays] for name in widths}
    rows = {
        n: RowType(width, np.result_type(*dtypes[n]) if dtypes[n] else np.dtype("f4")) for n, width in widths.items()
    }
    conversations = [(s.tokens, {name: len(array) for name, array in s.arrays.items()}) for s in samples]
    batch, parts = lay_out(conversations, rows, max_tokens)
    for sample, destinations in zip(samples, parts, strict=True):
        for name, arrays in destinations.items():
            for array in arrays:
                array[:] = sample.arrays[name][: len(array)]
    return batch
