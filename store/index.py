"""Index of a column: where each array lies, read from the sidecars into fixed-width numpy arrays."""

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

ITEMS, REST = b',"items":[', b'],"shard":'  # around the items in canonical JSON; no string matches: quotes are escaped
FORMAT_FIELD = re.compile(rb'"format":([0-9]+)')


@dataclass(frozen=True)
class ColumnIndex:
    """One row for each of a column's N usable items, in corpus order; F features with at most R dimensions.

    Attributes:
        features: the sorted names of the F features.
        row: the row of each usable item, by key.
        failed: the failure record of each item that the column lacks, by key.
        tars: per shard, the tar's size in bytes and its xxh3-128.
        shard: the item's shard, int32 [N].
        offset: where an array's data starts in the tar, in bytes, int64 [N, F].
        shape: int64 [N, F, R], padded with ones.
        nbytes: size of an array's data, int64 [N, F].
        xxh3: checksum of an array's data, uint64 [N, F].
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
        """The key of a row. Slow: use it only for messages."""
        return next(itertools.islice(self.row, row, None))


def build_index(column: Column) -> ColumnIndex:
    """Read a column's sidecars; check them against its spec, and the arrays' extents against the tar sizes.

    Items are parsed with one regular expression built from the spec. That takes an eighth of the time of JSON and
    objects, and items that the spec does not admit do not match.

    Raises:
        DamagedError: a sidecar is damaged, or belongs to another column.
    """
    features = dict(sorted(column.spec.features.items()))
    pattern, fingerprint = _item_pattern(features), column.spec.fingerprint
    row: dict[str, int] = {}
    failed: dict[str, Failure] = {}
    tars: dict[int, tuple[int, str]] = {}
    parts = [_Part.of([], features)]
    shards = [np.empty(0, np.int32)]
    for shard, where, data in _sidecars(column):
        with column.blamed(shard):
            content = sealed_body(data, where)
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
                raise DamagedError(
                    f"{where}: holds arrays that the column's spec or the size of the tar does not admit"
                )
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

    keys: list[str]
    offset: NDArray[np.int64]
    shape: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    xxh3: NDArray[np.uint64]

    @classmethod
    def of(cls, matches: list[tuple[bytes, ...]], features: dict[str, Feature]) -> "_Part":
        """Convert the groups of `_item_pattern`, one tuple per item."""
        size = len(matches), len(features)
        offset, xxh3 = np.empty(size, np.int64), np.empty(size, np.uint64)
        shape = np.ones((*size, max(len(feature.shape) for feature in features.values())), np.int64)
        nbytes = np.empty(size, np.int64)
        groups = iter(zip(*matches, strict=True))
        for number, feature in enumerate(features.values() if matches else ()):
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
