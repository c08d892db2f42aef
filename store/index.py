"""The index of a column as it is used: where each array lies, in arrays of fixed width that are mapped.

The map is made once for each machine, from sidecars that match their checksums (`store.indexing`). Its name follows
from what a listing tells of them (names, sizes, times or tags), so a column that did not change is opened by a listing
alone. Beside a remote column may lie the map itself (`publish_index`), which is then copied in place of reading every
sidecar.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from store.column import Column, shards_in
from store.errors import DamagedError
from store.hashes import find, find_one, hash_key
from store.indexing import build_index, rank_of
from store.maps import Map, Texts, open_map, write_arrays
from store.shard import shard_name
from store.sidecar import FAILURE_CODES, Failure
from store.spec import ColumnSpec, canonical_json

GROUP = 4096  # rows whose places are compared with their checksums at once, when the first of them is used
PUBLISHED = "index-{}.arrow"  # in the column's folder


class ColumnIndex:
    """One row for each of a column's N usable items, in corpus order; F features with at most R dimensions.

    Attributes:
        features: the sorted names of the F features.
        failed: the failure record of each item that the column lacks, by key.
        lengths: for each feature, the first lengths of its arrays, without repetition.
        shard: the item's shard, int32 [N + M]; the M failed items follow the usable ones.
        offset: where an array's data starts in the tar, in bytes, int64 [N, F].
        shape: int32 [N, F, R], padded with ones.
        nbytes: size of an array's data, int64 [N, F].
        xxh3: checksum of an array's data, uint64 [N, F].
    """

    def __init__(self, content: Map, spec: ColumnSpec) -> None:
        arrays = content.arrays()
        self._map, self._spec = content, spec
        self._keys, self._reasons = Texts(content, arrays.pop("key")), Texts(content, arrays.pop("reason"))
        numbers = self._numbers = {name: array.to_numpy() for name, array in arrays.items()}
        for name in ("tar", "tar_bytes", "tar_xxh3", "length", "length_feature"):
            content.check(numbers[name])
        self.features = tuple(sorted(spec.features))
        rows = -1, len(self.features)
        self.shard: NDArray[np.int32] = numbers["shard"]
        self.offset: NDArray[np.int64] = numbers["offset"].reshape(rows)
        self.nbytes: NDArray[np.int64] = numbers["nbytes"].reshape(rows)
        self.xxh3: NDArray[np.uint64] = numbers["xxh3"].reshape(rows)
        self.shape: NDArray[np.int32] = numbers["shape"].reshape(*rows, rank_of(spec.features))
        self.lengths = [numbers["length"][numbers["length_feature"] == n].tolist() for n in range(len(self.features))]
        self.failed: Mapping[str, Failure] = _Failures(self)
        self._sound = np.zeros(-(-len(self) // GROUP), bool)

    def __reduce__(self) -> tuple[Any, ...]:
        return ColumnIndex, (self._map, self._spec)

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def maps(self) -> dict[str, int]:
        """Sizes in bytes of what is mapped, by path."""
        return dict([self._map.size])

    def key(self, row: int) -> str:
        """The key of a row."""
        return self._keys[row]

    def keys(self) -> list[str]:
        """The keys of the usable items, in corpus order. Slow, and large."""
        return self._keys.slice(0, len(self))

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The rows of keys with these hashes (`hash_keys`), int32; N or more of a failed item, -1 of any other key."""
        known, rows = self._hashes
        places = find(known, hashes)
        return np.where(places < 0, np.int32(-1), rows[places] if len(rows) else np.int32(-1))

    def row(self, key: str) -> int:
        """The row of an item, as `find`; the key itself is compared too."""
        known, rows = self._hashes
        place = find_one(known, hash_key(key))
        row = rows.item(place) if place >= 0 else -1
        return row if row >= 0 and self._keys[row] == key else -1

    @cached_property
    def _hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """The sorted hashes of all keys, and their rows; both are compared with their checksums once."""
        known, rows = self._numbers["hash"], self._numbers["row"]
        self._map.check(known)
        self._map.check(rows)
        return known.reshape(-1, 2), rows

    def check(self, row: int) -> None:
        """Compare with its checksum what the index says of a row.

        Raises:
            DamagedError: the map was damaged.
        """
        group = row // GROUP
        if not self._sound.item(group):
            for array in (self.shard, self.offset, self.shape, self.nbytes, self.xxh3):
                self._map.check(array[group * GROUP : (group + 1) * GROUP])
            self._sound[group] = True

    def tar(self, shard: int) -> tuple[int, str]:
        """The size in bytes of a shard's tar, and its xxh3-128."""
        place = int(np.searchsorted(self._numbers["tar"], shard))
        return self._numbers["tar_bytes"].item(place), self._numbers["tar_xxh3"][2 * place :][:2].tobytes().hex()

    @property
    def tar_bytes(self) -> int:
        """The size in bytes of all tars."""
        return int(self._numbers["tar_bytes"].sum())

    def codes(self) -> NDArray[np.uint8]:
        """The number in `FAILURE_CODES` of each failed item's code, uint8 [M]."""
        self._map.check(self._numbers["code"])
        codes: NDArray[np.uint8] = self._numbers["code"]
        return codes

    def failure(self, row: int) -> Failure:
        """The record of a failed item's row."""
        number = row - len(self)
        code = FAILURE_CODES[self.codes().item(number)]
        return Failure(key=self._keys[row], code=code, reason=self._reasons[number])


class _Failures(Mapping[str, Failure]):
    """The failure records of a column, by key."""

    def __init__(self, index: ColumnIndex) -> None:
        self._index = index

    def __getitem__(self, key: str) -> Failure:
        row = self._index.row(key)
        if row < len(self._index):
            raise KeyError(key)
        return self._index.failure(row)

    def __iter__(self) -> Iterator[str]:
        return map(self._index.key, range(len(self._index), len(self._index.shard)))

    def __len__(self) -> int:
        return len(self._index.shard) - len(self._index)


def open_index(column: Column) -> ColumnIndex:
    """Open the index of a column, which is made first if this machine has none of the column as it is now.

    Raises:
        DamagedError: a sidecar is damaged, or belongs to another column.
        UserError: the cache cannot be written.
    """
    files = column.files()
    digest = _digest(column, files)
    published = PUBLISHED.format(digest)

    def make(path: Path) -> None:
        if not (published in files and _fetched(column, published, path)):
            write_arrays(path, build_index(column, shards_in(files)))

    return ColumnIndex(open_map(f"{digest}.index", make), column.spec)


def publish_index(column: Column) -> None:
    """Put the index beside a remote column, so that other machines open it by one large read; remove older ones."""
    if column.storage.local:
        return
    files = column.files()
    name = PUBLISHED.format(_digest(column, files))
    others = [n for n in files if re.fullmatch(PUBLISHED.format("[0-9a-f]+"), n)]
    if name not in others:
        with column.storage.writing(column.path(name)) as temporary:
            write_arrays(temporary, build_index(column, shards_in(files)))
    for other in others:
        if other != name:
            column.storage.remove(column.path(other))


def _fetched(column: Column, name: str, path: Path) -> bool:
    """Copy a published index; whether it arrived whole and sound."""
    try:
        column.storage.fetch(column.path(name), path)
        Map(path).check_all()
    except (DamagedError, FileNotFoundError):  # damaged, or another machine has just replaced it
        return False
    return True


def _digest(column: Column, files: Mapping[str, str]) -> str:
    """Names a column as it is now, by what a listing tells of its sidecars."""
    sidecars = [files.get(shard_name(shard, "json")) for shard in shards_in(files)]
    return xxhash.xxh3_128_hexdigest(canonical_json([column.spec.fingerprint, shards_in(files), sidecars]))
