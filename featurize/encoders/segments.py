"""Equal segments of an item's sound, for audio encoders."""

import itertools
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from featurize.encoders.base import MediaCache
from featurize.grid import segment_bounds
from featurize.media import MediaError, Sound
from store import Arrays


def segments_of(
    media: MediaCache, rate: int, max_seconds: float, counts: Sequence[int]
) -> tuple[Sound, list[tuple[int, int]]]:
    """The item's sound at `rate` Hz, and the bounds in samples of its segments, in the order of `counts`.

    Raises:
        MediaError: the sound cannot be used, or has fewer samples than segments.
    """
    sound = media.sound(rate, max_seconds)
    if len(sound) < max(counts):
        raise MediaError("unreadable", f"{len(sound)} samples of sound are too few for segments")
    return sound, [bounds for count in counts for bounds in segment_bounds(len(sound), count)]


def middle(start: int, end: int, length: int) -> tuple[int, int]:
    """Bounds of the middle `length` samples of a segment; its own bounds if it is no longer."""
    start += max(0, (end - start - length) // 2)
    return start, min(end, start + length)


def by_count(name: str, rows: NDArray[Any], counts: Sequence[int]) -> Arrays:
    """Split rows by count: `<name>.kX` holds the rows of the X segments, for each X of `counts`."""
    starts = [end - count for count, end in zip(counts, itertools.accumulate(counts), strict=True)]
    return {f"{name}.k{count}": rows[start : start + count] for count, start in zip(counts, starts, strict=True)}
