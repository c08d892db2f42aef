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
from store.shard import ArrayEntry, Failure, shard_name

Arrays = dict[str, NDArray[Any]]


class ColumnReader:
    """The items of a column by key.

    Each array's checksum is compared when the item is first read. Of a store that is not a local disk, whole shards
    are copied to the cache first (`store.cache`).
    """

    def __init__(self, column: Column) -> None:
        self.column = column
        self.failed: dict[str, Failure] = {}
        self._entries: dict[str, tuple[int, dict[str, ArrayEntry]]] = {}
        self._tars: dict[int, tuple[int, str]] = {}  # size and checksum
        self._maps: dict[int, memoryview] = {}
        self._checked: set[str] = set()
        for shard, sidecar in column.sidecars():
            self._tars[shard] = (sidecar.tar_bytes, sidecar.tar_xxh3)
            self._entries |= {item.key: (shard, item.arrays) for item in sidecar.items}
            self.failed |= {failure.key: failure for failure in sidecar.failed}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def keys(self) -> list[str]:
        """The keys of the usable items, in the corpus's order."""
        return list(self._entries)

    def shape(self, key: str, name: str) -> tuple[int, ...]:
        """The shape of one array, without reading it."""
        return self._entries[key][1][name].shape

    def read(self, key: str) -> Arrays:
        """The arrays of an item by feature name, read-only views.

        Raises:
            UserError: the column has no such item; says why if it failed.
            DamagedError: the bytes on disk are not those that were written.
        """
        if key not in self._entries:
            failure = self.failed.get(key)
            near = ", ".join(difflib.get_close_matches(key, self._entries, cutoff=0.5))
            why = f": {failure.reason}" if failure else f"; near it: {near}" if near else ""
            raise UserError(f"{self.column.name}: no item {key!r}{why}")
        shard, entries = self._entries[key]
        arrays = {name: self._array(shard, entry) for name, entry in entries.items()}
        if key not in self._checked:
            for name, entry in entries.items():
                if xxhash.xxh3_64_hexdigest(arrays[name].data) != entry.xxh3:
                    tar = self.column.storage.where(self.column.path(shard_name(shard, "tar")))
                    raise DamagedError(f"{tar}: {key}.{name}.npy differs from its checksum")
            self._checked.add(key)
        return arrays

    def _array(self, shard: int, entry: ArrayEntry) -> NDArray[Any]:
        dtype = np.dtype(entry.dtype)
        size = dtype.itemsize * int(np.prod(entry.shape))
        data = self._map(shard)[entry.offset : entry.offset + size]
        if len(data) != size:
            raise DamagedError(f"{self.column.name}: shard {shard} is shorter than its sidecar says")
        return np.frombuffer(data, dtype).reshape(entry.shape)

    def _map(self, shard: int) -> memoryview:
        if shard not in self._maps:
            storage, tar = self.column.storage, self.column.path(shard_name(shard, "tar"))
            where = storage.path(tar) if storage.local else cached(self.column, shard, *self._tars[shard])
            try:
                with open(where, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise DamagedError(f"{where}: cannot be mapped: {error}") from None
            if len(mapped) != self._tars[shard][0]:
                raise DamagedError(f"{where}: {len(mapped)} bytes, its sidecar says {self._tars[shard][0]}")
            self._maps[shard] = memoryview(mapped)
        return self._maps[shard]
