"""One shard of a column: a plain WebDataset tar, and the sidecar that makes it visible.

A shard is there if and only if its sidecar is. The sidecar holds the offset, shape, dtype and checksum of every array,
so a reader needs no tar parsing, and the items that failed, each with its reason.
"""

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any, BinaryIO, Literal

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


class ArrayEntry(Settings):
    """Where an array's numbers lie in the tar (bytes from its start), C order, little-endian; or a text's JSON.

    Attributes:
        size: bytes of a text; of an array they follow from shape and dtype, and the sidecar does not repeat them.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str
    xxh3: str
    size: int | None = None


class Item(Settings):
    """A usable item of a shard."""

    key: str
    arrays: dict[str, ArrayEntry]


class Failure(Settings):
    """An item that the column does not hold.

    `absent` says that the medium has no such stream by nature (a still has no sound); the other codes are defects.
    """

    key: str
    code: FailureCode
    reason: str


class Sidecar(Settings):
    """What `000012.json` holds."""

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
    """Write one shard's items in order. Equal items give equal bytes: times, owners and order are fixed."""

    def __init__(self, file: BinaryIO, features: Mapping[str, Feature]) -> None:
        self._file = file
        self._features = features
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self._items: list[Item] = []
        self._failed: list[Failure] = []

    def add(self, key: str, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, JsonValue]) -> None:
        """Add an item: `<key>.<name>.npy` (of a text `.json`) for each feature, then `<key>.json` with the facts."""
        assert arrays.keys() == self._features.keys(), f"{key}: {sorted(arrays)}, not {sorted(self._features)}"
        for name, array in arrays.items():
            dtype = TEXT if array.dtype.kind == "U" else str(array.dtype)
            assert self._features[name].admits(array.shape, dtype), f"{key}.{name}: {dtype} {array.shape}"
        entries = {name: self._add_feature(f"{key}.{name}", array) for name, array in arrays.items()}
        self._add_member(f"{key}.json", canonical_json(dict(facts)))
        self._items.append(Item(key=key, arrays=entries))

    def fail(self, failure: Failure) -> None:
        """Record an item that the shard does not hold."""
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
        """End the tar and describe it; the checksum of the whole tar is taken by reading it back."""
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
    """The xxh3-128 of a file from where it stands to its end, as a sidecar's `tar_xxh3` has it."""
    digest = xxhash.xxh3_128()
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def decode_array(data: memoryview, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array out of its bytes: a view of them; strings are copied."""
    if dtype == TEXT:
        return np.array(json.loads(bytes(data)), np.str_).reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape)


def save_sidecar(storage: Storage, name: str, sidecar: Sidecar) -> None:
    """Publish a sidecar, and with it its shard."""
    storage.write(name, seal_json(sidecar.model_dump(mode="json", exclude_none=True)))


def load_sidecar(storage: Storage, name: str) -> Sidecar:
    """Read a sidecar.

    Raises:
        UserError: it is missing, or of a newer format.
        DamagedError: it is not what was written.
    """
    where = storage.where(name)
    return parse_settings(Sidecar, unseal_json(storage.read(name), FORMAT, where), where)
