"""Publish a local file or folder atomically: write under a temporary name, sync, rename, sync the parent folder."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp-"  # prefix of temporary names; a killed process may leave such files


@contextlib.contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder; a normal exit moves it to `path`, an exception removes it."""
    temporary = temporary_beside(path)
    try:
        yield temporary
        publish(temporary, path)
    finally:
        remove(temporary)


def temporary_beside(path: Path) -> Path:
    """A unique temporary path in the folder of `path`, with the same suffix."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")


def publish(temporary: Path, path: Path) -> None:
    """Sync a file or folder to disk, then rename it to `path`.

    A folder cannot be renamed over another, so when a folder is replaced, `path` is missing for a moment.
    """
    if temporary.is_dir():
        for folder, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
    else:
        _sync(temporary)
    old = temporary.with_name(f"{temporary.name}-old")
    if path.is_dir():
        os.replace(path, old)
    os.replace(temporary, path)
    _sync(path.parent)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
