"""One shard of a column: a plain WebDataset tar, and the sidecar that makes it visible.

A shard is there if and only if its sidecar is. The sidecar holds the offset, shape, dtype and checksum of every array,
so a reader needs no tar parsing, and the items that failed, each with its reason. `xxh3` in it is of the rest of it.
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

from store.errors import DamagedError
from store.settings import Settings, parse_settings
from store.spec import Feature, canonical_json
from store.storage import Storage

FailureCode = Literal["absent", "missing", "empty", "unreadable", "truncated", "too_large"]


class ArrayEntry(Settings):
    """Where an array's numbers lie in the tar (bytes from its start), C order, little-endian."""

    offset: int
    shape: tuple[int, ...]
    dtype: str
    xxh3: str


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

    format: Literal[1] = 1
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
        """Add an item: `<key>.<name>.npy` for each array, then `<key>.json` with the facts."""
        assert arrays.keys() == self._features.keys(), f"{key}: {sorted(arrays)}, not {sorted(self._features)}"
        for name, array in arrays.items():
            assert self._features[name].admits(array.shape, str(array.dtype)), (
                f"{key}.{name}: {array.dtype} {array.shape}"
            )
        entries = {name: self._add_array(f"{key}.{name}.npy", array) for name, array in arrays.items()}
        self._add_member(f"{key}.json", canonical_json(dict(facts)))
        self._items.append(Item(key=key, arrays=entries))

    def fail(self, failure: Failure) -> None:
        """Record an item that the shard does not hold."""
        self._failed.append(failure)

    def _add_array(self, member: str, array: NDArray[Any]) -> ArrayEntry:
        array = np.ascontiguousarray(array)
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        start = self._add_member(member, buffer.getvalue())
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
        digest = xxhash.xxh3_128()
        while block := self._file.read(1 << 20):
            digest.update(block)
        return Sidecar(
            shard=shard,
            column=column,
            tar_bytes=size,
            tar_xxh3=digest.hexdigest(),
            items=tuple(self._items),
            failed=tuple(self._failed),
        )


def save_sidecar(storage: Storage, name: str, sidecar: Sidecar) -> None:
    """Publish a sidecar, and with it its shard."""
    content = sidecar.model_dump(mode="json")
    checksum = xxhash.xxh3_64_hexdigest(canonical_json(content))
    storage.write(name, canonical_json(content | {"xxh3": checksum}))


def load_sidecar(storage: Storage, name: str) -> Sidecar:
    """Read a sidecar.

    Raises:
        UserError: it is missing, damaged or of another format.
    """
    where = storage.where(name)
    return parse_settings(Sidecar, json.loads(sound_content(storage.read(name), where)), where)


def sound_content(data: bytes, where: str) -> bytes:
    """The canonical JSON of a `Sidecar` out of its file, which adds the checksum as the last field.

    Raises:
        DamagedError: these are not the bytes that were written.
    """
    content, mark, stated = data.rpartition(b',"xxh3":')
    content += b"}"
    if not mark or stated != b'"%s"}' % xxhash.xxh3_64_hexdigest(content).encode():
        raise DamagedError(f"{where}: differs from its checksum")
    return content
