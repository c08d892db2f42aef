"""List folders, local or behind any fsspec URL: one request a folder, not one a file."""

import os
from collections.abc import Iterator

import fsspec

from store import UserError


def is_web(url: str) -> bool:
    """Whether files lie behind a web server, which lists no folders."""
    return url.startswith(("http://", "https://"))


def file_size(uri: str) -> int | None:
    """The size of one file behind a URL in bytes, or None if it cannot be seen."""
    fs, path = fsspec.core.url_to_fs(uri)
    return int(fs.size(path) or 0) if fs.exists(path) else None


def list_folder(url: str) -> dict[str, int]:
    """The sizes of the files in a folder, in bytes by name; empty if there is no such folder.

    Raises:
        UserError: the folder may not be read.
    """
    if "://" in url:
        return _list_remote(url)
    try:
        with os.scandir(url) as entries:
            return {entry.name: size for entry in entries if (size := _size(entry)) is not None}
    except PermissionError:
        raise UserError(f"{url}: this folder may not be read") from None
    except (OSError, ValueError):  # missing, not a folder, or an invalid name
        return {}


def walk(url: str) -> Iterator[tuple[str, int]]:
    """All files below a folder: path below it, and size in bytes. Links are followed, but never into a loop."""
    if "://" not in url:
        yield from _walk_local(url, "", ())
        return
    fs, root = fsspec.core.url_to_fs(url)
    for path, facts in fs.find(root, detail=True).items():
        yield str(path).removeprefix(root).lstrip("/"), int(facts["size"] or 0)


def _list_remote(url: str) -> dict[str, int]:
    fs, path = fsspec.core.url_to_fs(url)
    try:
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {f["name"].rsplit("/", 1)[-1]: int(f["size"] or 0) for f in entries if f["type"] != "directory"}


def _walk_local(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    try:
        facts = os.stat(folder)
        with os.scandir(folder) as listing:
            entries = list(listing)
    except OSError:  # unreadable: its files count as missing, and the report names those asked for
        return
    here = (facts.st_dev, facts.st_ino)
    for entry in entries if here not in above else ():
        if entry.is_dir():
            yield from _walk_local(entry.path, f"{prefix}{entry.name}/", (*above, here))
        elif (size := _size(entry)) is not None:
            yield prefix + entry.name, size


def _size(entry: "os.DirEntry[str]") -> int | None:
    """The size of a file, or None for a folder or a broken link."""
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:
        return None
