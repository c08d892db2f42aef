"""A tar of a column, out of which arrays are read straight to their place in memory."""

import os
from collections.abc import Sequence

from store.errors import DamagedError


class Tar:
    """An open tar; it closes when nothing refers to it any more, so that no thread loses it while it reads.

    Args:
        path: of the file.
        size: its bytes, as its sidecar says.

    Raises:
        DamagedError: it cannot be opened, or is of another size.
    """

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._handle = -1
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DamagedError(f"{path}: cannot be opened: {error.strerror}") from None
        found = os.fstat(self._handle).st_size
        if found != size:
            raise DamagedError(f"{path}: {found} bytes, its sidecar says {size}")

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, arrays: Sequence[memoryview], offset: int) -> None:
        """Fill the memory of arrays, one behind the other, from `offset` on.

        Raises:
            DamagedError: the disk fails, or the tar ends early.
        """
        try:
            if os.preadv(self._handle, arrays, offset) < sum(array.nbytes for array in arrays):
                self._read_singly(arrays, offset)
        except OSError as error:
            raise DamagedError(f"{self._path}: cannot be read: {error.strerror}") from None

    def _read_singly(self, arrays: Sequence[memoryview], offset: int) -> None:
        """Read on wherever a call gives less than was asked for, as signals and network disks have it."""
        for array in arrays:
            left = array.cast("B") if array.nbytes else memoryview(b"")
            while len(left):
                count = os.preadv(self._handle, [left], offset)
                if not count:
                    raise DamagedError(f"{self._path}: shorter than its sidecar says")
                left, offset = left[count:], offset + count
