"""Why a media file cannot be used: a code to count by, and a reason to read."""

import contextlib
import re
from collections.abc import Iterator

from store import FailureCode

OBJECT = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
REASON_LENGTH = 200  # characters of a reason


class MediaError(Exception):
    """A file, or one of its streams, cannot be used. It becomes a record in the sidecar."""

    def __init__(self, code: FailureCode, reason: str) -> None:
        reason = reason.encode(errors="backslashreplace").decode()  # it may hold a file name that is not UTF-8
        super().__init__(code, reason)  # both: pickling rebuilds the error from them
        self.code: FailureCode = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@contextlib.contextmanager
def blamed(library: str) -> Iterator[None]:
    """Turn whatever `library` raises inside into a `MediaError`, since the file caused it.

    Decoders answer hostile bytes with any exception, so all are caught. Only calls of the library belong inside: our
    own bugs must not pass for bad files.
    """
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(_code(error), f"{library}: {_words(error)}") from None


def _code(error: Exception) -> FailureCode:
    if isinstance(error, MemoryError):
        return "too_large"
    if isinstance(error, FileNotFoundError):
        return "missing"
    return "truncated" if isinstance(error, EOFError) or "truncated" in _words(error) else "unreadable"


def _words(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = OBJECT.sub("the file", str(text))  # the reason must not differ from run to run
    return " ".join(text.split())[:REASON_LENGTH]
