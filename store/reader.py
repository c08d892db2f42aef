"""Read a column's arrays, straight from the tars into the caller's memory."""

import difflib
import json
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from pydantic import JsonValue

from store.cache import cached
from store.column import Column
from store.errors import DamagedError, UserError
from store.hashes import hash_keys
from store.index import open_index
from store.shard import decode_array, shard_name
from store.tars import Tar

Arrays = dict[str, NDArray[Any]]
OPEN_FILES = 256  # tars kept open
COMPARED = 20_000  # keys among which an unknown one's nearest are looked for, which takes a second
GAP = 16 << 10  # bytes: a smaller gap between two arrays is read and discarded, which beats a second call


class ColumnReader:
    """The items of a column.

    Each array's checksum is verified on first read. If the store is remote, whole shards are copied to the cache first
    (`store.cache`).

    Attributes:
        column: the column being read.
        index: where its arrays are stored.
        failed: the failure record of each item that the column lacks, by key.
        checked: bool [N, F], the arrays whose checksum was verified by this reader, or the one it was copied from.
    """

    def __init__(self, column: Column) -> None:
        self.column = column
        self.index = open_index(column)
        self.failed = self.index.failed
        self.checked = np.zeros(self.index.xxh3.shape, bool)
        self._scratch = np.empty(GAP, np.uint8)  # receives the discarded gaps
        self._tars: dict[int, Tar] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tars": {}}

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, key: object) -> bool:
        return 0 <= self.index.row(str(key)) < len(self)

    def keys(self) -> list[str]:
        """The keys of the usable items, in corpus order."""
        return self.index.keys()

    def shape(self, key: str, name: str) -> tuple[int, ...]:
        """The shape of one array, without reading it."""
        return self.shape_at(self.row(key), self.index.features.index(name))

    def row(self, key: str) -> int:
        """The row of an item in the index.

        Raises:
            UserError: the column has no such item; the message gives the reason if it failed.
        """
        row = self.index.row(key)
        if 0 <= row < len(self):
            return row
        if row >= 0:
            raise UserError(f"{self.column.name}: no item {key!r}: {self.index.failure(row).reason}")
        near = difflib.get_close_matches(key, self.keys(), cutoff=0.5) if len(self) <= COMPARED else []
        raise UserError(f"{self.column.name}: no item {key!r}{'; near it: ' if near else ''}{', '.join(near)}")

    def rows(self, keys: Sequence[str | None]) -> NDArray[np.int32]:
        """The row of each key, int32; -1 of None, and of keys that the column lacks."""
        rows = self.index.find(hash_keys(pa.array(keys, pa.string())))
        return np.where(rows < len(self), rows, np.int32(-1))

    def shape_at(self, row: int, feature: int) -> tuple[int, ...]:
        """The shape of one array, by row and feature number."""
        self.index.check(row)
        rank = len(self.column.spec.features[self.index.features[feature]].shape)
        return tuple(self.index.shape[row, feature, :rank].tolist())

    def read(self, key: str) -> Arrays:
        """The arrays of an item by feature name.

        Raises:
            UserError: the column has no such item; the message gives the reason if it failed.
            DamagedError: an array does not match its checksum, or the tar cannot be read.
        """
        row = self.row(key)
        buffers = [np.empty(size, np.uint8) for size in self.index.nbytes[row].tolist()]
        self.read_row_into(row, list(enumerate(buffers)))
        features = self.column.spec.features
        return {
            name: decode_array(buffers[number].data, features[name].dtype, self.shape_at(row, number))
            for number, name in enumerate(self.index.features)
        }

    def facts(self, key: str) -> dict[str, JsonValue]:
        """The facts of an item, such as the times of its frames: the tar's member behind its arrays.

        Raises:
            UserError: the column has no such item; the message gives the reason if it failed.
            DamagedError: the tar cannot be read, or holds something else there.
        """
        row = self.row(key)
        shard = self.index.shard.item(row)
        end = int((self.index.offset[row] + self.index.nbytes[row]).max())
        place = -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        tar = self.open(shard)
        with self.column.blamed(shard):
            try:
                header = tarfile.TarInfo.frombuf(_bytes_at(tar, place, tarfile.BLOCKSIZE), "utf-8", "strict")
                facts = json.loads(_bytes_at(tar, place + tarfile.BLOCKSIZE, header.size))
            except (tarfile.HeaderError, ValueError):
                header, facts = tarfile.TarInfo(), None
            if header.name != f"{key}.json" or not isinstance(facts, dict):
                raise DamagedError(f"{self.path(shard)}: {key}.json is not where it belongs")
        return facts

    def read_row_into(self, row: int, targets: Sequence[tuple[int, NDArray[Any]]]) -> None:
        """Read arrays of an item into given memory. Thread-safe.

        Each checksum is verified on first read by this reader, or the one it was copied from.

        Args:
            row: the item's row in the index.
            targets: pairs of a feature number in the index and a contiguous array of that feature's size to fill.

        Raises:
            DamagedError: an array does not match its checksum, or the tar cannot be read.
        """
        self.index.check(row)
        shard = self.index.shard.item(row)
        tar = self.open(shard)
        try:
            self._fill(tar, row, targets)
            for feature, array in targets:
                if not self.checked.item(row, feature):
                    self._check(row, feature, array)
        except DamagedError as error:
            self.column.blame(shard, error)
            raise

    def _fill(self, tar: Tar, row: int, targets: Sequence[tuple[int, NDArray[Any]]]) -> None:
        """Read an item's arrays, those that lie close together in one go."""
        offset = self.index.offset
        run: list[memoryview] = []
        start = end = 0
        for at, number in sorted((offset.item(row, feature), n) for n, (feature, _) in enumerate(targets)):
            gap = at - end
            if run and gap > GAP:
                tar.read(run, start)
                run = []
            if not run:
                start = at
            elif gap:
                run.append(self._scratch[:gap].data)
            run.append(targets[number][1].data)
            end = at + run[-1].nbytes
        if run:
            tar.read(run, start)

    def open(self, shard: int) -> Tar:
        """The open tar of a shard; if the store is remote, it is fetched to the cache first.

        Raises:
            DamagedError: the tar is missing, or its size differs from its sidecar.
        """
        tar = self._tars.get(shard)
        if tar is None:
            with self.column.blamed(shard):
                tar = self._tars[shard] = Tar(self.path(shard), self.index.tar(shard)[0])
            for oldest in list(self._tars)[:-OPEN_FILES]:
                self._tars.pop(oldest, None)
        return tar

    def path(self, shard: int) -> str:
        """The local path of a shard's tar; if the store is remote, it is fetched to the cache first.

        Open the path at once: the cache may evict it later.

        Raises:
            DamagedError: the fetched tar is missing, or differs from its sidecar.
        """
        storage = self.column.storage
        if storage.local:
            return storage.path(self.column.path(shard_name(shard, "tar")))
        return cached(self.column, shard, *self.index.tar(shard))

    def _check(self, row: int, feature: int, array: NDArray[Any]) -> None:
        if xxhash.xxh3_64_intdigest(array.data) != self.index.xxh3.item(row, feature):
            tar = self.column.storage.where(self.column.path(shard_name(int(self.index.shard[row]), "tar")))
            member = f"{self.index.key(row)}.{self.index.features[feature]}"
            raise DamagedError(f"{tar}: {member} differs from its checksum")
        self.checked[row, feature] = True


def _bytes_at(tar: Tar, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    tar.read([memoryview(buffer)], offset)
    return bytes(buffer)
