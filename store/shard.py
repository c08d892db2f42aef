"""One shard of a column: a plain WebDataset tar, and the sidecar that publishes it.

A shard is published if and only if its sidecar exists. The sidecar holds the offset, shape, dtype and checksum of every
array, so readers need not parse the tar; and it lists the items that failed, each with a reason.
"""

import io
import json
import math
import tarfile
from collections.abc import Mapping
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import JsonValue

from store.sealed import seal_json, unseal_json
from store.settings import Settings, parse_settings
from store.spec import FORMAT, Feature, canonical_json
from store.storage import Storage

TEXT = "text"
BLOCK_BYTES = 4 << 20
FailureCode = Literal["absent", "missing", "empty", "unreadable", "truncated", "too_large"]
FAILURE_CODES: tuple[FailureCode, ...] = get_args(FailureCode)


class ArrayEntry(Settings):
    """Where an array's data lies in the tar: numbers in C order, little-endian, or a text's JSON.

    Attributes:
        offset: start of the data, in bytes from the start of the tar.
        shape: the array's shape.
        dtype: the array's dtype; `text` for strings.
        xxh3: xxh3-64 of the data alone, without the header of the .npy file, in hexadecimal.
        size: length of a text's JSON in bytes; None for numbers, as shape and dtype give it.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str
    xxh3: str
    size: int | None = None

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.size or math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Item(Settings):
    """A usable item of a shard."""

    key: str
    arrays: dict[str, ArrayEntry]


class Failure(Settings):
    """An item that the column lacks, and why.

    The code `absent` means that the medium has no such stream by nature (a still has no sound); all others are defects.
    """

    key: str
    code: FailureCode
    reason: str


class Sidecar(Settings):
    """The content of a shard's JSON file, such as `000012.json`.

    Attributes:
        format: of the store, in which it was written.
        shard: its number.
        column: `name.digest` of its column.
        tar_bytes: size of the tar.
        tar_xxh3: xxh3-128 of the whole tar, in hexadecimal.
        items: that are usable, in the order of the tar.
        failed: the others.
    """

    format: int = FORMAT
    shard: int
    column: str
    tar_bytes: int
    tar_xxh3: str
    items: tuple[Item, ...]
    failed: tuple[Failure, ...]


def shard_name(shard: int, suffix: str) -> str:
    """The file name of a shard: `000012.tar`, `000012.json`."""
    return f"{shard:06d}.{suffix}"


class ShardWriter:
    """Write one shard's items in order. The tar is deterministic: times, owners and member order are fixed."""

    def __init__(self, file: BinaryIO, features: Mapping[str, Feature]) -> None:
        self._file = file
        self._features = features
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self._items: list[Item] = []
        self._failed: list[Failure] = []

    def add(self, key: str, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, JsonValue]) -> None:
        """Add an item: `<key>.<name>.npy` for each feature (`.json` for a text), then `<key>.json` with the facts."""
        assert arrays.keys() == self._features.keys(), f"{key}: {sorted(arrays)}, not {sorted(self._features)}"
        for name, array in arrays.items():
            dtype = TEXT if array.dtype.kind == "U" else str(array.dtype)
            assert self._features[name].admits(array.shape, dtype), f"{key}.{name}: {dtype} {array.shape}"
        entries = {name: self._add_feature(f"{key}.{name}", array) for name, array in arrays.items()}
        self._add_member(f"{key}.json", canonical_json(dict(facts)))
        self._items.append(Item(key=key, arrays=entries))

    def fail(self, failure: Failure) -> None:
        """Record an item that failed."""
        self._failed.append(failure)

    def _add_feature(self, member: str, array: NDArray[Any]) -> ArrayEntry:
        return self._add_text(member, array) if array.dtype.kind == "U" else self._add_array(member, array)

    def _add_text(self, member: str, array: NDArray[Any]) -> ArrayEntry:
        data = canonical_json(array.tolist())
        start = self._add_member(f"{member}.json", data)
        digest = xxhash.xxh3_64_hexdigest(data)
        return ArrayEntry(offset=start, shape=array.shape, dtype=TEXT, xxh3=digest, size=len(data))

    def _add_array(self, member: str, array: NDArray[Any]) -> ArrayEntry:
        array = np.ascontiguousarray(array)
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        start = self._add_member(f"{member}.npy", buffer.getvalue())
        header = buffer.getbuffer().nbytes - array.nbytes
        return ArrayEntry(
            offset=start + header,
            shape=array.shape,
            dtype=str(array.dtype),
            xxh3=xxhash.xxh3_64_hexdigest(array.data),
        )

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
            items=tuple(self._items),
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


def save_sidecar(storage: Storage, name: str, sidecar: Sidecar) -> None:
    """Write a sidecar, which publishes its shard."""
    storage.write(name, seal_json(sidecar.model_dump(mode="json", exclude_none=True)))


def load_sidecar(storage: Storage, name: str) -> Sidecar:
    """Read a sidecar.

    Raises:
        UserError: the sidecar is missing, or its format is newer.
        DamagedError: the sidecar does not match its checksum.
    """
    where = storage.where(name)
    return parse_settings(Sidecar, unseal_json(storage.read(name), FORMAT, where), where)
