"""Files below folders that the server's settings allow. What a name leads to decides, not the name."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from serve.api.errors import ApiError
from serve.api.media.types import Types


def open_allowed(url: str, folders: Sequence[str], types: Types, where: str) -> tuple[BinaryIO, str]:
    """Open a file by its `file:` URL; also the extension by which it is read.

    Args:
        url: of the file.
        folders: that are allowed.
        types: that are accepted.
        where: the field of the request.

    Raises:
        ApiError: it is not a plain file below an allowed folder; the message is the same whether it exists or not.
    """
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path, errors="strict")).resolve(strict=True)
        allowed = [Path(folder).resolve(strict=True) for folder in folders]
        extension = types.endings.get(path.suffix.removeprefix(".").lower())
        if extension and parts.netloc in ("", "localhost") and not parts.query:
            return _opened(path, allowed), extension
    except (OSError, ValueError, RuntimeError):
        pass
    said = f"{where}: not a file of a known type below a folder that this server allows"
    raise ApiError(400, said, where, "url_not_allowed")


def _opened(path: Path, allowed: Sequence[Path]) -> BinaryIO:
    """Open a resolved path.

    Raises:
        OSError: it is no plain file below the folders, or is one no longer.
    """
    if not _is_below(path, allowed):
        raise PermissionError
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    opened = Path(f"/proc/self/fd/{file.fileno()}").readlink()  # a folder on the way may have become a link meanwhile
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and _is_below(opened, allowed):
        return file
    file.close()
    raise PermissionError


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
