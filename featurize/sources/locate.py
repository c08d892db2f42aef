"""Turn the paths that sources name into URIs that any worker can open."""

import os
from pathlib import Path

import fsspec

from store import Candidate, Kind


def candidate(name: str, root: str, kind: Kind) -> Candidate:
    """The file `name`, an absolute path, a URL, or a path below `root`. It need not exist: that shows when encoding."""
    uri = name if "://" in name else f"{root.rstrip('/')}/{name}" if "://" in root else os.path.join(root, name)
    if "://" not in uri:
        uri = os.path.abspath(uri)
    return Candidate(name=name, uri=uri, kind=kind, bytes=_size(uri))


def _size(uri: str) -> int | None:
    if "://" not in uri:
        path = Path(uri)
        return path.stat().st_size if path.is_file() else None
    fs, path_in_fs = fsspec.core.url_to_fs(uri)
    return int(fs.size(path_in_fs) or 0) if fs.exists(path_in_fs) else None
