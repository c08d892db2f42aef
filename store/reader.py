"""Read a column by key: the tars are mapped, and arrays are views of them. Nothing is copied or unpacked."""

import difflib
import mmap
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from store.cache import cached
from store.column import Column
from store.errors import DamagedError, UserError
from store.index import build_index
from store.shard import decode_array, shard_name

Arrays = dict[str, NDArray[Any]]


class ColumnReader:
    """The items of a column by key.

    Each array's checksum is compared when the item is first read. Of a store that is not a local disk, whole shards
    are copied to the cache first (`store.cache`).
    """

    def __init__(self, column: Column) -> None:
        self.column = column
        self.index = build_index(column)
        self.failed = self.index.failed
        self.checked = np.zeros(self.index.xxh3.shape, bool)  # arrays whose checksum was compared in this process
        self._maps: dict[int, memoryview] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def __len__(self) -> int:
        return len(self.index.row)

    def __contains__(self, key: object) -> bool:
        return key in self.index.row

    def keys(self) -> list[str]:
        """The keys of the usable items, in the corpus's order."""
        return list(self.index.row)

    def shape(self, key: str, name: str) -> tuple[int, ...]:
        """The shape of one array, without reading it."""
        return self._shape(self.row(key), self.index.features.index(name))

    def row(self, key: str) -> int:
        """The row of an item in the index.

        Raises:
            UserError: the column has no such item; says why if it failed.
        """
        if key not in self.index.row:
            failure = self.failed.get(key)
            near = ", ".join(difflib.get_close_matches(key, self.index.row, cutoff=0.5))
            why = f": {failure.reason}" if failure else f"; near it: {near}" if near else ""
            raise UserError(f"{self.column.name}: no item {key!r}{why}")
        return self.index.row[key]

    def read(self, key: str) -> Arrays:
        """The arrays of an item by feature name, read-only views.

        Raises:
            UserError: the column has no such item; says why if it failed.
            DamagedError: the bytes on disk are not those that were written.
        """
        row = self.row(key)
        return {name: self._array(row, feature) for feature, name in enumerate(self.index.features)}

    def check(self, row: int, feature: int, data: memoryview) -> None:
        """Compare the bytes of one array with their checksum, if they are the first of it in this process.

        Raises:
            DamagedError: they differ.
        """
        if self.checked.item(row, feature):
            return
        if xxhash.xxh3_64_intdigest(data) != self.index.xxh3.item(row, feature):
            tar = self.column.storage.where(self.column.path(shard_name(int(self.index.shard[row]), "tar")))
            member = f"{self.index.key(row)}.{self.index.features[feature]}"
            raise DamagedError(f"{tar}: {member} differs from its checksum")
        self.checked[row, feature] = True

    def path(self, shard: int) -> str:
        """The local path of a shard's tar, fetched to the cache if the store is not a local disk; open it at once.

        Raises:
            DamagedError: what is fetched differs from its sidecar, or is missing.
        """
        storage = self.column.storage
        if storage.local:
            return storage.path(self.column.path(shard_name(shard, "tar")))
        return cached(self.column, shard, *self.index.tars[shard])

    def _array(self, row: int, feature: int) -> NDArray[Any]:
        start = int(self.index.offset[row, feature])
        data = self._map(int(self.index.shard[row]))[start : start + int(self.index.nbytes[row, feature])]
        self.check(row, feature, data)
        dtype = self.column.spec.features[self.index.features[feature]].dtype
        return decode_array(data, dtype, self._shape(row, feature))

    def _shape(self, row: int, feature: int) -> tuple[int, ...]:
        rank = len(self.column.spec.features[self.index.features[feature]].shape)
        return tuple(self.index.shape[row, feature, :rank].tolist())

    def _map(self, shard: int) -> memoryview:
        if shard not in self._maps:
            where, size = self.path(shard), self.index.tars[shard][0]
            try:
                with open(where, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise DamagedError(f"{where}: cannot be mapped: {error}") from None
            if len(mapped) != size:
                raise DamagedError(f"{where}: {len(mapped)} bytes, its sidecar says {size}")
            self._maps[shard] = memoryview(mapped)
        return self._maps[shard]
