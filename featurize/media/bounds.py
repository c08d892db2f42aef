"""Limits on what one file may cost, so that a worker's memory is bounded for any file."""

import contextlib
import threading
from collections.abc import Iterator

from featurize.media.errors import MediaError

MAX_PIXELS = 36_000_000  # of a video's frame: 8K has 35 million; a decoder may hold 17 such frames
MAX_STILL_PIXELS = 64_000_000  # of a still
MAX_FRAMES = 5_000_000  # of a video: 23 hours at 60 a second have 4.97 million
ALONE = 9_000_000  # pixels of a frame (4K has 8.9 million) above which only one such file at a time is decoded
_alone = threading.Lock()


@contextlib.contextmanager
def room(width: int, height: int, most: int) -> Iterator[None]:
    """Decode frames of this size inside; a process decodes one file of large frames at a time.

    Raises:
        MediaError: a frame has more than `most` pixels (`too_large`).
    """
    if width * height > most:
        raise MediaError("too_large", f"a frame of {width} x {height} pixels; at most {most} are taken")
    with _alone if width * height > ALONE else contextlib.nullcontext():
        yield
