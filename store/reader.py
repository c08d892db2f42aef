"""Read a column by key: the tars are mapped, and arrays are views of them. Nothing is copied or unpacked."""

import difflib
import mmap
from typing import Any

import xxhash
from numpy.typing import NDArray

from store.column import Column
from store.errors import DamagedError, UserError
from store.shard import ArrayEntry, Failure, shard_name

Arrays = dict[str, NDArray[Any]]


class ColumnReader:
    """The items of a column by key.

    Each array's checksum is compared when the item is first read. On a store that is not a local disk, an item's
    bytes are fetched by range.
    """

    def __init__(self, column: Column) -> None:
        self.column = column
        self.failed: dict[str, Failure] = {}
        self._entries: dict[str, tuple[int, dict[str, ArrayEntry]]] = {}
        self._tar_bytes: dict[int, int] = {}
        self._maps: dict[int, memoryview] = {}
        self._checked: set[str] = set()
        for shard in column.shards():
            sidecar = column.sidecar(shard)
            if sidecar.column != column.spec.fingerprint:
                raise DamagedError(f"{column.name}: shard {shard} was written for another spec")
            self._tar_bytes[shard] = sidecar.tar_bytes
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
        stored = {name: self._bytes(shard, entry) for name, entry in entries.items()}
        if key not in self._checked:
            for name, entry in entries.items():
                if xxhash.xxh3_64_hexdigest(stored[name]) != entry.xxh3:
                    tar = self.column.storage.where(self.column.path(shard_name(shard, "tar")))
                    raise DamagedError(f"{tar}: {key}.{name} differs from its checksum")
            self._checked.add(key)
        return {name: entry.decode(stored[name]) for name, entry in entries.items()}

    def _bytes(self, shard: int, entry: ArrayEntry) -> memoryview:
        size = entry.nbytes
        path = self.column.path(shard_name(shard, "tar"))
        if self.column.storage.local:
            data = self._map(shard, path)[entry.offset : entry.offset + size]
        else:
            data = memoryview(self.column.storage.read(path, entry.offset, entry.offset + size))
        if len(data) != size:
            raise DamagedError(f"{self.column.storage.where(path)}: shorter than its sidecar says")
        return data

    def _map(self, shard: int, path: str) -> memoryview:
        if shard not in self._maps:
            where = self.column.storage.path(path)
            try:
                with open(where, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise DamagedError(f"{where}: cannot be mapped: {error}") from None
            if len(mapped) != self._tar_bytes[shard]:
                raise DamagedError(f"{where}: {len(mapped)} bytes, its sidecar says {self._tar_bytes[shard]}")
            self._maps[shard] = memoryview(mapped)
        return self._maps[shard]
