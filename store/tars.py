"""A shard's tar; arrays are read from it straight into given memory."""

import os
from collections.abc import Sequence

from store.errors import DamagedError


class Tar:
    """An open tar. It closes when its last reference is gone, so it cannot close while a thread is reading.

    Args:
        path: path of the file.
        size: expected size in bytes, from the sidecar.

    Raises:
        DamagedError: the file cannot be opened, or has another size.
    """

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._handle = -1
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DamagedError(f"{path}: cannot be opened: {error.strerror}") from None
        actual = os.fstat(self._handle).st_size
        if actual != size:
            raise DamagedError(f"{path}: {actual} bytes, its sidecar says {size}")

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, arrays: Sequence[memoryview], offset: int) -> None:
        """Fill the arrays one after another with the tar's bytes from `offset` on.

        Raises:
            DamagedError: the read fails, or the tar ends early.
        """
        try:
            if os.preadv(self._handle, arrays, offset) < sum(array.nbytes for array in arrays):
                self._read_singly(arrays, offset)
        except OSError as error:
            raise DamagedError(f"{self._path}: cannot be read: {error.strerror}") from None

    def _read_singly(self, arrays: Sequence[memoryview], offset: int) -> None:
        """Retry short reads, which signals and network disks can cause."""
        for array in arrays:
            left = array.cast("B") if array.nbytes else memoryview(b"")
            while len(left):
                count = os.preadv(self._handle, [left], offset)
                if not count:
                    raise DamagedError(f"{self._path}: shorter than its sidecar says")
                left, offset = left[count:], offset + count
