"""Batches of arrays out of one or several columns: read ahead by threads, straight into memory that is used again.

Legend: B items of a batch, F features, R rows, D the width of a row.
"""

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.errors import DamagedError, UserError
from store.index import ColumnIndex
from store.reader import Arrays, ColumnReader
from store.shard import TEXT
from store.tars import DamagedItemError, Tars, Wanted

FETCHERS = 4  # shards that are copied to the cache at once
LOOKAHEAD = 32  # batches before its turn that a shard begins to be copied to the cache

Allocate = Callable[[int], NDArray[np.uint8]]


class Replacement(NamedTuple):
    """A damaged item, why it is taken for one, and the place that was read in its stead."""

    place: int
    key: str | None
    reason: str
    by: int


@dataclass(frozen=True)
class StreamBatch:
    """The arrays of B items. An item has nothing of a feature whose column does not hold it.

    Attributes:
        places: what was read, B places: those that were asked for, but for damaged items that were replaced.
        keys: of those items.
        arrays: for each feature those of all items that have it: [items, *shape] if the shape is fixed, else their
            rows end to end [R, D].
        bounds: for each feature, int64 [B + 1]: item i has arrays[name][bounds[name][i] : bounds[name][i + 1]].
        held: for each feature, bool [B]: whether the item's column holds it.
        fixed: the features of fixed shape.
        replaced: what was found damaged.
    """

    places: tuple[int, ...]
    keys: tuple[str | None, ...]
    arrays: Arrays
    bounds: dict[str, NDArray[np.int64]]
    held: dict[str, NDArray[np.bool_]]
    fixed: frozenset[str]
    replaced: tuple[Replacement, ...]

    def __len__(self) -> int:
        return len(self.places)

    def item(self, number: int) -> Arrays:
        """The arrays of one item, each in its own shape: views of the batch's."""
        found: Arrays = {}
        for name, array in self.arrays.items():
            first, end = self.bounds[name][number : number + 2].tolist()
            if self.held[name][number]:
                found[name] = array[first] if name in self.fixed else array[first:end]
        return found


class _Feature(NamedTuple):
    """A feature that is read: its name, its column's number, its own number in that column's index, dtype, shape."""

    name: str
    column: int
    number: int
    dtype: str
    shape: tuple[int | None, ...]


class _Slot:
    """The memory of one batch, which grows to the largest that was read into it."""

    def __init__(self, allocate: Allocate) -> None:
        self._allocate = allocate
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def room(self, name: str, size: int) -> NDArray[np.uint8]:
        """`size` bytes for a feature."""
        held = self._buffers.get(name)
        if held is None or len(held) < size:
            held = self._buffers[name] = self._allocate(size)
        return held[:size]


def page_aligned(size: int) -> NDArray[np.uint8]:
    """Memory that begins with a page, uint8 [size].

    numpy's begins 16 bytes behind one, and there an AMD EPYC copied out of files half as fast.
    """
    memory = np.empty(size + mmap.PAGESIZE, np.uint8)
    return memory[-memory.ctypes.data % mmap.PAGESIZE :][:size]


class Stream:
    """A data set of N places, each an item of some columns; a torch `Dataset` too, without torch.

    `batches` is the fast way. `__getitems__` gives batches in fresh memory, for a `DataLoader` with
    `collate_fn=lambda batch: batch`, also with worker processes, forked or spawned.

    Every array is compared with its checksum when it is first read in a process. A damaged item is replaced by the
    next place that is sound and recorded, up to a bound; the rest of the stream does not move.

    Args:
        readers: of columns that have no feature of the same name.
        keys: the item of each place, or None where nothing is to be read.
        features: those to read, of numbers; all of them if None.
        tolerate: damaged items that are replaced before the stream stops.
        allocate: gives the memory of batches, uint8 [bytes]: pinned, for example.

    Attributes:
        replaced: the damaged items so far, by place.

    Raises:
        UserError: a key is held by none of the columns, or a feature is not there or varies in more than its length.
    """

    def __init__(
        self,
        readers: Sequence[ColumnReader],
        keys: Sequence[str | None],
        features: Sequence[str] | None = None,
        tolerate: int = 0,
        allocate: Allocate = page_aligned,
    ) -> None:
        self._readers, self._keys = readers, keys
        self._tolerate, self._allocate = tolerate, allocate
        self._features = _choose(readers, features)
        self._tars = Tars(readers)
        self._slots: list[_Slot] = []  # of earlier epochs: memory that is new is paid for at its first touch
        self.replaced: dict[int, Replacement] = {}
        rows = [[-1 if key is None else reader.index.row.get(key, -1) for key in keys] for reader in readers]
        self._rows = np.array(rows, np.int64).reshape(len(readers), len(keys))
        for place in np.flatnonzero((self._rows < 0).all(axis=0)):
            if (key := keys[place]) is not None:
                readers[0].row(key)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_slots": []}

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, place: int) -> Arrays:
        """The arrays of the item at a place, in fresh memory."""
        return self.__getitems__([place]).item(0)

    def __getitems__(self, places: Sequence[int]) -> StreamBatch:
        """A batch in fresh memory.

        Raises:
            DamagedError: an item is damaged, and no more are tolerated.
        """
        return self._admit(self._fill(_Slot(self._allocate), places))

    def batches(self, batches: Iterable[Sequence[int]], threads: int = 2) -> Iterator[StreamBatch]:
        """The batches of the given places, in order, read ahead by threads; the number of threads changes nothing else.

        All threads read the same batch, a part each, while the one before it is used: two batches of memory stay in the
        processor's cache where a batch for each thread would not.

        A batch lies in memory that is used again: it is valid until the next one is asked for.

        Raises:
            DamagedError: an item is damaged, and no more are tolerated.
        """
        slots = [self._slots.pop() if self._slots else _Slot(self._allocate) for _ in range(2 if threads else 1)]
        coming: deque[_Coming] = deque()
        with ThreadPoolExecutor(max(1, threads)) as pool, ThreadPoolExecutor(FETCHERS) as fetchers:
            try:
                for number, places in enumerate(self._fetched_ahead(batches, fetchers)):
                    slot = slots[number % len(slots)]
                    if not threads:
                        yield self._admit(self._fill(slot, places))
                        continue
                    coming.append(self._begin(slot, places, pool, threads))
                    if len(coming) == len(slots):
                        yield self._admit(self._end(coming.popleft()))
                while coming:
                    yield self._admit(self._end(coming.popleft()))
            finally:
                pool.shutdown(cancel_futures=True)
                fetchers.shutdown(cancel_futures=True)
                self._slots += slots

    def _begin(self, slot: _Slot, places: Sequence[int], pool: ThreadPoolExecutor, threads: int) -> "_Coming":
        """Have threads read a batch, a part each."""
        batch, wanted = self._plan(slot, np.asarray(places, np.int64).tolist(), [])
        return _Coming(slot, batch, [pool.submit(self._tars.read, part) for part in _parts(wanted, threads)])

    def _end(self, coming: "_Coming") -> StreamBatch:
        """That batch once it is read; where it is damaged, it is read again by one thread, which replaces."""
        wait(coming.parts)
        try:
            for part in coming.parts:
                part.result()
        except DamagedItemError:
            return self._fill(coming.slot, coming.batch.places)
        return coming.batch

    def _admit(self, batch: StreamBatch) -> StreamBatch:
        for replacement in batch.replaced:
            self.replaced.setdefault(replacement.place, replacement)
            if len(self.replaced) > self._tolerate:
                raise DamagedError(replacement.reason)
        return batch

    def _fill(self, slot: _Slot, places: Sequence[int]) -> StreamBatch:
        """Read a batch; each damaged item is replaced by the place after it, until all are sound."""
        chosen: list[int] = np.asarray(places, np.int64).tolist()
        replaced: list[Replacement] = []
        while True:
            try:
                batch, wanted = self._plan(slot, chosen, replaced)
                self._tars.read(wanted)
                return batch
            except DamagedItemError as error:
                if len(replaced) == self._tolerate:
                    raise
                place = chosen[error.position]
                chosen[error.position] = (place + 1) % len(self)
                replaced.append(Replacement(place, self._keys[place], str(error), chosen[error.position]))

    def _plan(self, slot: _Slot, places: list[int], replaced: list[Replacement]) -> tuple[StreamBatch, list[Wanted]]:
        """A batch, and what is to be read into its arrays, sorted as it lies."""
        arrays: Arrays = {}
        bounds: dict[str, NDArray[np.int64]] = {}
        held: dict[str, NDArray[np.bool_]] = {}
        wanted: list[Wanted] = []
        rows_of_columns = self._rows[:, places]
        for name, column, number, dtype, shape in self._features:
            index, rows = self._readers[column].index, rows_of_columns[column]
            held[name] = rows >= 0
            positions = np.flatnonzero(held[name])
            rows = rows[positions]
            bounds[name] = np.zeros(len(places) + 1, np.int64)
            bounds[name][positions + 1] = index.shape[rows, number, 0] if shape[:1] == (None,) else 1
            np.cumsum(bounds[name], out=bounds[name])
            ends = np.cumsum(index.nbytes[rows, number])
            room = slot.room(name, int(ends[-1]) if len(ends) else 0)
            arrays[name] = room.view(dtype).reshape(bounds[name][-1], *shape[shape[:1] == (None,) :])
            wanted += _wanted(index, column, number, positions, rows, ends, room.data)
        fixed = frozenset(feature.name for feature in self._features if None not in feature.shape)
        keys = tuple(self._keys[place] for place in places)
        batch = StreamBatch(tuple(places), keys, arrays, bounds, held, fixed, tuple(replaced))
        return batch, sorted(wanted)

    def _fetched_ahead(self, batches: Iterable[Sequence[int]], pool: ThreadPoolExecutor) -> Iterator[Sequence[int]]:
        """The same batches; the shards of those to come are copied to the cache while the ones before are read."""
        remote = [number for number, reader in enumerate(self._readers) if not reader.column.storage.local]
        if not remote:
            yield from batches
            return
        coming: deque[Sequence[int]] = deque()
        for places in batches:
            coming.append(places)
            for column in remote:
                rows = self._rows[column, list(places)]
                for shard in np.unique(self._readers[column].index.shard[rows[rows >= 0]]).tolist():
                    pool.submit(self._tars.open, column, shard)
            if len(coming) > LOOKAHEAD:
                yield coming.popleft()
        yield from coming


class _Coming(NamedTuple):
    """A batch that threads read, in parts."""

    slot: _Slot
    batch: StreamBatch
    parts: list[Future[None]]


def _parts(wanted: list[Wanted], count: int) -> list[list[Wanted]]:
    """Up to `count` parts of about as many bytes each, in order."""
    ends = np.cumsum([len(array.into) for array in wanted])
    if not len(ends):
        return []
    cuts = np.searchsorted(ends, np.arange(1, count) * ends[-1] / count, "right").tolist()
    edges = [0, *cuts, len(wanted)]
    return [wanted[a:b] for a, b in pairwise(edges) if b > a]


def _wanted(
    index: ColumnIndex,
    column: int,
    feature: int,
    positions: NDArray[np.int64],
    rows: NDArray[np.int64],
    ends: NDArray[np.int64],
    memory: memoryview,
) -> list[Wanted]:
    """The arrays of one feature, end to end in its memory."""
    lists = (a.tolist() for a in (index.shard[rows], index.offset[rows, feature], positions, rows, ends))
    found, start = [], 0
    for shard, offset, position, row, end in zip(*lists, strict=True):
        if end > start:
            found.append(Wanted(column, shard, offset, position, row, feature, memory[start:end]))
        start = end
    return found


def _choose(readers: Sequence[ColumnReader], names: Sequence[str] | None) -> list[_Feature]:
    """The features to read."""
    found: dict[str, _Feature] = {}
    for column, reader in enumerate(readers):
        for number, name in enumerate(reader.index.features):
            if name in found:
                raise UserError(f"feature {name!r}: {reader.column.name} and another column both have it")
            spec = reader.column.spec.features[name]
            if spec.dtype != TEXT:
                found[name] = _Feature(name, column, number, spec.dtype, spec.shape)
    chosen = list(found) if names is None else names
    for name in chosen:
        if name not in found:
            raise UserError(f"feature {name!r}: the columns have {', '.join(sorted(found))}")
        if None in found[name].shape[1:]:
            raise UserError(f"feature {name!r}: {found[name].shape} varies in more than its length")
    return [found[name] for name in chosen]
