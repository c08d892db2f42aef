"""Read items of one or more columns by place: into given memory, or as newly allocated batches.

Shapes: B items per batch, R rows, D row width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.errors import DamagedError, UserError
from store.reader import Arrays, ColumnReader
from store.sidecar import TEXT


class Replacement(NamedTuple):
    """A damaged item: its place, key and fault, and the place `by` that was read instead."""

    place: int
    key: str | None
    reason: str
    by: int


@dataclass(frozen=True)
class StreamBatch:
    """The arrays of B items. If a column lacks an item, the item has no rows of that column's features.

    Attributes:
        places: the B places read: the requested ones, except where a damaged item was replaced.
        keys: the items' keys.
        arrays: per feature, the data of all items that have it: stacked [items, *shape] if the shape is fixed, else
            concatenated along rows [R, D].
        bounds: per feature, int64 [B + 1]: item i is arrays[name][bounds[name][i] : bounds[name][i + 1]].
        held: per feature, bool [B]: whether the column holds the item.
        fixed: the features of fixed shape.
        replaced: the damaged items that were replaced.
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
        """The arrays of one item, as views of the batch's arrays."""
        views: Arrays = {}
        for name, array in self.arrays.items():
            first, end = self.bounds[name][number : number + 2].tolist()
            if self.held[name][number]:
                views[name] = array[first] if name in self.fixed else array[first:end]
        return views


class _Feature(NamedTuple):
    """A feature to read: the number of its column, its number in that column's index, dtype and shape."""

    column: int
    number: int
    dtype: str
    shape: tuple[int | None, ...]


class ItemRows:
    """N places, each an item's row in each of several columns: what training reads into memory that it lays out.

    Args:
        readers: readers of the columns; feature names must be unique across them.
        rows: for each reader, its row at each place; -1 where the column lacks the item.
        features: names of the numeric features to read; None reads all.

    Raises:
        UserError: two columns have a feature of one name, or a feature does not exist or varies in more than its first
            length.
    """

    def __init__(
        self,
        readers: Sequence[ColumnReader],
        rows: Sequence[NDArray[np.int32]],
        features: Sequence[str] | None = None,
    ) -> None:
        self._readers, self._rows = readers, rows
        self._features = _choose(readers, features)
        self._names = [[n for n, f in self._features.items() if f.column == c] for c in range(len(readers))]

    def shapes(self, place: int) -> dict[str, tuple[int, ...]]:
        """The shape of each array of the item at `place`; reads no arrays."""
        rows = [rows.item(place) for rows in self._rows]
        return {
            name: self._readers[f.column].shape_at(rows[f.column], f.number)
            for name, f in self._features.items()
            if rows[f.column] >= 0
        }

    def read_item_into(self, place: int, into: Mapping[str, NDArray[Any]]) -> None:
        """Read the item at `place` into contiguous arrays, given by feature name. Thread-safe.

        Raises:
            DamagedError: an array does not match its checksum, or a tar cannot be read.
        """
        for reader, rows, names in zip(self._readers, self._rows, self._names, strict=True):
            row = rows.item(place)
            targets = [(self._features[name].number, into[name]) for name in names if name in into]
            if row >= 0 and targets:
                reader.read_row_into(row, targets)

    def remote_shards(self, place: int) -> list[tuple[ColumnReader, int]]:
        """The shards of remote columns that hold the item at `place`; reading first copies them to the cache."""
        rows = [(reader, rows.item(place)) for reader, rows in zip(self._readers, self._rows, strict=True)]
        return [(r, r.index.shard.item(row)) for r, row in rows if row >= 0 and not r.column.storage.local]


class Stream(ItemRows):
    """A data set of N places; each place is one item, with its features from one or more columns.

    A torch `DataLoader` uses indexing, which allocates new batches; pass it `collate_fn=lambda batch: batch`. Worker
    processes may be forked or spawned.

    Each array's checksum is verified on first read by a reader, or the one it was copied from.

    Args:
        readers: readers of the columns; feature names must be unique across them.
        keys: the item key at each place, or None for a place without an item.
        features: names of the numeric features to read; None reads all.
        tolerate: how many damaged items batches may replace, each by the next sound place, before an error is raised.

    Attributes:
        replaced: the damaged items that batches have replaced so far, by place, and the one at which a batch raised.

    Raises:
        UserError: as for `ItemRows`, or no column holds a key.
    """

    def __init__(
        self,
        readers: Sequence[ColumnReader],
        keys: Sequence[str | None],
        features: Sequence[str] | None = None,
        tolerate: int = 0,
    ) -> None:
        self._keys, self._tolerate = keys, tolerate
        self.replaced: dict[int, Replacement] = {}
        super().__init__(readers, [reader.rows(keys) for reader in readers], features)
        missing = np.all([rows < 0 for rows in self._rows], axis=0)
        for place in np.flatnonzero(missing) if readers else range(len(keys)):
            if (key := keys[place]) is not None:
                readers[0].row(key)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, place: int) -> Arrays:
        """The arrays of the item at `place`, newly allocated."""
        return self.__getitems__([place]).item(0)

    def __getitems__(self, places: Sequence[int]) -> StreamBatch:
        """A newly allocated batch; each damaged item is replaced by the next sound place.

        Raises:
            DamagedError: more than `tolerate` damaged items so far, or no sound place is left.
        """
        chosen: list[int] = np.asarray(places, np.int64).tolist()
        replaced: list[Replacement] = []
        while (error := self._fill(batch := self._room(chosen, replaced))) is not None:
            number, damage = error
            place, by = chosen[number], (chosen[number] + 1) % len(self)
            replaced.append(self.replaced.setdefault(place, Replacement(place, self._keys[place], str(damage), by)))
            if len(self.replaced) > self._tolerate or len(self.replaced) == len(self):
                raise damage
            chosen[number] = by
        return batch

    def _fill(self, batch: StreamBatch) -> tuple[int, DamagedError] | None:
        """Read the data of a batch; return the number and error of the first damaged item, or None."""
        for number, place in enumerate(batch.places):
            try:
                self.read_item_into(place, batch.item(number))
            except DamagedError as error:
                return number, error
        return None

    def _room(self, places: list[int], replaced: list[Replacement]) -> StreamBatch:
        """Allocate a batch without reading its data."""
        arrays: Arrays = {}
        bounds: dict[str, NDArray[np.int64]] = {}
        held: dict[str, NDArray[np.bool_]] = {}
        for name, (column, number, dtype, shape) in self._features.items():
            rows = self._rows[column][places]
            held[name] = rows >= 0
            counts = held[name].astype(np.int64)
            if varies := shape[:1] == (None,):
                for row in rows[held[name]].tolist():
                    self._readers[column].index.check(row)
                counts[held[name]] = self._readers[column].index.shape[rows[held[name]], number, 0]
            bounds[name] = np.concatenate([[0], np.cumsum(counts)])
            fixed_part = tuple(length or 0 for length in shape[varies:])  # `_choose` checked that these are fixed
            arrays[name] = np.empty((bounds[name][-1], *fixed_part), dtype)
        fixed = frozenset(name for name, feature in self._features.items() if None not in feature.shape)
        keys = tuple(self._keys[place] for place in places)
        return StreamBatch(tuple(places), keys, arrays, bounds, held, fixed, tuple(replaced))


def _choose(readers: Sequence[ColumnReader], names: Sequence[str] | None) -> dict[str, _Feature]:
    """The features to read, checked."""
    available: dict[str, _Feature] = {}
    for column, reader in enumerate(readers):
        for number, name in enumerate(reader.index.features):
            if name in available:
                raise UserError(f"feature {name!r}: {reader.column.name} and another column both have it")
            spec = reader.column.spec.features[name]
            if spec.dtype != TEXT:
                available[name] = _Feature(column, number, spec.dtype, spec.shape)
    chosen = list(available) if names is None else names
    for name in chosen:
        if name not in available:
            raise UserError(f"feature {name!r}: the columns have {', '.join(sorted(available))}")
        if None in available[name].shape[1:]:
            raise UserError(f"feature {name!r}: {available[name].shape} varies in more than its length")
    return {name: available[name] for name in chosen}
