"""A shard's sidecar: where each array lies in the tar, its checksum, and the items that failed, each with a reason.

A shard is published if and only if its sidecar exists. Readers need not parse the tar. Format 1 has a record for each
item; format 2 has lists over all items, which are read several times as fast. Both are read; format 2 is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from store.errors import DamagedError
from store.sealed import seal_json, unseal_json
from store.settings import Settings, parse_settings
from store.spec import Feature
from store.storage import Storage

FORMAT = 2  # of sidecars
TEXT = "text"
FailureCode = Literal["absent", "missing", "empty", "unreadable", "truncated", "too_large"]
FAILURE_CODES: tuple[FailureCode, ...] = get_args(FailureCode)
Number = Annotated[int, Field(ge=0, lt=1 << 62)]
Length = Annotated[int, Field(ge=0, lt=1 << 31)]


class Failure(Settings):
    """An item that the column lacks, and why.

    The code `absent` means that the medium has no such stream by nature (a still has no sound); all others are defects.
    """

    key: str
    code: FailureCode
    reason: str


class ArrayEntry(NamedTuple):
    """Where an array's data lies in the tar: numbers in C order, little-endian, or a text's JSON.

    Attributes:
        offset: start of the data, in bytes from the start of the tar.
        shape: the array's shape.
        dtype: the array's dtype; `text` for strings.
        xxh3: xxh3-64 of the data alone, without the header of the .npy file.
        nbytes: size of the data in bytes.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str
    xxh3: int
    nbytes: int


class Item(NamedTuple):
    """A usable item of a shard."""

    key: str
    arrays: dict[str, ArrayEntry]


class _PlacesFile(Settings):
    """`Places` as the file has them.

    Attributes:
        dtype: of all the arrays.
        offset: of each.
        shape: for each dimension the length that all have, or one for each.
        size: length of each text's JSON in bytes; None for numbers, as shape and dtype give it.
        xxh3: of each, 16 hexadecimal digits, one after another.
    """

    dtype: Literal["float16", "float32", "text"]
    offset: tuple[Number, ...]
    shape: tuple[Length | tuple[Length, ...], ...]
    size: tuple[Number, ...] | None = None
    xxh3: Annotated[str, Field(pattern="^([0-9a-f]{16})*$")]


class _File(Settings):
    format: int
    shard: int
    column: str
    tar_bytes: int
    tar_xxh3: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    keys: tuple[str, ...]
    arrays: dict[str, _PlacesFile]
    failed: tuple[Failure, ...]


@dataclass(frozen=True, eq=False)
class Places:
    """Where the arrays of one feature lie, for each of N items; R dimensions.

    Attributes:
        dtype: of all of them; `text` for strings.
        offset: start of the data in the tar, in bytes, int64 [N].
        shape: int64 [N, R].
        nbytes: size of the data, int64 [N].
        xxh3: checksum of the data, uint64 [N].
    """

    dtype: str
    offset: NDArray[np.int64]
    shape: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    xxh3: NDArray[np.uint64]

    @classmethod
    def of(cls, entries: Sequence[ArrayEntry], feature: Feature) -> Self:
        """Those of entries that a feature admits."""
        offset, shape, _, xxh3, nbytes = zip(*entries, strict=True) if entries else ((),) * 5
        shapes = np.array(shape, np.int64).reshape(len(entries), len(feature.shape))
        return cls(
            feature.dtype, np.array(offset, np.int64), shapes, np.array(nbytes, np.int64), np.array(xxh3, np.uint64)
        )

    def entry(self, row: int) -> ArrayEntry:
        """The entry of one item."""
        shape = tuple(self.shape[row].tolist())
        return ArrayEntry(self.offset.item(row), shape, self.dtype, self.xxh3.item(row), self.nbytes.item(row))

    def admitted_by(self, feature: Feature) -> bool:
        """Whether all the arrays match a feature."""
        fixed = [n for n, length in enumerate(feature.shape) if length is not None]
        wanted = [feature.shape[n] for n in fixed]
        sized = self.shape.shape[1] == len(feature.shape) and bool((self.shape[:, fixed] == wanted).all())
        return sized and self.dtype == feature.dtype

    def dump(self) -> dict[str, Any]:
        """As the file has them."""
        alike = [bool((lengths == lengths[:1]).all()) and len(lengths) > 0 for lengths in self.shape.T]
        shape = [
            lengths[0].item() if same else lengths.tolist() for same, lengths in zip(alike, self.shape.T, strict=True)
        ]
        size = {"size": self.nbytes.tolist()} if self.dtype == TEXT else {}
        digits = self.xxh3.astype(">u8").tobytes().hex()
        return {"dtype": self.dtype, "offset": self.offset.tolist(), "shape": shape, "xxh3": digits, **size}


@dataclass(frozen=True, eq=False)
class Sidecar:
    """The content of a shard's JSON file, such as `000012.json`.

    Attributes:
        shard: its number.
        column: SHA-256 of its column's spec, in hexadecimal.
        tar_bytes: size of the tar.
        tar_xxh3: xxh3-128 of the whole tar, in hexadecimal.
        keys: of the N usable items, in the order of the tar.
        arrays: where theirs lie, by the name of the feature.
        failed: the other items.
    """

    shard: int
    column: str
    tar_bytes: int
    tar_xxh3: str
    keys: tuple[str, ...]
    arrays: Mapping[str, Places]
    failed: tuple[Failure, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sidecar) and self.dump() == other.dump()

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The usable items, each with its arrays."""
        return tuple(
            Item(key, {name: places.entry(row) for name, places in self.arrays.items()})
            for row, key in enumerate(self.keys)
        )

    def misfit(self, features: Mapping[str, Feature]) -> str | None:
        """The feature whose arrays are not those of a spec, or do not lie in the tar; None if all do."""
        if not self.keys:
            return None
        for name in sorted(self.arrays.keys() | features.keys()):
            places, feature = self.arrays.get(name), features.get(name)
            if places is None or feature is None or not places.admitted_by(feature):
                return name
            if (places.offset + places.nbytes > self.tar_bytes).any():
                return name
        return None

    def dump(self) -> dict[str, Any]:
        """As the file has it, without the checksum."""
        return {
            "format": FORMAT,
            "shard": self.shard,
            "column": self.column,
            "tar_bytes": self.tar_bytes,
            "tar_xxh3": self.tar_xxh3,
            "keys": list(self.keys),
            "arrays": {name: places.dump() for name, places in self.arrays.items()},
            "failed": [failure.model_dump() for failure in self.failed],
        }


def save_sidecar(storage: Storage, name: str, sidecar: Sidecar) -> None:
    """Write a sidecar, which publishes its shard."""
    storage.write(name, seal_json(sidecar.dump()))


def load_sidecar(storage: Storage, name: str) -> Sidecar:
    """Read a sidecar. Raises as `parse_sidecar`, and a `UserError` if it is missing."""
    return parse_sidecar(storage.read(name), storage.where(name))


def parse_sidecar(data: bytes, where: str) -> Sidecar:
    """The sidecar in a file's bytes, of either format.

    Raises:
        UserError: its format is newer.
        DamagedError: it does not match its checksum, or its lists do not fit each other.
    """
    content = unseal_json(data, FORMAT, where)
    try:
        file = parse_settings(_File, _as_columns(content) if content["format"] == 1 else content, where)
        arrays = {name: _places(places, len(file.keys)) for name, places in sorted(file.arrays.items())}
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # a checksum of a program that does not know
        raise DamagedError(f"{where}: is no sidecar: {error}") from None
    return Sidecar(file.shard, file.column, file.tar_bytes, file.tar_xxh3, file.keys, arrays, file.failed)


def _places(file: _PlacesFile, count: int) -> Places:
    """The places of `count` arrays. Raises `ValueError` if a list has another length."""
    if (file.size is None) == (file.dtype == TEXT):
        raise ValueError("texts have sizes, and numbers have none")
    offset, xxh3 = np.array(file.offset, np.int64), np.frombuffer(bytes.fromhex(file.xxh3), ">u8")
    shape = np.empty((count, len(file.shape)), np.int64)
    for dimension, lengths in enumerate(file.shape):
        shape[:, dimension] = lengths
        if isinstance(lengths, tuple) and len(lengths) != count:
            raise ValueError(f"{len(lengths)} lengths of {count} items")
    if file.size is None:
        nbytes = shape.prod(axis=1, dtype=np.int64) * np.dtype(file.dtype).itemsize
    else:
        nbytes = np.array(file.size, np.int64)
    if {len(offset), len(xxh3), len(nbytes)} != {count}:
        raise ValueError(f"its lists are not of {count} items")
    return Places(file.dtype, offset, shape, nbytes, xxh3.astype(np.uint64))


def _as_columns(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a sidecar of format 1, which has a record for each item, in format 2."""
    items = content["items"]
    names = items[0]["arrays"].keys() if items else []
    if any(item["arrays"].keys() != names for item in items):
        raise ValueError("items have other arrays than the first")
    arrays = {}
    for name in names:
        entries = [item["arrays"][name] for item in items]
        dtypes, ranks = {entry["dtype"] for entry in entries}, {len(entry["shape"]) for entry in entries}
        if len(dtypes) > 1 or len(ranks) > 1:
            raise ValueError(f"the arrays {name} differ in dtype or rank")
        arrays[name] = {
            "dtype": dtypes.pop(),
            "offset": [entry["offset"] for entry in entries],
            "shape": list(zip(*(entry["shape"] for entry in entries), strict=True)),
            "xxh3": "".join(entry["xxh3"] for entry in entries),
        }
        if arrays[name]["dtype"] == TEXT:
            arrays[name]["size"] = [entry["size"] for entry in entries]
    rest = {name: value for name, value in content.items() if name != "items"}
    return rest | {"keys": [item["key"] for item in items], "arrays": arrays}
