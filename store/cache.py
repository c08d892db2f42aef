"""LRU cache on the local disk: tars of remote stores (`shards/`), and maps of tables and indices (`maps/`).

Each tar is fetched once, whole; each map is made once (`store.maps`). Their names follow from checksums of their
content or of all that they are made from, so all stores and runs can share one folder, and a rewritten shard is never
confused with its old version. `AVLLM_CACHE` sets the folder (default ~/.cache/avllm), `AVLLM_CACHE_GB` the maximum size
of each of the two in GB (default 50).
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from store.column import Column
from store.errors import DamagedError, UserError
from store.publish import publish
from store.shard import shard_name, tar_checksum

DEFAULT_GB = 50.0
Opened = TypeVar("Opened")
HANDED_OUT = 5.0  # seconds a returned path is safe from eviction; an open or mapped file survives its removal


def cached(column: Column, shard: int, sidecar_tar_bytes: int, sidecar_tar_xxh3: str) -> str:
    """The path of a local copy of a shard's tar, fetched on a miss; open or map it at once.

    Concurrent processes and threads fetch a shard only once. Size and checksum are verified on arrival, so the cache
    never keeps a damaged tar.

    Raises:
        UserError: the folder cannot be written, or the cache's maximum size is smaller than this tar.
        DamagedError: the tar is missing, or differs from its sidecar.
    """
    path = cache_folder() / "shards" / f"{sidecar_tar_xxh3}.tar"
    with _written(path.parent), _locked(path):
        if not _is_there(path, sidecar_tar_bytes):
            _make_room(path.parent, sidecar_tar_bytes, _checked_bound(sidecar_tar_bytes, "one shard"))
            _fetch(column, shard, path, sidecar_tar_bytes, sidecar_tar_xxh3)
    return str(path)


def made_once(name: str, make: Callable[[Path], None], load: Callable[[Path], Opened]) -> Opened:
    """Open a file of `maps/`; one process of the machine makes it first, if it does not exist or cannot be opened.

    Args:
        name: the file's name, which begins with two digits of a digest.
        make: writes the file to a path.
        load: opens the file at a path; raises `DamagedError` if it is not what `make` writes.

    Raises:
        UserError: the folder cannot be written, or the cache's maximum size is smaller than this file.
    """
    path = cache_folder() / "maps" / name
    with contextlib.suppress(OSError, DamagedError):
        opened = load(path)
        with contextlib.suppress(OSError):  # the cache may be read-only
            os.utime(path)
        return opened
    with _written(path.parent), _locked(path):
        with contextlib.suppress(FileNotFoundError, DamagedError):
            return load(path)  # another process made it in the meantime
        part = path.with_suffix(".part")
        try:
            make(part)
            _make_room(path.parent, 0, _checked_bound(part.stat().st_size, "this map"))
            publish(part, path)
        finally:
            part.unlink(missing_ok=True)
        return load(path)


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Make a folder of the cache; turn what cannot be written there into a UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"{folder}: the cache cannot be written: {reason}; make room, or set AVLLM_CACHE") from None


def cache_folder() -> Path:
    """Where copies of shards and maps are kept."""
    return Path(os.environ.get("AVLLM_CACHE") or "~/.cache/avllm").expanduser()


def _bound() -> int:
    """The maximum size in bytes of each of the cache's two folders."""
    limit = os.environ.get("AVLLM_CACHE_GB") or DEFAULT_GB
    try:
        return int(float(limit) * 1e9)
    except (ValueError, OverflowError):
        raise UserError(f"AVLLM_CACHE_GB={limit}: expected a number of gigabytes, such as 50") from None


def _checked_bound(size: int, what: str) -> int:
    """The maximum size of each folder; refuse a file that is larger."""
    bound = _bound()
    if size > bound:
        raise UserError(f"AVLLM_CACHE_GB={bound / 1e9:g}: less than {what} of {size / 1e9:.3f} GB")
    return bound


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a copy. All copies share 256 lock files: one per shard could never be removed safely."""
    with open(path.with_name(f"{path.name[:2]}.lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def _is_there(path: Path, size: int) -> bool:
    """Whether the copy exists with this size; its time is updated, so it counts as the most recently used."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)
        return path.stat().st_size == size
    return False


def _fetch(column: Column, shard: int, path: Path, size: int, digest: str) -> None:
    part = path.with_suffix(".part")
    tar = column.path(shard_name(shard, "tar"))
    try:
        try:
            column.storage.fetch(tar, part)
        except FileNotFoundError:
            raise DamagedError(f"{column.storage.where(tar)}: no such file") from None
        if part.stat().st_size != size or _digest(part) != digest:
            raise DamagedError(f"{column.storage.where(tar)}: differs from its sidecar")
        publish(part, path)
    finally:
        part.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return tar_checksum(file)


def _make_room(folder: Path, size: int, bound: int) -> None:
    """Evict the least recently used files, including what killed processes left, until `size` more bytes fit."""
    files = [(Path(entry), stat) for entry in os.scandir(folder) if (stat := _stat(entry)) and stat.st_size]
    excess = sum(stat.st_size for _, stat in files) + size - bound
    for path, stat in sorted(files, key=lambda file: file[1].st_mtime):
        if excess > 0 and _remove(path):
            excess -= stat.st_size


def _remove(path: Path) -> bool:
    """Remove a copy unless it is being fetched or about to be opened; an unlocked `.part` is a killed process's."""
    with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(path, wait=False):
        if path.suffix == ".part" or time.time() - path.stat().st_mtime > HANDED_OUT:
            path.unlink()
            return True
    return False


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):  # another process may be evicting too
        return entry.stat()
    return None
