"""Why a media file cannot be used: a code to count by, and a reason to read."""

import contextlib
import re
from collections.abc import Iterator

from store import FailureCode

OBJECT = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
LONGEST = 200  # characters of a reason


class MediaError(Exception):
    """A file, or one of its streams, cannot be used. It becomes a record in the sidecar."""

    def __init__(self, code: FailureCode, reason: str) -> None:
        reason = reason.encode(errors="backslashreplace").decode()  # it may name a file whose name is not UTF-8
        super().__init__(code, reason)  # both: a copy that crosses a process is made from them
        self.code: FailureCode = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@contextlib.contextmanager
def blamed(library: str) -> Iterator[None]:
    """What `library` raises in here is the file's doing, so it becomes a `MediaError`.

    Decoders meet hostile bytes with any kind of exception, so all kinds are taken. Only calls of the library belong
    in here: a mistake of ours must not pass for a bad file.
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
    text = OBJECT.sub("the file", str(text))  # the same file must give the same words in every run
    return " ".join(text.split())[:LONGEST]
