"""Where every array of a column lies: what its sidecars say, in fixed-width arrays of numpy."""

import itertools
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from store.column import FETCHED_AT_ONCE, Column
from store.errors import DamagedError
from store.sealed import check_format, sealed_body
from store.settings import parse_settings
from store.shard import TEXT, Failure, Sidecar, shard_name
from store.spec import FORMAT, Feature

ITEMS, REST = b',"items":[', b'],"shard":'  # around the items, in canonical JSON; within a string a quote is escaped
FORMAT_FIELD = re.compile(rb'"format":([0-9]+)')


@dataclass(frozen=True)
class ColumnIndex:
    """The N usable items of a column are its rows, in the corpus's order; F features of at most R dimensions.

    Attributes:
        features: the names of the F features, sorted.
        row: the row of each usable key.
        failed: the record of each item that the column does not hold.
        tars: for each shard, the size of its tar in bytes and its xxh3-128.
        shard: int32 [N].
        offset: where an array's numbers begin in the tar, bytes, int64 [N, F].
        shape: int64 [N, F, R], filled up with ones.
        nbytes: int64 [N, F].
        xxh3: uint64 [N, F].
    """

    features: tuple[str, ...]
    row: dict[str, int]
    failed: dict[str, Failure]
    tars: dict[int, tuple[int, str]]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    shape: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    xxh3: NDArray[np.uint64]

    def key(self, row: int) -> str:
        """The key of a row, slowly: for messages."""
        return next(itertools.islice(self.row, row, None))


def build_index(column: Column) -> ColumnIndex:
    """Read a column's sidecars, compare them with its spec, and their arrays with the sizes of the tars.

    An item is taken apart by one regular expression that the spec gives: an eighth of the time of JSON and objects, and
    what the spec does not admit does not match.

    Raises:
        DamagedError: a sidecar is damaged, or is not one of this column.
    """
    features = dict(sorted(column.spec.features.items()))
    pattern, fingerprint = _item_pattern(features), column.spec.fingerprint
    row: dict[str, int] = {}
    failed: dict[str, Failure] = {}
    tars: dict[int, tuple[int, str]] = {}
    parts = [_Part.of([], features)]
    shards = [np.empty(0, np.int32)]
    for shard, where, content in _sidecars(column):
        check_format(int(FORMAT_FIELD.findall(content)[0]), FORMAT, where)
        head, _, rest = content.partition(ITEMS)
        items, _, tail = rest.rpartition(REST)
        sidecar = parse_settings(Sidecar, json.loads(head + ITEMS + REST + tail), where)
        part = _Part.of(pattern.findall(items), features)
        first, count = len(row), len(part.keys)
        row |= zip(part.keys, range(first, first + count), strict=True)
        failed |= {failure.key: failure for failure in sidecar.failed}
        tars[shard] = sidecar.tar_bytes, sidecar.tar_xxh3
        if (sidecar.shard, sidecar.column) != (shard, fingerprint):
            raise DamagedError(f"{where}: was written for another shard or another spec")
        if count != items.count(b'"key":') or (part.offset + part.nbytes > sidecar.tar_bytes).any():
            raise DamagedError(f"{where}: holds arrays that the column's spec or the size of the tar does not admit")
        if len(row) != first + count:
            raise DamagedError(f"{where}: holds a key twice, or one that another shard holds")
        parts.append(part)
        shards.append(np.full(count, shard, np.int32))
    return ColumnIndex(
        features=tuple(features),
        row=row,
        failed=failed,
        tars=tars,
        shard=np.concatenate(shards),
        offset=np.concatenate([part.offset for part in parts]),
        shape=np.concatenate([part.shape for part in parts]),
        nbytes=np.concatenate([part.nbytes for part in parts]),
        xxh3=np.concatenate([part.xxh3 for part in parts]),
    )


def _sidecars(column: Column) -> Iterator[tuple[int, str, bytes]]:
    """Each shard's number, the full name of its sidecar, and what that holds."""
    storage, shards = column.storage, column.shards()
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        for first in range(0, len(shards), FETCHED_AT_ONCE):
            some = shards[first : first + FETCHED_AT_ONCE]
            names = [column.path(shard_name(shard, "json")) for shard in some]
            read = map(storage.read, names) if storage.local else pool.map(storage.read, names)
            for shard, name, data in zip(some, names, read, strict=True):
                yield shard, storage.where(name), sealed_body(data, storage.where(name))


def _item_pattern(features: dict[str, Feature]) -> re.Pattern[bytes]:
    """An item as it stands in a sidecar; groups: offset, lengths that vary, bytes of a text and checksum of each array;
    then the key.
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
    """The items of one shard, as in `ColumnIndex`."""

    keys: list[str]
    offset: NDArray[np.int64]
    shape: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    xxh3: NDArray[np.uint64]

    @classmethod
    def of(cls, found: list[tuple[bytes, ...]], features: dict[str, Feature]) -> "_Part":
        """From the groups of `_item_pattern` for each item."""
        size = len(found), len(features)
        offset, xxh3 = np.empty(size, np.int64), np.empty(size, np.uint64)
        shape = np.ones((*size, max(len(feature.shape) for feature in features.values())), np.int64)
        nbytes = np.empty(size, np.int64)
        groups = iter(zip(*found, strict=True))
        for number, feature in enumerate(features.values() if found else ()):
            offset[:, number] = np.array(next(groups)).astype(np.int64)
            for dimension, length in enumerate(feature.shape):
                shape[:, number, dimension] = np.array(next(groups)).astype(np.int64) if length is None else length
            if feature.dtype == TEXT:
                nbytes[:, number] = np.array(next(groups)).astype(np.int64)
            else:
                nbytes[:, number] = shape[:, number].prod(axis=1) * np.dtype(feature.dtype).itemsize
            xxh3[:, number] = np.frombuffer(bytes.fromhex(b"".join(next(groups)).decode()), ">u8")
        keys = [key.decode() for key in next(groups, ())]
        return cls(keys, offset, shape, nbytes, xxh3)
