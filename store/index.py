"""Index of a column: where each array lies, read from the sidecars into arrays of fixed width that are mapped.

The map is made once for each machine, from sidecars that match their checksums. Its name follows from what a listing
tells of them (names, sizes, times or tags), so a column that did not change is opened by a listing alone. Beside a
remote column may lie the map itself (`publish_index`), which is then copied in place of reading every sidecar.
"""

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from store.column import FETCHED_AT_ONCE, Column
from store.errors import DamagedError
from store.hashes import find, hash_keys
from store.maps import Map, Texts, open_map, write_arrays
from store.sealed import check_format, sealed_body
from store.settings import parse_settings
from store.shard import FAILURE_CODES, TEXT, Failure, Sidecar, shard_name
from store.spec import FORMAT, ColumnSpec, Feature, canonical_json

ITEMS, REST = b',"items":[', b'],"shard":'  # around the items in canonical JSON; no string matches: quotes are escaped
FORMAT_FIELD = re.compile(rb'"format":([0-9]+)')
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
        self.shape: NDArray[np.int32] = numbers["shape"].reshape(*rows, _rank(spec))
        self.lengths = [numbers["length"][numbers["length_feature"] == n].tolist() for n in range(len(self.features))]
        self.failed: Mapping[str, Failure] = _Failures(self)
        self._sound = np.zeros(-(-len(self) // GROUP), bool)

    def __reduce__(self) -> tuple[Any, ...]:
        return ColumnIndex, (self._map, self._spec)

    def __len__(self) -> int:
        return len(self.offset)

    def key(self, row: int) -> str:
        """The key of a row."""
        return self._keys[row]

    def keys(self) -> list[str]:
        """The keys of the usable items, in corpus order. Slow, and large."""
        return self._keys.slice(0, len(self))

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The rows of keys with these hashes (`hash_keys`), int32; N or more of a failed item, -1 of any other key."""
        known, rows = self._numbers["hash"], self._numbers["row"]
        self._map.check(known)
        self._map.check(rows)
        places = find(known.reshape(-1, 2), hashes)
        return np.where(places < 0, np.int32(-1), rows[places] if len(rows) else np.int32(-1))

    def row(self, key: str) -> int:
        """The row of an item, as `find`; the key itself is compared too."""
        row = int(self.find(hash_keys(pa.array([key], pa.string())))[0])
        return row if row >= 0 and self._keys[row] == key else -1

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
            write_arrays(path, build_index(column))

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
            write_arrays(temporary, build_index(column))
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
    sidecars = {name: mark for name, mark in files.items() if re.fullmatch(r"[0-9]+\.json", name)}
    return xxhash.xxh3_128_hexdigest(canonical_json([column.spec.fingerprint, sidecars]))


def _rank(spec: ColumnSpec) -> int:
    return max(len(feature.shape) for feature in spec.features.values())


def build_index(column: Column) -> dict[str, pa.Array]:
    """Read a column's sidecars; check them against its spec, and the arrays' extents against the tar sizes.

    Items are parsed with one regular expression built from the spec. That takes an eighth of the time of JSON and
    objects, and items that the spec does not admit do not match.

    Returns:
        the arrays of an index's map.

    Raises:
        DamagedError: a sidecar is damaged, or belongs to another column.
    """
    features = dict(sorted(column.spec.features.items()))
    pattern = _item_pattern(features)
    parts: list[_Part] = []
    sidecars: list[Sidecar] = []
    for shard, where, data in _sidecars(column):
        with column.blamed(shard):
            content = sealed_body(data, where)
            check_format(int(FORMAT_FIELD.findall(content)[0]), FORMAT, where)
            head, _, rest = content.partition(ITEMS)
            items, _, tail = rest.rpartition(REST)
            sidecar = parse_settings(Sidecar, json.loads(head + ITEMS + REST + tail), where)
            part = _Part.of(pattern.findall(items), features)
            if (sidecar.shard, sidecar.column) != (shard, column.spec.fingerprint):
                raise DamagedError(f"{where}: was written for another shard or another spec")
            if len(part.keys) != items.count(b'"key":') or (part.offset + part.nbytes > sidecar.tar_bytes).any():
                raise DamagedError(
                    f"{where}: holds arrays that the column's spec or the size of the tar does not admit"
                )
            sidecars.append(sidecar)
            parts.append(part)
    arrays = _join(column, sidecars, parts or [_Part.of([], features)])
    parts.clear()
    return arrays


def _join(column: Column, sidecars: list[Sidecar], parts: list["_Part"]) -> dict[str, pa.Array]:
    """The arrays of an index's map, from all shards."""
    failed = [failure for sidecar in sidecars for failure in sidecar.failed]
    counts = [*(len(part.keys) for part in parts[: len(sidecars)]), *(len(sidecar.failed) for sidecar in sidecars)]
    shard = np.repeat(np.array([sidecar.shard for sidecar in sidecars] * 2, np.int32), counts)
    keys = pa.concat_arrays([*(part.keys for part in parts), pa.array([f.key for f in failed], pa.large_string())])
    hashes = hash_keys(keys)
    order = _sorted(column, hashes, shard)
    shape = np.concatenate([part.shape for part in parts])
    lengths = [np.unique(shape[:, n, 0]) for n in range(shape.shape[1])]
    tars = np.frombuffer(bytes.fromhex("".join(sidecar.tar_xxh3 for sidecar in sidecars)), np.uint64)
    numbers = {
        "hash": hashes[order],
        "row": order.astype(np.int32),
        "shard": shard,
        "offset": np.concatenate([part.offset for part in parts]),
        "shape": shape,
        "nbytes": np.concatenate([part.nbytes for part in parts]),
        "xxh3": np.concatenate([part.xxh3 for part in parts]),
        "code": np.array([FAILURE_CODES.index(f.code) for f in failed], np.uint8),
        "tar": np.array([sidecar.shard for sidecar in sidecars], np.int64),
        "tar_bytes": np.array([sidecar.tar_bytes for sidecar in sidecars], np.int64),
        "tar_xxh3": tars,
        "length": np.concatenate(lengths),
        "length_feature": np.repeat(np.arange(len(lengths)), list(map(len, lengths))),
    }
    texts = {"key": keys, "reason": pa.array([f.reason for f in failed], pa.large_string())}
    return texts | {name: pa.array(array.ravel()) for name, array in numbers.items()}


def _sorted(column: Column, hashes: NDArray[np.uint64], shard: NDArray[np.int32]) -> NDArray[np.int64]:
    """The order that sorts the hashes.

    Raises:
        DamagedError: a key is there twice.
    """
    order: NDArray[np.int64] = np.lexsort((hashes[:, 1], hashes[:, 0]))
    twice = np.flatnonzero((hashes[order[1:]] == hashes[order[:-1]]).all(axis=1))
    if len(twice):
        number = int(shard[order[twice[0] : twice[0] + 2]].max())
        where = column.storage.where(column.path(shard_name(number, "json")))
        with column.blamed(number):
            raise DamagedError(f"{where}: holds a key twice, or one that another shard holds")
    return order


def _sidecars(column: Column) -> Iterator[tuple[int, str, bytes]]:
    """For each shard: its number, and its sidecar's full path and content."""
    storage, shards = column.storage, column.shards()
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        for first in range(0, len(shards), FETCHED_AT_ONCE):
            batch = shards[first : first + FETCHED_AT_ONCE]
            names = [column.path(shard_name(shard, "json")) for shard in batch]
            contents = map(storage.read, names) if storage.local else pool.map(storage.read, names)
            for shard, name, data in zip(batch, names, contents, strict=True):
                yield shard, storage.where(name), data


def _item_pattern(features: dict[str, Feature]) -> re.Pattern[bytes]:
    """Match an item in a sidecar. Groups: for each array its offset, varying lengths, text size and checksum; last the
    key.
    """
    arrays = []
    for name, feature in features.items():
        lengths = ",".join("([0-9]{1,9})" if n is None else str(n) for n in feature.shape)
        size = ',"size":([0-9]{1,12})' if feature.dtype == TEXT else ""
        place = rf'"dtype":"{feature.dtype}","offset":([0-9]{{1,15}}),"shape":\[{lengths}\]{size}'
        arrays.append(rf'"{re.escape(name)}":{{{place},"xxh3":"([0-9a-f]{{16}})"}}')
    return re.compile((r'{"arrays":{' + ",".join(arrays) + r'},"key":"([^"\\]+)"}').encode())


@dataclass(frozen=True)
class _Part:
    """The rows of one shard; fields as in `ColumnIndex`."""

    keys: pa.LargeStringArray
    offset: NDArray[np.int64]
    shape: NDArray[np.int32]
    nbytes: NDArray[np.int64]
    xxh3: NDArray[np.uint64]

    @classmethod
    def of(cls, matches: list[tuple[bytes, ...]], features: dict[str, Feature]) -> "_Part":
        """Convert the groups of `_item_pattern`, one tuple per item."""
        size = len(matches), len(features)
        offset, xxh3 = np.empty(size, np.int64), np.empty(size, np.uint64)
        shape = np.ones((*size, max(len(feature.shape) for feature in features.values())), np.int32)
        nbytes = np.empty(size, np.int64)
        groups = iter(zip(*matches, strict=True))
        for number, feature in enumerate(features.values() if matches else ()):
            offset[:, number] = np.array(next(groups)).astype(np.int64)
            for dimension, length in enumerate(feature.shape):
                shape[:, number, dimension] = np.array(next(groups)).astype(np.int64) if length is None else length
            if feature.dtype == TEXT:
                nbytes[:, number] = np.array(next(groups)).astype(np.int64)
            else:
                nbytes[:, number] = shape[:, number].prod(axis=1, dtype=np.int64) * np.dtype(feature.dtype).itemsize
            xxh3[:, number] = np.frombuffer(bytes.fromhex(b"".join(next(groups)).decode()), ">u8")
        keys = pa.array(next(groups, ()), pa.large_binary()).cast(pa.large_string())
        return cls(keys, offset, shape, nbytes, xxh3)
