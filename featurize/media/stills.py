"""Read a folder of stills as a film: frames that were extracted from a video beforehand."""

import math
import posixpath
import re
from collections.abc import Iterable, Sequence

import fsspec
import numpy as np
from PIL import Image

from featurize.grid import frame_indices
from featurize.media.bounds import MAX_FRAMES
from featurize.media.errors import MediaError
from featurize.media.frames import Frames
from featurize.media.image import FORMATS, read_image

NUMBERS = re.compile(r"([0-9]+)")
SLACK = 1e-6  # of a frame: rounding tolerance of bounds in seconds


def is_folder(uri: str) -> bool:
    """Whether a folder exists here; a remote one costs one request and is not listed."""
    fs, path = fsspec.core.url_to_fs(uri)
    try:
        return bool(fs.info(path)["type"] == "directory")
    except OSError:
        return False


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names by the numbers in them: `frame-9` before `frame-10`."""
    return sorted(names, key=lambda name: ([int(p) if p.isdigit() else p for p in NUMBERS.split(name)], name))


def stills_of(uri: str) -> list[str]:
    """The names of the stills in a folder, in order; hidden and other files are skipped.

    Raises:
        MediaError: there are none (`unreadable`), or more than `MAX_FRAMES` (`too_large`).
    """
    fs, path = fsspec.core.url_to_fs(uri)
    names = (str(name).rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))
    suffixes = {suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS}
    stills = [name for name in names if posixpath.splitext(name)[1].lower() in suffixes and not name.startswith(".")]
    if not stills:
        raise MediaError("unreadable", "not a plain file, but a folder without stills")
    if len(stills) > MAX_FRAMES:
        raise MediaError("too_large", f"more than {MAX_FRAMES} frames")
    return in_order(stills)


def read_folder(
    uri: str,
    sizes: Sequence[int],
    count: int,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
) -> Frames:
    """`count` stills of a folder on the uniform grid; `fps` is stills per second.

    Raises:
        MediaError: no still is within the bounds, bounds are given without `fps`, or a wanted still cannot be read,
            which the reason names.
    """
    names = stills_of(uri)
    first, last = _bounds(len(names), start, end, fps)
    places = first + frame_indices(last - first, count)
    distinct, index = np.unique(places, return_inverse=True)
    read = [_frame(uri, names[place], sizes) for place in distinct.tolist()]
    pixels = {size: np.concatenate([frame.pixels[size] for frame in read]) for size in sizes}
    times = [round((place - first) / fps, 6) for place in places.tolist()] if fps else []
    return Frames(pixels, index.astype(np.int64), times, stills=len(names))


def _frame(uri: str, name: str, sizes: Sequence[int]) -> Frames:
    try:
        return read_image(f"{uri.rstrip('/')}/{name}", sizes)
    except MediaError as error:
        raise MediaError(error.code, f"{name}: {error.reason}") from None


def _bounds(stills: int, start: float | None, end: float | None, fps: float | None) -> tuple[int, int]:
    """Index range of the stills within the bounds; if there are none, of the one shown at `start`."""
    if start is None and end is None:
        return 0, stills
    if not fps:
        raise MediaError("unreadable", "a part of a folder of stills, whose frames a second are not known (plan --fps)")
    first = math.ceil((start or 0.0) * fps - SLACK)
    last = stills if end is None else min(stills, math.ceil(end * fps - SLACK))
    if first >= stills:
        raise MediaError("empty", f"nothing from {start:g} s on: its {stills} stills are {stills / fps:.1f} s")
    if last <= first:
        first = max(0, last - 1)
        last = first + 1
    return first, last
