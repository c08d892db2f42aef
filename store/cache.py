"""LRU cache of a remote store's shards on the local disk: each tar is fetched once, whole.

A copy is named by the checksum of its bytes, so all stores and runs can share one folder, and a rewritten shard is
never confused with its old version. `AVLLM_CACHE` sets the folder (default ~/.cache/avllm), `AVLLM_CACHE_GB` the
maximum size in GB (default 50).
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from store.column import Column
from store.errors import DamagedError, UserError
from store.publish import publish
from store.shard import shard_name, tar_checksum

DEFAULT_GB = 50.0
HANDED_OUT = 5.0  # seconds a returned path is safe from eviction; an open or mapped file survives its removal


def cached(column: Column, shard: int, sidecar_tar_bytes: int, sidecar_tar_xxh3: str) -> str:
    """The path of a local copy of a shard's tar, fetched on a miss; open or map it at once.

    Concurrent processes and threads fetch a shard only once. Size and checksum are verified on arrival, so the cache
    never keeps a damaged tar.

    Raises:
        UserError: the folder cannot be written, or the cache's maximum size is smaller than this tar.
        DamagedError: the tar is missing, or differs from its sidecar.
    """
    folder = cache_folder()
    path = folder / f"{sidecar_tar_xxh3}.tar"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not _is_there(path, sidecar_tar_bytes):
                _make_room(folder, sidecar_tar_bytes)
                _fetch(column, shard, path, sidecar_tar_bytes, sidecar_tar_xxh3)
    except OSError as error:
        raise UserError(f"{folder}: the cache cannot be written: {error.strerror}; set AVLLM_CACHE") from None
    return str(path)


def cache_folder() -> Path:
    """Where copies of shards are kept."""
    return Path(os.environ.get("AVLLM_CACHE") or "~/.cache/avllm").expanduser() / "shards"


def _bound() -> int:
    """The maximum size of the cache in bytes."""
    limit = os.environ.get("AVLLM_CACHE_GB") or DEFAULT_GB
    try:
        return int(float(limit) * 1e9)
    except (ValueError, OverflowError):
        raise UserError(f"AVLLM_CACHE_GB={limit}: expected a number of gigabytes, such as 50") from None


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


def _make_room(folder: Path, size: int) -> None:
    """Evict the least recently used files, including what killed processes left, until `size` more bytes fit."""
    bound = _bound()
    if size > bound:
        raise UserError(f"AVLLM_CACHE_GB={bound / 1e9:g}: less than one shard of {size / 1e9:.3f} GB")
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
