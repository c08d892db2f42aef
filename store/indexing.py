"""Makes what `store.index` maps: reads a column's sidecars into the arrays of its index."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from store.column import FETCHED_AT_ONCE, Column
from store.errors import DamagedError
from store.hashes import hash_keys
from store.shard import shard_name
from store.sidecar import FAILURE_CODES, Sidecar, parse_sidecar
from store.spec import Feature


def rank_of(features: Mapping[str, Feature]) -> int:
    """The largest number of dimensions of a column's features."""
    return max(len(feature.shape) for feature in features.values())


def build_index(column: Column, shards: Sequence[int]) -> dict[str, pa.Array]:
    """Read a column's sidecars; check them against its spec, and the arrays' extents against the tar sizes.

    Returns:
        the arrays of an index's map.

    Raises:
        DamagedError: a sidecar is damaged, or belongs to another column.
    """
    sidecars = []
    for shard, where, data in _sidecars(column, shards):
        with column.blamed(shard):
            sidecar = parse_sidecar(data, where)
            if (sidecar.shard, sidecar.column) != (shard, column.spec.fingerprint):
                raise DamagedError(f"{where}: was written for another shard or another spec")
            if name := sidecar.misfit(column.spec.features):
                raise DamagedError(f"{where}: its arrays {name!r} do not fit the column's spec or the tar's size")
            sidecars.append(sidecar)
    return _join(column, sidecars)


def _join(column: Column, sidecars: list[Sidecar]) -> dict[str, pa.Array]:
    """The arrays of an index's map, from all shards."""
    features = sorted(column.spec.features)
    failed = [failure for sidecar in sidecars for failure in sidecar.failed]
    usable = [sidecar for sidecar in sidecars if sidecar.keys]
    counts = [*(len(sidecar.keys) for sidecar in sidecars), *(len(sidecar.failed) for sidecar in sidecars)]
    shard = np.repeat(np.array([sidecar.shard for sidecar in sidecars] * 2, np.int32), counts)
    names = itertools.chain(*(sidecar.keys for sidecar in sidecars), (failure.key for failure in failed))
    keys = pa.array(names, pa.large_string())
    hashes = hash_keys(keys)
    order = _sorted(column, hashes, shard)

    def joined(field: str, dtype: DTypeLike) -> NDArray[Any]:
        """One number of every array, [N, F]."""
        parts = [np.stack([getattr(sidecar.arrays[n], field) for n in features], 1) for sidecar in usable]
        whole: NDArray[Any] = np.concatenate([np.empty((0, len(features)), dtype), *parts])
        return whole

    shape = np.ones((sum(counts[: len(sidecars)]), len(features), rank_of(column.spec.features)), np.int32)
    for number, name in enumerate(features):
        lengths = [sidecar.arrays[name].shape for sidecar in usable]
        if lengths:
            shape[:, number, : lengths[0].shape[1]] = np.concatenate(lengths)
    lengths = [np.unique(shape[:, n, 0]) for n in range(len(features))]
    tars = np.frombuffer(bytes.fromhex("".join(sidecar.tar_xxh3 for sidecar in sidecars)), np.uint64)
    numbers: dict[str, NDArray[Any]] = {
        "hash": hashes[order],
        "row": order.astype(np.int32),
        "shard": shard,
        "offset": joined("offset", np.int64),
        "shape": shape,
        "nbytes": joined("nbytes", np.int64),
        "xxh3": joined("xxh3", np.uint64),
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
