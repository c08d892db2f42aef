"""Export columns as plain arrays: a zarr v3 folder (random access, notebooks) or one HDF5 file, in the same layout.

<column>                      attribute `spec`
<column>/keys                 [items], strings, in corpus order
<column>/failed/{keys, codes, reasons}
<column>/<feature>            [items, ...] if every item has the same shape
<column>/<feature>/rows       [rows of all items, ...] if the first length varies
<column>/<feature>/offsets    [items + 1]: item i has rows offsets[i] to offsets[i + 1]
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from store.column import Column
from store.errors import UserError
from store.publish import publishing
from store.reader import ColumnReader
from store.spec import Feature, canonical_json

Form = Literal["zarr", "h5"]
CHUNK_BYTES = 256 << 10  # target size of a chunk, the smallest unit that can be read
SHARD_BYTES = 128 << 20  # target size of one zarr object; also the memory buffered per feature
TEXT_BYTES = 1 << 10  # assumed size of a string


class Growing(Protocol):
    """An array on disk that is written by row slices."""

    def __setitem__(self, rows: slice, values: NDArray[Any]) -> None: ...


class Target(Protocol):
    """An output format with groups, attributes and arrays, named by slash-separated paths."""

    def group(self, name: str, spec: dict[str, Any]) -> None:
        """Create a group with the attribute `spec`."""

    def array(self, name: str, shape: tuple[int, ...], dtype: str, chunk: int, shard: int) -> Growing:
        """Create an array; `chunk` and `shard` are numbers of rows, and `shard` is a multiple of `chunk`."""


class _Zarr:
    def __init__(self, root: Any) -> None:
        self._root = root

    def group(self, name: str, spec: dict[str, Any]) -> None:
        self._root.create_group(name, attributes={"spec": spec})

    def array(self, name: str, shape: tuple[int, ...], dtype: str, chunk: int, shard: int) -> Growing:
        inner, outer = (chunk, *shape[1:]), (shard, *shape[1:])
        plain: dict[str, Any] = {} if dtype == "text" else {"compressors": None}  # floats barely compress
        made: Growing = self._root.create_array(
            name, shape=shape, dtype="str" if dtype == "text" else dtype, chunks=inner, shards=outer, **plain
        )
        return made


class _H5:
    def __init__(self, root: Any, text: Any) -> None:
        self._root, self._text = root, text

    def group(self, name: str, spec: dict[str, Any]) -> None:
        self._root.create_group(name).attrs["spec"] = canonical_json(spec).decode()

    def array(self, name: str, shape: tuple[int, ...], dtype: str, chunk: int, shard: int) -> Growing:
        made: Growing = self._root.create_dataset(name, shape=shape, dtype=self._text if dtype == "text" else dtype)
        return made


class _Writer:
    """Append blocks of rows to an array, in whole shards, so that each shard is written once."""

    def __init__(self, target: Target, name: str, shape: tuple[int, ...], dtype: str) -> None:
        row = TEXT_BYTES if dtype == "text" else np.dtype(dtype).itemsize * int(np.prod(shape[1:]))
        chunk = max(1, CHUNK_BYTES // max(1, row))
        needed = -(-max(1, shape[0]) // chunk)
        self._step = chunk * max(1, min(needed, SHARD_BYTES // max(1, chunk * row)))
        self._array = target.array(name, shape, dtype, chunk, self._step)
        self._waiting: list[NDArray[Any]] = []
        self._count = self._written = 0

    def add(self, block: NDArray[Any]) -> None:
        self._waiting.append(block)
        self._count += len(block)
        if self._count >= self._step:
            self._write(self._count // self._step * self._step)

    def close(self) -> None:
        if self._count:
            self._write(self._count)

    def _write(self, count: int) -> None:
        rows = np.concatenate(self._waiting)
        self._array[self._written : self._written + count] = rows[:count]
        self._waiting = [rows[count:].copy()]
        self._written += count
        self._count -= count


class _FixedFeature:
    """A feature with the same shape for every item."""

    def __init__(self, target: Target, name: str, feature: Feature, shapes: Sequence[tuple[int, ...]]) -> None:
        self._rows = _Writer(target, name, (len(shapes), *(n or 0 for n in feature.shape)), feature.dtype)

    def add(self, array: NDArray[Any]) -> None:
        self._rows.add(_plain(array)[None])

    def close(self) -> None:
        self._rows.close()


class _VaryingFeature:
    """A feature whose first length varies between items."""

    def __init__(self, target: Target, name: str, feature: Feature, shapes: Sequence[tuple[int, ...]]) -> None:
        if None in feature.shape[1:]:
            raise UserError(f"{name}: a length other than the first varies; it cannot be exported as rows and offsets")
        lengths = [shape[0] for shape in shapes]
        total = (sum(lengths), *(n or 0 for n in feature.shape[1:]))
        self._rows = _Writer(target, f"{name}/rows", total, feature.dtype)
        _write_whole(target, f"{name}/offsets", np.cumsum([0, *lengths], dtype=np.int64))

    def add(self, array: NDArray[Any]) -> None:
        self._rows.add(_plain(array))

    def close(self) -> None:
        self._rows.close()


def export(
    columns: Sequence[Column], out: Path, form: Form, *, overwrite: bool = False, advance: Callable[[int], None]
) -> None:
    """Write columns to `out` atomically; `advance` is called with 1 for each item written.

    Raises:
        UserError: `out` exists and `overwrite` is not set, or the format's package is not installed.
        DamagedError: a column does not match its checksums.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; use --overwrite")
    opened = _open_zarr if form == "zarr" else _open_h5
    out.parent.mkdir(parents=True, exist_ok=True)
    with publishing(out) as temporary, opened(temporary) as target:
        for column in columns:
            _export_column(target, column, advance)


def _export_column(target: Target, column: Column, advance: Callable[[int], None]) -> None:
    reader = ColumnReader(column)
    keys = reader.keys()
    target.group(column.name, column.spec.model_dump(mode="json"))
    failed = list(reader.failed.values())
    _write_texts(target, f"{column.name}/keys", keys)
    for name, values in (
        ("keys", [f.key for f in failed]),
        ("codes", [f.code for f in failed]),
        ("reasons", [f.reason for f in failed]),
    ):
        _write_texts(target, f"{column.name}/failed/{name}", values)
    features = {}
    for name, feature in column.spec.features.items():
        kind = _VaryingFeature if None in feature.shape else _FixedFeature
        shapes = [reader.shape(key, name) for key in keys]
        features[name] = kind(target, f"{column.name}/{name}", feature, shapes)
    for key in keys:
        for name, array in reader.read(key).items():
            features[name].add(array)
        advance(1)
    for writer in features.values():
        writer.close()


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Convert strings to objects, which zarr and HDF5 require for text of varying length."""
    return array.astype(object) if array.dtype.kind == "U" else array


def _write_whole(target: Target, name: str, values: NDArray[Any]) -> None:
    writer = _Writer(target, name, values.shape, "text" if values.dtype == object else str(values.dtype))
    writer.add(values)
    writer.close()


def _write_texts(target: Target, name: str, values: Sequence[str]) -> None:
    _write_whole(target, name, np.array(values, dtype=object))


def _open_zarr(path: Path) -> AbstractContextManager[Target]:
    try:
        import zarr
    except ImportError:
        raise UserError("export zarr: the package zarr is missing; pip install 'avllm[export]'") from None
    return contextlib.nullcontext(_Zarr(zarr.open_group(path, mode="w-", zarr_format=3)))


@contextlib.contextmanager
def _open_h5(path: Path) -> Iterator[Target]:
    try:
        import h5py
    except ImportError:
        raise UserError("export h5: the package h5py is missing; pip install 'avllm[export]'") from None
    with h5py.File(path, "w") as file:
        yield _H5(file, h5py.string_dtype())
