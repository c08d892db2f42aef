"""Read the items of a column: their arrays, straight out of the tars to where they are wanted."""

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from store.cache import cached
from store.column import Column
from store.errors import DamagedError, UserError
from store.index import build_index
from store.shard import decode_array, shard_name
from store.tars import Tar

Arrays = dict[str, NDArray[Any]]
OPEN_FILES = 256  # tars held open
GAP = 16 << 10  # bytes between two arrays that are read and thrown away sooner than a second call is made


class ColumnReader:
    """The items of a column.

    Each array's checksum is compared when it is first read. Of a store that is not a local disk, whole shards are
    copied to the cache first (`store.cache`).

    Attributes:
        column: that is read.
        index: where its arrays lie.
        failed: the record of each item that it does not hold.
        checked: bool [N, F], the arrays whose checksum was compared in this process.
    """

    def __init__(self, column: Column) -> None:
        self.column = column
        self.index = build_index(column)
        self.failed = self.index.failed
        self.checked = np.zeros(self.index.xxh3.shape, bool)
        self._scratch = np.empty(GAP, np.uint8)  # takes what nobody reads
        self._tars: dict[int, Tar] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tars": {}}

    def __len__(self) -> int:
        return len(self.index.row)

    def __contains__(self, key: object) -> bool:
        return key in self.index.row

    def keys(self) -> list[str]:
        """The keys of the usable items, in the corpus's order."""
        return list(self.index.row)

    def shape(self, key: str, name: str) -> tuple[int, ...]:
        """The shape of one array, without reading it."""
        return self.shape_at(self.row(key), self.index.features.index(name))

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

    def shape_at(self, row: int, feature: int) -> tuple[int, ...]:
        """The shape of one array, by its row and the number of its feature."""
        rank = len(self.column.spec.features[self.index.features[feature]].shape)
        return tuple(self.index.shape[row, feature, :rank].tolist())

    def read(self, key: str) -> Arrays:
        """The arrays of an item by feature name.

        Raises:
            UserError: the column has no such item; says why if it failed.
            DamagedError: the bytes on disk are not those that were written.
        """
        row = self.row(key)
        read = [np.empty(size, np.uint8) for size in self.index.nbytes[row].tolist()]
        self.read_into(row, list(enumerate(read)))
        features = self.column.spec.features
        return {
            name: decode_array(read[number].data, features[name].dtype, self.shape_at(row, number))
            for number, name in enumerate(self.index.features)
        }

    def read_into(self, row: int, wanted: Sequence[tuple[int, NDArray[Any]]]) -> None:
        """Fill arrays of an item, and compare each with its checksum at its first touch in this process.

        Threads may call this at the same time.

        Args:
            row: of the item.
            wanted: numbers of features in the index, each with a contiguous array of its size.

        Raises:
            DamagedError: the bytes on disk are not those that were written.
        """
        tar = self.open(self.index.shard.item(row))
        offset = self.index.offset
        run: list[memoryview] = []
        start = end = 0
        for at, number in sorted((offset.item(row, feature), n) for n, (feature, _) in enumerate(wanted)):
            gap = at - end
            if run and gap > GAP:
                tar.read(run, start)
                run = []
            if not run:
                start = at
            elif gap:
                run.append(self._scratch[:gap].data)
            run.append(wanted[number][1].data)
            end = at + run[-1].nbytes
        if run:
            tar.read(run, start)
        for feature, array in wanted:
            if not self.checked.item(row, feature):
                self._check(row, feature, array)

    def open(self, shard: int) -> Tar:
        """The open tar of a shard, fetched to the cache first if the store is not a local disk.

        Raises:
            DamagedError: it is missing, or of another size than its sidecar says.
        """
        tar = self._tars.get(shard)
        if tar is None:
            tar = self._tars[shard] = Tar(self.path(shard), self.index.tars[shard][0])
            for oldest in list(self._tars)[:-OPEN_FILES]:
                self._tars.pop(oldest, None)
        return tar

    def path(self, shard: int) -> str:
        """The local path of a shard's tar, fetched to the cache if the store is not a local disk; open it at once.

        Raises:
            DamagedError: what is fetched differs from its sidecar, or is missing.
        """
        storage = self.column.storage
        if storage.local:
            return storage.path(self.column.path(shard_name(shard, "tar")))
        return cached(self.column, shard, *self.index.tars[shard])

    def _check(self, row: int, feature: int, array: NDArray[Any]) -> None:
        if xxhash.xxh3_64_intdigest(array.data) != self.index.xxh3.item(row, feature):
            tar = self.column.storage.where(self.column.path(shard_name(int(self.index.shard[row]), "tar")))
            member = f"{self.index.key(row)}.{self.index.features[feature]}"
            raise DamagedError(f"{tar}: {member} differs from its checksum")
        self.checked[row, feature] = True
