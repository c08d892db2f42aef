"""Decode each item once for all encoders that need it, in threads that run ahead of the encoders."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featurize.encoders import Encoder, MediaCache, Units
from featurize.media import Frames, MediaError, read_audio, read_image, read_video
from store import MediaItem

A = TypeVar("A")
B = TypeVar("B")


class ItemMedia(MediaCache):
    """Decodes an item's frames at the first request, for all the sizes and the finest grid that any encoder takes."""

    def __init__(self, item: MediaItem, sizes: Sequence[int], count: int) -> None:
        self._item, self._sizes, self._count = item, sizes, count
        self._frames: Frames | MediaError | None = None
        self._sounds: dict[int, NDArray[np.float32] | MediaError] = {}

    def frames(self, size: int, count: int) -> Frames:
        """The item's frames on the grid of `count`, taken from the finest grid's."""
        if self._frames is None:
            self._frames = _kept(self._read_frames)
        if isinstance(self._frames, MediaError):
            raise self._frames
        step = max(1, len(self._frames.index) // count)
        index, times = self._frames.index[::step], self._frames.times[::step]
        distinct, places = np.unique(index, return_inverse=True)
        return Frames({size: self._frames.pixels[size][distinct]}, places.astype(np.int64), times)

    def sound(self, rate: int, max_seconds: float) -> NDArray[np.float32]:
        """The item's samples at `rate` Hz."""
        if rate not in self._sounds:
            self._sounds[rate] = _kept(lambda: self._read_sound(rate, max_seconds))
        sound = self._sounds[rate]
        if isinstance(sound, MediaError):
            raise sound
        return sound

    def _read_frames(self) -> Frames:
        if self._item.kind == "audio":
            raise MediaError("absent", "a sound file has no frames")
        if self._item.kind == "image":
            return read_image(self._item.uri, self._sizes)
        return read_video(self._item.uri, self._sizes, self._count)

    def _read_sound(self, rate: int, max_seconds: float) -> NDArray[np.float32]:
        if self._item.kind == "image":
            raise MediaError("absent", "a still has no sound")
        return read_audio(self._item.uri, rate, max_seconds)


def _kept(read: Callable[[], A]) -> A | MediaError:
    try:
        return read()
    except MediaError as error:
        return error


def decoded(
    items: Iterable[MediaItem], encoders: Sequence[Encoder[Any]], threads: int
) -> Iterator[tuple[MediaItem, list[Units | MediaError]]]:
    """Each item, in order, with what each encoder takes of it; at most `2 * threads` items are held in memory."""
    sizes = sorted({encoder.size for encoder in encoders if encoder.size})
    count = math.lcm(*(encoder.places for encoder in encoders))  # all their grids nest in this one

    def prepare(item: MediaItem) -> tuple[MediaItem, list[Units | MediaError]]:
        media = ItemMedia(item, sizes, count)
        return item, [_kept(lambda e=encoder: e.prepare(item, media)) for encoder in encoders]  # type: ignore[misc]

    yield from _ahead(prepare, items, threads)


def _ahead(work: Callable[[A], B], inputs: Iterable[A], threads: int) -> Iterator[B]:
    """Map in order, with a bounded number of results waiting."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Any] = deque()
        for value in inputs:
            waiting.append(pool.submit(work, value))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
