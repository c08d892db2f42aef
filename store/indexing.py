"""Makes what `store.index` maps: reads a column's sidecars into the arrays of its index."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from store.column import FETCHED_AT_ONCE, Column
from store.errors import DamagedError
from store.hashes import hash_keys
from store.sealed import check_format, sealed_body
from store.settings import parse_settings
from store.shard import FAILURE_CODES, TEXT, Sidecar, shard_name
from store.spec import FORMAT, Feature

ITEMS, REST = b',"items":[', b'],"shard":'  # around the items in canonical JSON; no string matches: quotes are escaped
FORMAT_FIELD = re.compile(rb'"format":([0-9]+)')


def rank_of(features: Mapping[str, Feature]) -> int:
    """The largest number of dimensions of a column's features."""
    return max(len(feature.shape) for feature in features.values())


def build_index(column: Column, shards: Sequence[int]) -> dict[str, pa.Array]:
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
    for shard, where, data in _sidecars(column, shards):
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


def _sidecars(column: Column, shards: Sequence[int]) -> Iterator[tuple[int, str, bytes]]:
    """For each shard: its number, and its sidecar's full path and content."""
    storage = column.storage
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
        shape = np.ones((*size, rank_of(features)), np.int32)
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
