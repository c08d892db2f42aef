"""The one way to put a file or a folder in its place: made under another name, synced, renamed, its parent synced."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp-"  # how the names begin of what a killed process leaves


@contextlib.contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """Give the path of a file or a folder to make; on a normal exit it takes that place, else it is removed."""
    temporary = temporary_beside(path)
    try:
        yield temporary
        publish(temporary, path)
    finally:
        remove(temporary)


def temporary_beside(path: Path) -> Path:
    """A name of its own in the folder of `path`, with the same suffix."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")


def publish(temporary: Path, path: Path) -> None:
    """Put a file or a folder in the place of `path`, on the disk before it has that name.

    A folder cannot be renamed over another one, so for a moment there is none of that name.
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
    """Remove a file or a folder, if it is there."""
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
