"""Where a server listens and whom it lets in: checked before a checkpoint is loaded, so nothing here imports torch."""

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from serve.api.settings import ApiSettings
from store import UserError

VARIABLE = "AVLLM_API_KEY"
SHORTEST = 8  # characters of a key


def load_keys(path: str | None) -> list[str]:
    """The keys of a file, one a line, or else the one of the variable AVLLM_API_KEY; empty if there is neither.

    Raises:
        UserError: the file cannot be read or has no key, or a key is short or not plain ASCII.
    """
    if path is None:
        keys = [key for key in [os.environ.get(VARIABLE, "")] if key]
    else:
        try:
            keys = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        if not keys:
            raise UserError(f"{path}: has no key; expected one a line")
    for key in keys:
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(f"{path or VARIABLE}: a key needs {SHORTEST} or more printable ASCII characters, no blanks")
    return keys


def check_exposure(settings: ApiSettings, keys: Sequence[str]) -> None:
    """Refuse to let other machines in without a key.

    Raises:
        UserError: they would be.
    """
    if not settings.is_loopback and not keys:
        raise UserError(
            f"--host {settings.host} lets other machines in; give --key-file FILE or the variable {VARIABLE}"
        )


def listen(settings: ApiSettings) -> socket.socket:
    """A socket on the host and port, which nobody else has.

    Raises:
        UserError: they cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        other = "; take another --port" if error.errno == errno.EADDRINUSE else ""
        raise UserError(f"{settings.host}:{settings.port}: {error.strerror}{other}") from None
    return listener
