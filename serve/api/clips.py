"""Features of the media that are asked about: read from stores, or encoded from sent files and kept in memory."""

import asyncio
import itertools
import tempfile
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featurize.media import MediaError
from serve.api.errors import ApiError, log
from serve.api.media import Item, Upload
from serve.api.metrics import Metrics
from serve.api.settings import ApiSettings
from serve.features import Features, FeatureSource
from store import UserError


@dataclass
class _Encoding:
    """A file that is being encoded, and how many requests wait for it."""

    task: "asyncio.Task[Features]"
    waiting: int = 0


class Clips:
    """Finds features. A file that several requests send at once is encoded once, and not again while it is remembered.

    Only files without failures are remembered: a deadline missed under load must not stick to a file.

    Args:
        features: of the checkpoint's encoders and columns.
        settings: of the server.
        metrics: count what is encoded.

    Raises:
        UserError: a store cannot be opened, or lacks a column of the checkpoint.
    """

    def __init__(self, features: FeatureSource, settings: ApiSettings, metrics: Metrics) -> None:
        self._features, self._metrics = features, metrics
        self._most_bytes = settings.cache_bytes
        self._readers = {
            label: {sense: features.open(url, sense) for sense in features.senses}
            for label, url in settings.stores.items()
        }
        self._stores = settings.stores
        self._remembered: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0
        self._numbers = itertools.count()  # of files, since one that nobody waits for may still be open
        self._encoding: dict[str, _Encoding] = {}
        self._encoder = ThreadPoolExecutor(1, "avllm encoder")
        self._folder = tempfile.TemporaryDirectory(prefix="avllm-api-")

    async def find(self, medium: Item | Upload) -> Features:
        """The features of a medium, for every sense that it and the checkpoint have.

        Raises:
            ApiError: the store has no such item.
        """
        if isinstance(medium, Item):
            return await asyncio.to_thread(self._load, medium)
        if medium.name in self._remembered:
            self._remembered.move_to_end(medium.name)
            self._metrics.remembered.inc()
            return self._remembered[medium.name]
        return await self._shared(medium)

    async def close(self) -> None:
        """Stop encoding and remove what was sent."""
        for encoding in [*self._encoding.values()]:
            encoding.task.cancel()
        self._encoder.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._features.close)
        self._folder.cleanup()

    def _load(self, item: Item) -> Features:
        readers = self._readers[item.store]
        senses = [sense for sense, reader in readers.items() if item.key in reader or item.key in reader.failed]
        if not senses:
            raise ApiError(404, f"store {item.store} has no such item", code="item_not_found")
        return self._features.load(self._stores[item.store], item.key, senses)

    async def _shared(self, upload: Upload) -> Features:
        """Wait for the one encoding of a file; it is dropped when nobody waits any more."""
        encoding = self._encoding.get(upload.name)
        if encoding is None:
            encoding = self._encoding[upload.name] = _Encoding(asyncio.create_task(self._encode(upload)))
        encoding.waiting += 1
        try:
            return await asyncio.shield(encoding.task)
        finally:
            encoding.waiting -= 1
            if not encoding.waiting:
                del self._encoding[upload.name]
                encoding.task.cancel()

    async def _encode(self, upload: Upload) -> Features:
        path = Path(self._folder.name, f"{next(self._numbers)}-{upload.name}")
        try:
            await asyncio.to_thread(path.write_bytes, upload.data)
            features = await asyncio.get_running_loop().run_in_executor(self._encoder, self._timed, str(path))
        finally:
            path.unlink(missing_ok=True)
        self._remember(upload.name, features)
        return features

    def _timed(self, path: str) -> Features:
        started = time.perf_counter()
        try:
            features = self._features.encode(path, self._features.senses)
        except UserError as error:  # a column was imported, or an encoder's weights are others than in training
            log.error("files cannot be encoded: %s", error)
            raise ApiError(400, "this server has no encoder for files; ask about items of its stores") from None
        self._metrics.encoded.inc()
        self._metrics.encode_seconds.observe(time.perf_counter() - started)
        return features

    def _remember(self, name: str, features: Features) -> None:
        """Keep features, and forget those that were not asked about for longest."""
        if any(_is_fault(error) for error in features.failures.values()) or _size(features) > self._most_bytes:
            return
        self._remembered[name] = features
        self._bytes += _size(features)
        while self._bytes > self._most_bytes:
            self._bytes -= _size(self._remembered.popitem(last=False)[1])


def _is_fault(error: MediaError) -> bool:
    """Whether a sense fails that the file should have."""
    return error.code != "absent"


def _size(features: Features) -> int:
    return 1024 + sum(array.nbytes for array in features.arrays.values())
