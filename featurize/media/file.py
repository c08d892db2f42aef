"""Open a media file, local or behind any fsspec URL."""

import contextlib
from collections.abc import Iterator

import av
import fsspec

from featurize.media.errors import MediaError
from store import FailureCode


def check_file(uri: str) -> int:
    """The size of the file in bytes.

    Raises:
        MediaError: there is no such file (`missing`), or it holds nothing (`empty`).
    """
    fs, path = fsspec.core.url_to_fs(uri)
    try:
        facts = fs.info(path)
    except FileNotFoundError:
        raise MediaError("missing", f"no such file: {uri}") from None
    if facts["type"] == "directory":
        raise MediaError("unreadable", f"a folder, not a media file: {uri}")
    if not facts["size"]:
        raise MediaError("empty", "the file has 0 bytes")
    return int(facts["size"])


@contextlib.contextmanager
def open_container(uri: str) -> Iterator[av.container.InputContainer]:
    """Open a video or sound file for reading; what goes wrong in FFmpeg while it is open becomes a `MediaError`."""
    check_file(uri)
    try:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(fsspec.open(uri, "rb")) if "://" in uri else uri
            yield stack.enter_context(av.open(source, metadata_errors="replace"))
    except av.error.FFmpegError as error:
        raise MediaError(_code(error), f"FFmpeg: {error.strerror}") from None


def _code(error: av.error.FFmpegError) -> FailureCode:
    return "truncated" if isinstance(error, av.error.EOFError) else "unreadable"
