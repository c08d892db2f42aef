"""One shard of a column: a plain WebDataset tar. Its sidecar (`store.sidecar`) publishes it."""

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import JsonValue

from store.sidecar import TEXT, ArrayEntry, Failure, Places, Sidecar
from store.spec import Feature, canonical_json

BLOCK_BYTES = 4 << 20


def shard_name(shard: int, suffix: str) -> str:
    """The file name of a shard: `000012.tar`, `000012.json`."""
    return f"{shard:06d}.{suffix}"


class ShardWriter:
    """Write one shard's items in order. The tar is deterministic: times, owners and member order are fixed."""

    def __init__(self, file: BinaryIO, features: Mapping[str, Feature]) -> None:
        self._file = file
        self._features = features
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self._keys: list[str] = []
        self._entries: dict[str, list[ArrayEntry]] = {name: [] for name in features}
        self._failed: list[Failure] = []

    def add(self, key: str, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, JsonValue]) -> None:
        """Add an item: `<key>.<name>.npy` for each feature (`.json` for a text), then `<key>.json` with the facts."""
        assert arrays.keys() == self._features.keys(), f"{key}: {sorted(arrays)}, not {sorted(self._features)}"
        for name, array in arrays.items():
            dtype = TEXT if array.dtype.kind == "U" else str(array.dtype)
            assert self._features[name].admits(array.shape, dtype), f"{key}.{name}: {dtype} {array.shape}"
        for name, array in arrays.items():
            self._entries[name].append(self._add_feature(f"{key}.{name}", array))
        self._add_member(f"{key}.json", canonical_json(dict(facts)))
        self._keys.append(key)

    def fail(self, failure: Failure) -> None:
        """Record an item that failed."""
        self._failed.append(failure)

    def _add_feature(self, member: str, array: NDArray[Any]) -> ArrayEntry:
        return self._add_text(member, array) if array.dtype.kind == "U" else self._add_array(member, array)

    def _add_text(self, member: str, array: NDArray[Any]) -> ArrayEntry:
        data = canonical_json(array.tolist())
        start = self._add_member(f"{member}.json", data)
        return ArrayEntry(start, array.shape, TEXT, xxhash.xxh3_64_intdigest(data), len(data))

    def _add_array(self, member: str, array: NDArray[Any]) -> ArrayEntry:
        array = np.ascontiguousarray(array)
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        start = self._add_member(f"{member}.npy", buffer.getvalue())
        header = buffer.getbuffer().nbytes - array.nbytes
        digest = xxhash.xxh3_64_intdigest(array.data)
        return ArrayEntry(start + header, array.shape, str(array.dtype), digest, array.nbytes)

    def _add_member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        start = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(data))
        return start

    def close(self, shard: int, column: str) -> Sidecar:
        """Finish the tar and return its sidecar; the whole tar is read back for its checksum."""
        self._tar.close()
        size = self._file.tell()
        self._file.seek(0)
        return Sidecar(
            shard=shard,
            column=column,
            tar_bytes=size,
            tar_xxh3=tar_checksum(self._file),
            keys=tuple(self._keys),
            arrays={name: Places.of(self._entries[name], feature) for name, feature in self._features.items()},
            failed=tuple(self._failed),
        )


def tar_checksum(file: BinaryIO) -> str:
    """The xxh3-128 of a file from its current position to its end, in hexadecimal, as in `Sidecar.tar_xxh3`."""
    digest = xxhash.xxh3_128()
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def decode_array(data: memoryview, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Decode an array from its bytes: numbers as a view, strings as a copy."""
    if dtype == TEXT:
        return np.array(json.loads(bytes(data)), np.str_).reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape)
