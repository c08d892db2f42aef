"""Read many arrays of many tars with few system calls, each straight to its place in memory, and check them there."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from store.errors import DamagedError
from store.reader import ColumnReader

OPEN_FILES = 256  # tars held open
GAP = 16 << 10  # bytes between two arrays that are read and thrown away sooner than a second call is made
ARRAYS = 256  # of one call; the kernel takes 1024 buffers


class Wanted(NamedTuple):
    """An array that is to be read: where it lies, whose it is, and the memory of its size that takes it.

    Attributes:
        column: number of its reader.
        shard: of that column.
        offset: in the shard's tar, bytes.
        position: of its item in what was asked for.
        row: of its item in the column's index.
        feature: of that index.
        into: its bytes.
    """

    column: int
    shard: int
    offset: int
    position: int
    row: int
    feature: int
    into: memoryview


class DamagedItemError(DamagedError):
    """An array cannot be read as it was written; `position` is that of its item in what was asked for."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class Tars:
    """The tars of some columns. A tar is opened, and its size compared with its sidecar's, when it is first wanted."""

    def __init__(self, readers: Sequence[ColumnReader]) -> None:
        self._readers = readers
        self._scratch = memoryview(bytearray(GAP))
        self.open = lru_cache(OPEN_FILES)(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tars, (self._readers,)

    def read(self, wanted: list[Wanted]) -> None:
        """Fill all of `wanted`, sorted as they lie; compare their checksums at first touch.

        Raises:
            DamagedItemError: the first that is not what was written.
        """
        for run in _runs(wanted):
            blamed = run[0]
            try:
                self._read_run(run)
                for blamed in run:
                    self._readers[blamed.column].check(blamed.row, blamed.feature, blamed.into)
            except DamagedError as error:
                raise DamagedItemError(str(error), blamed.position) from None

    def _read_run(self, run: list[Wanted]) -> None:
        tar = self.open(run[0].column, run[0].shard)
        buffers, end = [], run[0].offset
        for array in run:
            if array.offset > end:
                buffers.append(self._scratch[: array.offset - end])
            buffers.append(array.into)
            end = array.offset + len(array.into)
        try:
            if os.preadv(tar.handle, buffers, run[0].offset) < end - run[0].offset:
                tar.read_singly(run)
        except OSError as error:
            raise DamagedError(f"{tar.path}: cannot be read: {error.strerror}") from None

    def _open(self, column: int, shard: int) -> "_Tar":
        reader = self._readers[column]
        return _Tar(reader.path(shard), reader.index.tars[shard][0])


class _Tar:
    """An open tar; it closes when nothing refers to it any more, so that no thread loses it while it reads."""

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.handle = -1
        try:
            self.handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DamagedError(f"{path}: cannot be opened: {error.strerror}") from None
        found = os.fstat(self.handle).st_size
        if found != size:
            raise DamagedError(f"{path}: {found} bytes, its sidecar says {size}")

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)

    def read_singly(self, run: list[Wanted]) -> None:
        """Read a run again, array by array, after a call gave less than was asked for."""
        for array in run:
            done = 0
            while done < len(array.into):
                count = os.preadv(self.handle, [array.into[done:]], array.offset + done)
                if not count:
                    raise DamagedError(f"{self.path}: shorter than its sidecar says")
                done += count


def _runs(wanted: list[Wanted]) -> Iterator[list[Wanted]]:
    """Arrays that lie close behind each other, to be read in one call."""
    run: list[Wanted] = []
    for array in wanted:
        if run:
            last = run[-1]
            gap = array.offset - last.offset - len(last.into)
            near = last[:2] == array[:2] and 0 <= gap <= GAP
            if not near or len(run) == ARRAYS:
                yield run
                run = []
        run.append(array)
    if run:
        yield run
