"""Items of one or several columns by place: read straight into memory that is given, or in batches of fresh memory.

Legend: B items of a batch, F features, R rows, D the width of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.errors import DamagedError, UserError
from store.reader import Arrays, ColumnReader
from store.shard import TEXT


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
    """A feature that is read: its column's number, its own number in that column's index, dtype, shape."""

    column: int
    number: int
    dtype: str
    shape: tuple[int | None, ...]


class Stream:
    """A data set of N places, each an item of some columns.

    `shapes` and `read_into` are the way that training takes: it says where each array is to lie. Batches in fresh
    memory are for a torch `DataLoader`, with `collate_fn=lambda batch: batch`, also with worker processes, forked or
    spawned.

    Every array is compared with its checksum when it is first read in a process.

    Args:
        readers: of columns that have no feature of the same name.
        keys: the item of each place, or None where nothing is to be read.
        features: those to read, of numbers; all of them if None.
        tolerate: damaged items of batches that are replaced, each by the next place that is sound, before it stops.

    Attributes:
        replaced: the damaged items of batches so far, by place.

    Raises:
        UserError: a key is held by none of the columns, or a feature is not there or varies in more than its length.
    """

    def __init__(
        self,
        readers: Sequence[ColumnReader],
        keys: Sequence[str | None],
        features: Sequence[str] | None = None,
        tolerate: int = 0,
    ) -> None:
        self._readers, self._keys, self._tolerate = readers, keys, tolerate
        self._features = _choose(readers, features)
        self._names = [[n for n, f in self._features.items() if f.column == c] for c in range(len(readers))]
        self.replaced: dict[int, Replacement] = {}
        rows = [[-1 if key is None else reader.index.row.get(key, -1) for key in keys] for reader in readers]
        self._rows = np.array(rows, np.int64).reshape(len(readers), len(keys))
        for place in np.flatnonzero((self._rows < 0).all(axis=0)):
            if (key := keys[place]) is not None:
                readers[0].row(key)

    def __len__(self) -> int:
        return len(self._keys)

    def shapes(self, place: int) -> dict[str, tuple[int, ...]]:
        """The shape of each array that the item at a place has, without reading any."""
        rows = self._rows[:, place].tolist()
        return {
            name: self._readers[f.column].shape_at(rows[f.column], f.number)
            for name, f in self._features.items()
            if rows[f.column] >= 0
        }

    def read_into(self, place: int, into: Mapping[str, NDArray[Any]]) -> None:
        """Fill contiguous arrays of the item at a place, by feature name; threads may call this at the same time.

        Raises:
            DamagedError: the bytes on disk are not those that were written.
        """
        for column, names in enumerate(self._names):
            row = self._rows.item(column, place)
            wanted = [(self._features[name].number, into[name]) for name in names if name in into]
            if row >= 0 and wanted:
                self._readers[column].read_into(row, wanted)

    def remote_shards(self, place: int) -> list[tuple[ColumnReader, int]]:
        """The shards with the item at a place that are copied to the cache before they are read."""
        rows = zip(self._readers, self._rows[:, place].tolist(), strict=True)
        return [(r, r.index.shard.item(row)) for r, row in rows if row >= 0 and not r.column.storage.local]

    def __getitem__(self, place: int) -> Arrays:
        """The arrays of the item at a place, in fresh memory."""
        return self.__getitems__([place]).item(0)

    def __getitems__(self, places: Sequence[int]) -> StreamBatch:
        """A batch in fresh memory; each damaged item is replaced by the place after it, until all are sound.

        Raises:
            DamagedError: an item is damaged, and no more are tolerated.
        """
        chosen: list[int] = np.asarray(places, np.int64).tolist()
        replaced: list[Replacement] = []
        while (error := self._fill(batch := self._room(chosen, replaced))) is not None:
            number, reason = error
            place, by = chosen[number], (chosen[number] + 1) % len(self)
            replaced.append(self.replaced.setdefault(place, Replacement(place, self._keys[place], reason, by)))
            if len(self.replaced) > self._tolerate:
                raise DamagedError(reason)
            chosen[number] = by
        return batch

    def _fill(self, batch: StreamBatch) -> tuple[int, str] | None:
        """Read a batch; the number of the first item that is damaged, and how."""
        for number, place in enumerate(batch.places):
            try:
                self.read_into(place, batch.item(number))
            except DamagedError as error:
                return number, str(error)
        return None

    def _room(self, places: list[int], replaced: list[Replacement]) -> StreamBatch:
        """A batch, its arrays not yet read."""
        arrays: Arrays = {}
        bounds: dict[str, NDArray[np.int64]] = {}
        held: dict[str, NDArray[np.bool_]] = {}
        for name, (column, number, dtype, shape) in self._features.items():
            rows = self._rows[column, places]
            held[name] = rows >= 0
            counts = held[name].astype(np.int64)
            if varies := shape[:1] == (None,):
                counts[held[name]] = self._readers[column].index.shape[rows[held[name]], number, 0]
            bounds[name] = np.concatenate([[0], np.cumsum(counts)])
            fixed_part = tuple(length or 0 for length in shape[varies:])  # `_choose` has seen that none varies
            arrays[name] = np.empty((bounds[name][-1], *fixed_part), dtype)
        fixed = frozenset(name for name, feature in self._features.items() if None not in feature.shape)
        keys = tuple(self._keys[place] for place in places)
        return StreamBatch(tuple(places), keys, arrays, bounds, held, fixed, tuple(replaced))


def _choose(readers: Sequence[ColumnReader], names: Sequence[str] | None) -> dict[str, _Feature]:
    """The features to read."""
    found: dict[str, _Feature] = {}
    for column, reader in enumerate(readers):
        for number, name in enumerate(reader.index.features):
            if name in found:
                raise UserError(f"feature {name!r}: {reader.column.name} and another column both have it")
            spec = reader.column.spec.features[name]
            if spec.dtype != TEXT:
                found[name] = _Feature(column, number, spec.dtype, spec.shape)
    chosen = list(found) if names is None else names
    for name in chosen:
        if name not in found:
            raise UserError(f"feature {name!r}: the columns have {', '.join(sorted(found))}")
        if None in found[name].shape[1:]:
            raise UserError(f"feature {name!r}: {found[name].shape} varies in more than its length")
    return {name: found[name] for name in chosen}
