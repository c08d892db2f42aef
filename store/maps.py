"""Maps, whatever they hold: Arrow files in the cache, made once for each machine and mapped by all of its processes.

    content of an Arrow IPC file, S bytes
    for each block of 256 KiB of it: xxh3-64, uint64
    where the schema and each record batch end: byte, uint64
    S, number of such ends: uint64; xxh3-128 of all that stands between the content and here; "avllmmap"

A map is opened without reading its content: each block is compared with its checksum when it is first used in a
process. Everything can be made again, so a map that is damaged is removed.
"""

import itertools
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from store.cache import made_once
from store.errors import DamagedError

VERSION = 1  # of what maps hold; it is part of their names
BLOCK = 256 << 10  # bytes
MAGIC = b"avllmmap"
END = struct.Struct("<QQ16s8s")
BATCHES_OPEN = 64


class Map:
    """An open map. It stays readable when its file is removed.

    Raises:
        DamagedError: the file is cut, or its list of checksums is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - END.size))
            self._read_end(file.read(), size)
            file.seek(self._size)
            listed = file.read(size - END.size - self._size)
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
        if self._digest != xxhash.xxh3_128_digest(listed + END.pack(self._size, self._count, b"", MAGIC)):
            raise DamagedError(f"{path}: differs from its checksum")
        numbers = np.frombuffer(listed, "<u8")
        self._sums, self._ends = numbers[: -self._count], numbers[-self._count :].tolist()
        self._checked = np.zeros(len(self._sums), bool)
        self._check(0, self._ends[0])
        self._check(self._ends[-1], self._size)
        self._reader = pa.ipc.open_file(pa.py_buffer(self._bytes[: self._size]))
        self.batch = lru_cache(BATCHES_OPEN)(self._batch)

    @property
    def size(self) -> tuple[str, int]:
        """The map's path, and its size in bytes."""
        return str(self._path), self._bytes.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        return Map, (self._path,)

    def _read_end(self, end: bytes, size: int) -> None:
        whole = len(end) == END.size and end.endswith(MAGIC)
        self._size, self._count, self._digest, _ = END.unpack(end) if whole else (0, 0, b"", b"")
        if not whole or size != self._size + 8 * (-(-self._size // BLOCK) + self._count) + END.size:
            raise DamagedError(f"{self._path}: is not whole")

    def __len__(self) -> int:
        return int(self._count) - 1

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return map(self._batch, range(len(self)))

    def arrays(self) -> dict[str, pa.Array]:
        """The lists in the only row of the map, by field name. Their content is not checked; see `check`."""
        first = self._ends[0]  # of the batch: a mark, the length of what describes the batch, the description
        self._check(first, first + 8)
        self._check(first, first + 8 + self._bytes[first + 4 : first + 8].view("<i4").item())
        batch = self._reader.get_batch(0)
        return {name: batch.column(name).values for name in batch.schema.names}

    def check_all(self) -> None:
        """Compare the whole content with its checksums. Raises as `check`."""
        self._check(0, self._size)

    def check(self, array: NDArray[Any]) -> None:
        """Compare the blocks under a contiguous array of the map with their checksums, unless that was done before.

        Raises:
            DamagedError: they differ; the map was removed.
        """
        first = array.ctypes.data - self._bytes.ctypes.data
        self._check(first, first + array.nbytes)

    def _batch(self, number: int) -> pa.RecordBatch:
        """A record batch, checked."""
        self._check(self._ends[number], self._ends[number + 1])
        return self._reader.get_batch(number)

    def _check(self, first: int, end: int) -> None:
        blocks = range(first // BLOCK, -(-end // BLOCK))
        for number in blocks[0] + np.flatnonzero(~self._checked[blocks.start : blocks.stop]) if blocks else ():
            block = self._bytes[number * BLOCK : min((number + 1) * BLOCK, self._size)]
            if xxhash.xxh3_64_intdigest(block.data) != self._sums.item(number):
                self._path.unlink(missing_ok=True)
                raise DamagedError(f"{self._path}: was damaged and is removed; the same command makes it again")
            self._checked[number] = True


class Texts:
    """The strings of an array in a map; each is checked when it is read."""

    def __init__(self, content: Map, array: pa.LargeStringArray) -> None:
        self._map, (_, offsets, data) = content, array.buffers()
        self._offsets = np.frombuffer(offsets, np.int64) if len(array) else np.zeros(1, np.int64)
        self._data = np.frombuffer(data or b"", np.uint8)

    def __getitem__(self, number: int) -> str:
        return self.slice(number, number + 1)[0]

    def slice(self, first: int, end: int) -> list[str]:
        """The strings from number `first` to before `end`."""
        offsets = self._offsets[first : end + 1]
        if first == end:
            return []
        self._map.check(offsets)
        self._map.check(self._data[offsets[0] : offsets[-1]])
        bounds = offsets.tolist()
        return [bytes(self._data[a:b]).decode() for a, b in itertools.pairwise(bounds)]


def open_map(name: str, make: Callable[[Path], None]) -> Map:
    """Open a map of this machine, which is made first if it does not exist or is cut.

    Args:
        name: a digest of all that the content comes from, then a dot and its kind.
        make: writes the map to a path (`write_map`).

    Raises:
        UserError: the cache cannot be written.
    """
    return made_once(f"{name}{VERSION}.arrow", make, Map)


def write_map(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a map; one batch is in memory at a time."""
    with pa.OSFile(str(path), "wb") as sink:
        with pa.ipc.new_file(sink, schema) as writer:
            ends = [sink.tell()]
            for batch in batches:
                writer.write_batch(batch)
                ends.append(sink.tell())
        size = sink.tell()
    with open(path, "r+b") as file:
        sums = [xxhash.xxh3_64_intdigest(file.read(BLOCK)) for _ in range(0, size, BLOCK)]
        listed = np.array([*sums, *ends], "<u8").tobytes()
        digest = xxhash.xxh3_128_digest(listed + END.pack(size, len(ends), b"", MAGIC))
        file.write(listed + END.pack(size, len(ends), digest, MAGIC))


def write_rows(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], rows: int) -> None:
    """Write a map of the batches' rows, `rows` in each batch but the last."""
    write_map(path, schema, _even(batches, schema, rows))


def _even(batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
    held = schema.empty_table()
    for batch in batches:
        held = pa.Table.from_batches([*held.to_batches(), batch.replace_schema_metadata(None)])
        whole = len(held) // rows * rows
        yield from held.slice(0, whole).combine_chunks().to_batches(rows)
        held = held.slice(whole)
    yield from held.combine_chunks().to_batches()


def write_arrays(path: Path, arrays: dict[str, pa.Array]) -> None:
    """Write a map of one row, whose fields are lists: arrays of any lengths, which lie whole in the file."""
    lists = {n: pa.LargeListArray.from_arrays(np.array([0, len(a)], np.int64), a) for n, a in arrays.items()}
    batch = pa.RecordBatch.from_arrays(list(lists.values()), names=list(lists))
    write_map(path, batch.schema, [batch])
