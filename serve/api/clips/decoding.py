"""Decode sent files in child processes, several at once. A file that nobody waits for is decoded no further."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from featurize.encoders import Encoder, Units
from featurize.media import Isolated, LateError, MediaError, MediaLimits, check_limits
from featurize.prepare import ItemMedia
from store import MediaItem, Sense

FILES = 64  # of a child: what its libraries leak then is given back

Encoders = Mapping[Sense, Callable[[], Encoder[Any]]]
Prepared = dict[Sense, Units | MediaError]


class Decoders:
    """Children that decode.

    Args:
        count: of children.
        seconds: longest decoding of a file's frames, or of its sound.
        limits: on files.
    """

    def __init__(self, count: int, seconds: float, limits: MediaLimits) -> None:
        self._seconds, self._limits = seconds, limits
        self._places = asyncio.Semaphore(count)
        self._threads = ThreadPoolExecutor(count, "avllm decoder")
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()

    async def prepare(self, item: MediaItem, encoders: Encoders) -> Prepared:
        """Decode a file once for the encoders of some senses: what each encodes, or why the file is of no use to it.

        Args:
            item: the file.
            encoders: of each sense; those are called in a thread, once the file keeps the limits.

        Raises:
            LateError: decoding took too long.
            UserError: an encoder cannot be built.
        """
        async with self._places:
            child = self._idle.pop() if self._idle else _Child(self._seconds)
            self._busy.add(child)
            work = asyncio.get_running_loop().run_in_executor(
                self._threads, child.prepare, item, encoders, self._limits
            )
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                child.stop()
                await asyncio.wait({work})
                raise
            finally:
                self._busy.discard(child)
                if child.is_useful:
                    self._idle.append(child)

    def close(self) -> None:
        """Kill the children."""
        for child in (*self._idle, *self._busy):
            child.stop()
        self._threads.shutdown()
        for child in self._idle:
            child.close()


class _Child:
    """A child process, started by its first file."""

    def __init__(self, seconds: float) -> None:
        self._isolated = Isolated(seconds=seconds)
        self._files = 0
        self.is_useful = True

    def prepare(self, item: MediaItem, encoders: Encoders, limits: MediaLimits) -> Prepared:
        self._files += 1
        try:
            return _prepare(item, encoders, limits, self._isolated)
        finally:
            if self._files == FILES:
                self._files = 0
                self._isolated.close()

    def stop(self) -> None:
        self.is_useful = False
        self._isolated.stop()

    def close(self) -> None:
        self._isolated.close()


def _prepare(item: MediaItem, encoders: Encoders, limits: MediaLimits, isolated: Isolated) -> Prepared:
    try:
        isolated(check_limits, item.uri, item.kind, limits)
    except LateError:
        raise
    except MediaError as error:
        return dict.fromkeys(encoders, error)
    built = {sense: encoder() for sense, encoder in encoders.items()}
    media = ItemMedia(item, list(built.values()), isolated, limits.seconds)
    return {sense: _units(item, encoder, media) for sense, encoder in built.items()}


def _units(item: MediaItem, encoder: Encoder[Any], media: ItemMedia) -> Units | MediaError:
    try:
        return encoder.prepare(item, media)
    except LateError:
        raise
    except MediaError as error:
        return MediaError(error.code, error.reason.replace(item.uri, "the file"))
