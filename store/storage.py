"""Where a store's files lie: a directory, or any fsspec URL. Every file appears whole or not at all."""

import contextlib
import fcntl
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from store.errors import DamagedError, UserError

TEMPORARY = ".tmp-"


class Storage:
    """The files below one root, named by relative paths with forward slashes.

    On a local disk a file is written to a unique temporary name, synced, renamed, and its folder synced.
    On an object store a PUT is that rename.
    """

    def __init__(self, url: str | Path) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(str(url))
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.url = self.root if self.local else str(url).rstrip("/")

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def where(self, name: str) -> str:
        """The full path or URL of `name`, for messages and for other tools."""
        return f"{self.url}/{name}"

    def path(self, name: str) -> str:
        """The path of `name` as the file system takes it."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return bool(self.fs.exists(self.path(name)))

    def names(self, folder: str) -> list[str]:
        """The names in `folder`, sorted; none if there is no such folder. Temporary files are left out."""
        try:
            found = self.fs.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(n for n in (str(p).rstrip("/").rsplit("/", 1)[-1] for p in found) if TEMPORARY not in n)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of `name`, or those from `start` to `end`.

        Raises:
            UserError: there is no such file.
        """
        try:
            return bytes(self.fs.cat_file(self.path(name), start=start, end=end))
        except FileNotFoundError:
            raise UserError(f"{self.where(name)}: no such file") from None

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in `name`.

        Raises:
            UserError: there is no such file, or it holds something else.
        """
        text = self.read(name)
        try:
            data = json.loads(text)
        except ValueError as error:  # of the encoding as well as of the syntax
            raise DamagedError(f"{self.where(name)}: not JSON: {error}") from None
        if not isinstance(data, dict):
            raise DamagedError(f"{self.where(name)}: expected a JSON object, found {type(data).__name__}")
        return data

    def fetch(self, name: str, path: Path) -> None:
        """Copy the file `name` to a local path.

        Raises:
            UserError: there is no such file.
        """
        try:
            self.fs.get_file(self.path(name), str(path))
        except FileNotFoundError:
            raise UserError(f"{self.where(name)}: no such file") from None

    def write(self, name: str, data: bytes) -> None:
        """Publish `data` as `name`, atomically."""
        with self.writing(name) as temporary:
            temporary.write_bytes(data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.exists(name):
            self.fs.rm_file(self.path(name))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a local file to fill; on a normal exit it is published as `name`, else it is removed."""
        target = Path(self.path(name))
        folder = target.parent if self.local else Path(tempfile.gettempdir())
        if self.local:
            folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}-{target.name}"
        try:
            yield temporary
            if self.local:
                _sync(temporary)
                os.replace(temporary, target)
                _sync(folder)
            else:
                self.fs.put_file(str(temporary), self.path(name))
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a local store for one writer, and clear what killed writers left half written.

        Raises:
            UserError: another process holds it.
        """
        if not self.local:
            yield
            return
        Path(self.root).mkdir(parents=True, exist_ok=True)
        with open(self.path(".lock"), "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.url}: another process is writing to this store; let it end") from None
            for leftover in Path(self.root).rglob(f"{TEMPORARY}*"):
                leftover.unlink(missing_ok=True)
            yield


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
