"""Files on their way to a decoder. Their bytes are hashed while they are written, and never held as a whole."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from featurize.sources.kinds import kind_of
from serve.api.errors import ApiError, log
from store import Kind
from store.publish import temporary_beside


@dataclass(frozen=True)
class SentFile:
    """A whole file, which whoever has it must remove.

    Attributes:
        path: of the file.
        key: SHA-256 of its bytes, and the extension by which it is read.
    """

    path: Path
    key: str

    @property
    def kind(self) -> Kind:
        """What it is treated as."""
        return kind_of(self.path.name, "a sent file")

    def remove(self) -> None:
        """Remove the file, if it is still there."""
        self.path.unlink(missing_ok=True)


class Incoming(AbstractContextManager["Incoming"]):
    """A file that is being received; it is removed unless it is finished.

    Args:
        path: of the new file.
        extension: by which it will be read.
        most: bytes.
        where: the field of the request that it comes from.

    Raises:
        ApiError: the disk is full.
    """

    def __init__(self, path: Path, extension: str, most: int, where: str) -> None:
        self._path, self._extension, self._most, self._where = path, extension, most, where
        self._digest, self._size, self._is_finished = hashlib.sha256(), 0, False
        with _disk():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(handle, "wb", buffering=0)

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self._is_finished:
            self._path.unlink(missing_ok=True)

    def check_size(self, size: int) -> None:
        """Refuse a file that will be too large.

        Raises:
            ApiError: it will be.
        """
        if size > self._most:
            said = f"{self._where}: the file is larger than {self._most} bytes"
            raise ApiError(413, said, self._where, "too_large")

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes.

        Raises:
            ApiError: they are too many, or the disk is full.
        """
        self._size += len(data)
        self.check_size(self._size)
        self._digest.update(data)
        with _disk():
            self._file.write(data)

    def finish(self) -> SentFile:
        """The whole file.

        Raises:
            ApiError: it is empty.
        """
        if not self._size:
            raise ApiError(400, f"{self._where}: the file has 0 bytes", self._where, "empty")
        self._is_finished = True
        return SentFile(self._path, f"{self._digest.hexdigest()}-{self._extension}")


class Spool:
    """The folder in which received files lie until they are decoded.

    Their names are those of a store's temporary files, so the next server removes those that a killed one left.

    Args:
        folder: of a store whose lock is held.
        most: bytes of a file.
    """

    def __init__(self, folder: str, most: int) -> None:
        self._folder, self._most = Path(folder), most

    def receive(self, extension: str, where: str) -> Incoming:
        """A new file; see `Incoming`."""
        return Incoming(temporary_beside(self._folder / f"sent.{extension}"), extension, self._most, where)


@contextmanager
def _disk() -> Iterator[None]:
    """Turn a full disk into an answer."""
    try:
        yield
    except OSError as error:
        log.error("a sent file cannot be written: %s", error)
        raise ApiError(503, "the server has no room for files", code="disk_full") from None
