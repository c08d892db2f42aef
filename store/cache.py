"""The local copies of a remote store's shards: each tar is fetched once, whole, and the least recently used go first.

A copy is named by the checksum of its bytes, so one folder serves all stores and runs, and a shard that was written
again is never confused with what it was. `AVLLM_CACHE` is the folder (~/.cache/avllm), `AVLLM_CACHE_GB` its bound (50).
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
HANDED_OUT = 5.0  # seconds for which a path that was returned is sure to be there; a mapped file outlives its name


def cached(column: Column, shard: int, sidecar_tar_bytes: int, sidecar_tar_xxh3: str) -> str:
    """The path of a local copy of a shard's tar, fetched if it is not there; open or map it at once.

    Processes and threads that want the same shard fetch it once. The size and checksum of what arrives are compared
    with the sidecar's, so what is kept is what was written.

    Raises:
        UserError: the folder cannot be written, or its bound is less than this tar.
        DamagedError: the tar differs from its sidecar, or is missing.
    """
    folder = _folder()
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


def _folder() -> Path:
    return Path(os.environ.get("AVLLM_CACHE") or "~/.cache/avllm").expanduser() / "shards"


def _bound() -> int:
    """The bound in bytes."""
    stated = os.environ.get("AVLLM_CACHE_GB") or DEFAULT_GB
    try:
        return int(float(stated) * 1e9)
    except (ValueError, OverflowError):
        raise UserError(f"AVLLM_CACHE_GB={stated}: expected a number of gigabytes, such as 50") from None


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a copy, one of 256: a lock file for each shard could never be removed safely."""
    with open(path.with_name(f"{path.name[:2]}.lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def _is_there(path: Path, size: int) -> bool:
    """Whether the copy is there; it is then the one used last."""
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
    """Remove the least recently used copies, and what killed processes left, until `size` more bytes fit the bound."""
    bound = _bound()
    if size > bound:
        raise UserError(f"AVLLM_CACHE_GB={bound / 1e9:g}: less than one shard of {size / 1e9:.3f} GB")
    files = [(Path(entry), stat) for entry in os.scandir(folder) if (stat := _stat(entry)) and stat.st_size]
    excess = sum(stat.st_size for _, stat in files) + size - bound
    for path, stat in sorted(files, key=lambda file: file[1].st_mtime):
        if excess > 0 and _remove(path):
            excess -= stat.st_size


def _remove(path: Path) -> bool:
    """Remove a copy that nobody fetches or is about to open; half a copy without its lock is of a killed process."""
    with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(path, wait=False):
        if path.suffix == ".part" or time.time() - path.stat().st_mtime > HANDED_OUT:
            path.unlink()
            return True
    return False


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):  # another process may be making room too
        return entry.stat()
    return None
