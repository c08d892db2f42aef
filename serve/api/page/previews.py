"""Previews of media, decoded in a process of their own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

from featurize.media import Isolated, MediaError, MediaLimits
from serve.api.errors import ApiError
from serve.api.media.files import Incoming, SentFile, Spool
from serve.api.page.sketch import Source, sight_of, sound_of
from serve.api.settings import ApiSettings
from store import Sense
from trainer.features import Grid

WAITING = 16  # most previews under way or waiting
RETRY_SECONDS = 2
R = TypeVar("R")
Preview = dict[str, Any]


class Previews:
    """Makes previews, one at a time.

    Args:
        grid: of the checkpoint; its frames and segments are shown.
        settings: of the server.
        spool: where files are put before they are decoded.
    """

    def __init__(self, grid: Grid, settings: ApiSettings, spool: Spool) -> None:
        self._grid, self._spool = grid, spool
        self._isolated = Isolated(seconds=settings.decode_seconds)
        self._limits = MediaLimits(settings.media_pixels, settings.media_frames, settings.media_seconds)
        self._thread = ThreadPoolExecutor(1, "avllm previews")
        self._waiting = 0

    async def of_file(self, data: bytearray, extension: str) -> Preview:
        """The preview of a sent file that keeps the limits; it is removed again.

        Raises:
            ApiError: the file is empty, the disk is full, or too many previews are waiting.
        """
        sent = await asyncio.to_thread(_written, self._spool.receive(extension, "the file"), data)
        try:
            return await self.of_source(Source(str(sent.path), sent.kind, limits=self._limits))
        finally:
            sent.remove()

    async def of_source(self, source: Source) -> Preview:
        """Frames with their times, and the sound's outline with its segments; a sense that fails has its reason.

        Raises:
            ApiError: too many previews are waiting.
        """
        if self._waiting >= WAITING:
            raise ApiError(
                429, "too many previews; try again", code="queue_full", headers={"Retry-After": str(RETRY_SECONDS)}
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._preview, source)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the decoding process, and the preview that is under way."""
        self._isolated.stop()
        self._thread.shutdown(cancel_futures=True)
        self._isolated.close()

    def _preview(self, source: Source) -> Preview:
        preview: Preview = {"kind": source.kind, "sight": None, "sound": None, "failures": {}}
        if source.kind != "audio":
            sight = _kept(preview, "visual", source, lambda: self._isolated(sight_of, source, self._grid.frames))
            preview["sight"] = sight and asdict(sight)
        if source.kind != "image":
            sound = _kept(preview, "audio", source, lambda: self._isolated(sound_of, source))
            preview["sound"] = sound and {**asdict(sound), "segments": self._grid.segments}
        return preview


def _kept(preview: Preview, sense: Sense, source: Source, read: Callable[[], R]) -> R | None:
    """What was read, or None, with the reason among the preview's failures."""
    try:
        return read()
    except MediaError as error:
        preview["failures"][sense] = {"code": error.code, "reason": error.reason.replace(source.uri, "the file")}
        return None


def _written(incoming: Incoming, data: bytearray) -> SentFile:
    with incoming:
        incoming.write(memoryview(data))
        return incoming.finish()
