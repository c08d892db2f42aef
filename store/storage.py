"""File access for a store: a local directory or any fsspec URL. Every write is atomic."""

import contextlib
import errno
import fcntl
import os
import tempfile
import uuid
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import fsspec

from store.errors import UserError
from store.lease import Holder, hold_lease
from store.publish import TEMPORARY, publish, temporary_beside

LOCK = ".lock"
TAGS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "mtime", "created")  # in listings


class Storage:
    """The files under one root, named by relative paths with forward slashes.

    On a local disk a file is written under a unique temporary name, synced and renamed, and then its folder is synced.
    On an object store a single PUT is atomic already.
    """

    def __init__(self, url: str | Path) -> None:
        self._given = str(url)
        self._fs, self.root = _open(self._given)
        self._process = os.getpid()
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self.local = "file" in protocols
        self._whole = {"max_concurrency": 1} if "s3" in protocols else {}  # else s3fs asks for the size first
        self.url = self.root if self.local else self._given.rstrip("/")

    @property
    def fs(self) -> Any:
        """The fsspec file system; after a fork or unpickling, the new process opens its own connections."""
        if self._process != os.getpid():
            self._fs, self._process = _open(self._given)[0], os.getpid()
        return self._fs

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def where(self, name: str) -> str:
        """The full path or URL of `name`, for messages and other tools."""
        return f"{self.url}/{name}"

    def path(self, name: str) -> str:
        """The path of `name` to pass to the fsspec file system."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        with self._reached(name):
            return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int | None:
        """The size of a file in bytes, or None if it does not exist."""
        with contextlib.suppress(FileNotFoundError), self._reached(name):
            return int(self.fs.size(self.path(name)))
        return None

    def names(self, folder: str) -> list[str]:
        """The sorted names in `folder`, without temporary files; empty if the folder does not exist."""
        try:
            with self._reached(folder):
                paths = [str(path).rstrip("/") for path in self.fs.ls(self.path(folder), detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        inside = (path.rpartition("/")[2] for path in paths if not path.endswith(self.path(folder)))
        return sorted(name for name in inside if not name.startswith(TEMPORARY))

    def marks(self, folder: str) -> dict[str, str]:
        """The names in `folder`, as `names`; to each, a mark that changes when the file is written again."""
        try:
            with self._reached(folder):
                marks = _marks(self.path(folder)) if self.local else _tags(self.fs.ls(self.path(folder), detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {name: marks[name] for name in sorted(marks) if not name.startswith(TEMPORARY)}

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of `name`, or the range from `start` to `end`.

        Raises:
            UserError: the file does not exist or cannot be read.
        """
        if start is not None and start == end:  # of such a range, S3 sends the whole object
            return b""
        try:
            with self._reached(name):
                return bytes(self.fs.cat_file(self.path(name), start=start, end=end, **self._whole))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.where(name)}: no such file") from None

    def fetch(self, name: str, path: Path) -> None:
        """Copy the file `name` to a local path.

        Raises:
            FileNotFoundError: the file does not exist.
            UserError: the file cannot be read, or the path cannot be written.
        """
        with self._reached(name):
            self.fs.get_file(self.path(name), str(path))

    @contextlib.contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """Yield a local path that holds the file `name`: the file itself, or a temporary copy of a remote one.

        Raises:
            UserError: the file does not exist or cannot be read, or the disk is full.
        """
        try:
            if self.local:
                path = Path(self.path(name))
                with self._reached(name), open(path, "rb"):
                    pass
            else:
                folder = _temporary_folder()
                path = temporary_beside(folder / name.rpartition("/")[2])
                with _written(path, f"{folder} (TMPDIR)"):
                    self.fetch(name, path)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.where(name)}: no such file") from None
        try:
            yield path
        finally:
            if not self.local:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reached(self, name: str, *, is_read: bool = True) -> Iterator[None]:
        """Turn access errors (permissions, network, credentials) into a UserError: the user can fix them."""
        try:
            yield
        except Exception as error:  # each object store raises its own exceptions, with no common base class
            missing = is_read and isinstance(error, FileNotFoundError | NotADirectoryError)
            if missing or _is_full(error) or (self.local and not isinstance(error, OSError)):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.where(name)}: cannot be reached: {reason}") from error

    def write(self, name: str, data: bytes | bytearray) -> None:
        """Write `data` to `name` atomically.

        Raises:
            UserError: the disk is full or read-only, or the object store refuses the write.
        """
        if self.local:
            with self.writing(name) as temporary:
                temporary.write_bytes(data)
            return
        with self._reached(name, is_read=False):
            self.fs.pipe_file(self.path(name), bytes(data))

    def create(self, name: str, data: bytes) -> bool:
        """Create an object unless the name exists; return whether this call created it.

        Of several concurrent callers one gets True, if the object store supports exclusive creates (If-None-Match of
        S3); one that ignores them overwrites.

        Raises:
            UserError: the object store refuses the write.
        """
        try:
            with self._reached(name, is_read=False):
                self.fs.pipe_file(self.path(name), data, mode="create")
        except UserError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        return True

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with contextlib.suppress(FileNotFoundError), self._reached(name):
            self.fs.rm_file(self.path(name))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a local temporary path to write; a normal exit publishes it as `name`, an exception removes it.

        Raises:
            UserError: the disk is full or read-only, or the object store refuses the write.
        """
        target = Path(self.path(name))
        folder = target.parent if self.local else _temporary_folder()
        temporary = temporary_beside(folder / target.name)
        try:
            with _written(temporary, self.where(name) if self.local else f"{folder} (TMPDIR)"):
                folder.mkdir(parents=True, exist_ok=True)
                yield temporary
                if self.local:
                    publish(temporary, target)
            if not self.local:
                with self._reached(name, is_read=False):
                    self.fs.put_file(str(temporary), self.path(name))
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the store for one writer, and remove temporary files that killed writers left.

        On a local disk this is flock, which the kernel releases when the process ends; on an object store it is a lease
        that its holder keeps renewing (`store.lease`).

        Raises:
            UserError: another process (named in the message) holds the lock, or the store cannot be written.
        """
        if not self.local:
            with hold_lease(self, LOCK):
                yield
            return
        path = Path(self.path(LOCK))
        with _written(path, str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with open(path, "r+b", buffering=0) as handle:
            self._take(handle)
            self._clear()
            yield
            self._clear()  # workers killed in the meantime may have left files

    def _clear(self) -> None:
        for pattern in (f"{TEMPORARY}*", f"*/{TEMPORARY}*", f"*/*/{TEMPORARY}*"):
            for leftover in Path(self.root).glob(pattern):
                leftover.unlink(missing_ok=True)

    def _take(self, handle: FileIO) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = ""
            with contextlib.suppress(ValueError, TypeError):  # the holder may be writing its identity right now
                who = f": {Holder.parse(handle.read())}"
            raise UserError(f"{self.url}: another process is writing to this store{who}; let it end") from None
        except OSError as error:
            raise UserError(f"{self.url}: cannot be locked: {error.strerror}; name a store on another disk") from None
        with _written(Path(self.path(LOCK)), self.where(LOCK)):
            handle.truncate()
            handle.write(Holder.here().dump())


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path within it. Listings are not cached, as other processes write too."""
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = {"s3": "s3", "hf": "featurize"}.get(url.partition("://")[0])
        remedy = f"; pip install 'avllm[{extra}]'" if extra else ""
        raise UserError(f"{url}: {error}{remedy}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}; expected a folder or an fsspec URL, such as s3://bucket/store") from None
    return fs, root.rstrip("/")


@contextlib.contextmanager
def _written(path: Path, where: str) -> Iterator[None]:
    """Turn a full or read-only disk into a UserError; errors about other files propagate."""
    try:
        yield
    except OSError as error:
        if not _is_full(error) and not path.is_relative_to(str(error.filename)):
            raise
        advice = "make room" if _is_full(error) else "make it writable or name another place"
        line = (
            f"{where}: cannot be written: {os.strerror(error.errno or 0)}; {advice}, then give the same command again"
        )
        raise UserError(line) from None


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(f"{error.strerror}; make room there, or set TMPDIR to a folder that has room") from None


def _marks(folder: str) -> dict[str, str]:
    marks = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                stat = entry.stat()
                marks[entry.name] = f"{stat.st_size}.{stat.st_mtime_ns}.{stat.st_ino}"
    return marks


def _tags(listing: list[dict[str, Any]]) -> dict[str, str]:
    """The marks of objects; one that does not say when it was written gets a new one each time."""
    tags = [next((info[field] for field in TAGS if info.get(field)), uuid.uuid4()) for info in listing]
    names = (str(info["name"]).rstrip("/").rpartition("/")[2] for info in listing)
    return {name: f"{info.get('size')}.{tag}" for name, info, tag in zip(names, listing, tags, strict=True)}


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
