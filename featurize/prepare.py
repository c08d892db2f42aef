"""Decode each item once for all encoders that need it, in threads that run ahead of the encoders."""

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from pydantic import JsonValue

from featurize.encoders import Encoder, MediaCache, Units
from featurize.media import Frames, Isolated, MediaError, Sound, check_length, read_audio, read_image, read_video
from featurize.media.isolated import CALL_SECONDS
from store import MediaItem

A = TypeVar("A")
Prepared = tuple[MediaItem, list[Units | MediaError]]


def call(function: Callable[..., A], *words: Any) -> A:
    """Call `function` in this process; `Isolated` calls it in a child process."""
    return function(*words)


class ItemMedia(MediaCache):
    """Decodes an item's frames and sound on first request, covering what every encoder needs of them.

    Args:
        item: the media file.
        encoders: every encoder that will read the item; one decode serves their sizes, grids and rates.
        call: runs a decoder, in this process or in a child.
        max_seconds: a lower limit on the sound than the encoders' own.
    """

    def __init__(
        self,
        item: MediaItem,
        encoders: Sequence[Encoder[Any]],
        call: Callable[..., Any] = call,
        max_seconds: float = math.inf,
    ) -> None:
        self._item, self._call, self._max_seconds = item, call, max_seconds
        self._watching = [encoder for encoder in encoders if encoder.size]
        self._listening = [encoder for encoder in encoders if encoder.rate]
        self._frames: Frames | MediaError | None = None
        self._sounds: dict[int, Sound] | MediaError | None = None

    def frames(self, size: int, count: int) -> Frames:
        """The item's frames on the grid of `count`, taken from one grid in which those of all encoders nest."""
        if self._frames is None:
            self._frames = _kept(self._read_frames)
        if isinstance(self._frames, MediaError):
            raise self._frames
        frames = self._frames
        step = max(1, len(frames.index) // count)
        distinct, places = np.unique(frames.index[::step], return_inverse=True)
        pixels = {size: frames.pixels[size][distinct]}
        return replace(frames, pixels=pixels, index=places.astype(np.int64), times=frames.times[::step])

    def sound(self, rate: int, max_seconds: float) -> Sound:
        """The item's sound at `rate` Hz."""
        if self._sounds is None:
            self._sounds = _kept(self._read_sounds)
        if isinstance(self._sounds, MediaError):
            raise self._sounds
        sound = self._sounds[rate]
        check_length(len(sound) / rate, max_seconds)
        return sound

    def _read_frames(self) -> Frames:
        if self._item.kind == "audio":
            raise MediaError("absent", "a sound file has no frames")
        sizes = sorted({encoder.size for encoder in self._watching})
        if self._item.kind == "image":
            return self._call(read_image, self._item.uri, sizes)  # type: ignore[no-any-return]
        common = math.lcm(*(encoder.frame_count for encoder in self._watching))  # every encoder's grid nests in it
        part = [self._item.start, self._item.end, self._item.fps]
        return self._call(read_video, self._item.uri, sizes, common, *_given(part))  # type: ignore[no-any-return]

    def _read_sounds(self) -> dict[int, Sound]:
        if self._item.kind == "image":
            raise MediaError("absent", "a still has no sound")
        rates = sorted({encoder.rate for encoder in self._listening})
        longest = min(self._max_seconds, max(encoder.settings.max_seconds for encoder in self._listening))
        part = [self._item.start, self._item.end]
        return self._call(read_audio, self._item.uri, rates, longest, *_given(part))  # type: ignore[no-any-return]


def _kept(read: Callable[[], A]) -> A | MediaError:
    try:
        return read()
    except MediaError as error:
        return error


def decoded(
    items: Iterable[MediaItem], encoders: Sequence[Encoder[Any]], threads: int, careful: bool = False
) -> Iterator[Prepared]:
    """Each item, in order, with its units for each encoder; holds at most `2 * threads` items in memory.

    Threads of this process decode, and an item that they do not finish in `CALL_SECONDS` ends the process. With
    `careful`, items are decoded one at a time in a child process: one that crashes the decoder, hangs or takes too much
    memory is recorded, and this process survives. The results are the same.
    """
    if careful:
        with Isolated() as isolated:
            for item in items:
                yield _prepared(item, encoders, isolated)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[MediaItem, Future[Prepared]]] = deque()
        for item in items:
            ahead.append((item, pool.submit(_prepared, item, encoders, call)))
            if len(ahead) >= 2 * threads:
                yield _awaited(*ahead.popleft())
        while ahead:
            yield _awaited(*ahead.popleft())


def _awaited(item: MediaItem, prepared: Future[Prepared]) -> Prepared:
    """An item's result. A thread that hangs cannot be ended, so its process ends: a run has lost a worker."""
    if not wait([prepared], CALL_SECONDS).done:
        reason = f"decoding took more than {CALL_SECONDS:g} s; the worker ends, and a run tries its shard again"
        print(f"{item.uri}: {reason}", file=sys.stderr, flush=True)
        os._exit(1)
    return prepared.result()


def _prepared(item: MediaItem, encoders: Sequence[Encoder[Any]], call: Callable[..., Any]) -> Prepared:
    media = ItemMedia(item, encoders, call)
    return item, [_kept(lambda e=encoder: _bounded(item, e.prepare(item, media))) for encoder in encoders]  # type: ignore[misc]


def _bounded(item: MediaItem, units: Units) -> Units:
    """Add the bounds of a part of a file to its facts."""
    if not item.is_part:
        return units
    bounds: dict[str, JsonValue] = {"start": item.start, "end": item.end}
    return replace(units, facts=units.facts | bounds)


def _given(part: Sequence[float | None]) -> Sequence[float | None]:
    """The bounds of a part; empty for a whole file."""
    return part if any(value is not None for value in part) else ()
