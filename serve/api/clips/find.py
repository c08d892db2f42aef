"""Features of the media that are asked about: read from stores, remembered, or encoded from files.

A file is known by its bytes. Its features are looked for in memory, then in the cache on disk; requests that need the
same file at once share one encoding.
"""

import asyncio
import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from featurize.encoders import Units
from featurize.media import LateError, MediaError, MediaLimits
from serve.api.clips.cache import FeatureCache, Outcome, own_folder
from serve.api.clips.decoding import Decoders
from serve.api.clips.encoding import EncoderThread
from serve.api.errors import SHOWN, ApiError, log
from serve.api.media.files import SentFile, Spool
from serve.api.media.parts import Item
from serve.api.metrics import Metrics
from serve.api.settings import ApiSettings
from serve.features import Features, FeatureSource
from store import Arrays, MediaItem, Sense, UserError

P = ParamSpec("P")
R = TypeVar("R")
Known = Mapping[Sense, Arrays | MediaError]


@dataclass
class _Finding:
    """A file whose features are being found, and how many requests wait for them."""

    task: "asyncio.Task[Features]"
    waiting: int = 0


class Clips:
    """Finds features.

    Attributes:
        spool: where files are put before they are asked about.

    Args:
        features: of the checkpoint's encoders and columns.
        settings: of the server.
        metrics: count what is decoded and encoded.

    Raises:
        UserError: a store or the cache cannot be opened, or a store lacks a column of the checkpoint.
    """

    def __init__(self, features: FeatureSource, settings: ApiSettings, metrics: Metrics) -> None:
        self._features, self._metrics = features, metrics
        self._stores = settings.stores
        self._readers = {
            label: {sense: features.open(url, sense) for sense in features.senses}
            for label, url in settings.stores.items()
        }
        self._folder = ExitStack()
        storage = self._folder.enter_context(own_folder(settings.cache))
        self._cache = FeatureCache(storage, settings.cache_bytes, features.columns)
        self.spool = Spool(storage.root, settings.media_bytes)
        self._memory = Memory(settings.memory_bytes)
        self._finding: dict[str, _Finding] = {}
        limits = MediaLimits(settings.media_pixels, settings.media_frames, settings.media_seconds)
        self._decoders = Decoders(settings.decoders, settings.decode_seconds, limits)
        self._encoder = EncoderThread()
        self._cache_thread = ThreadPoolExecutor(1, "avllm cache")

    async def load(self, item: Item) -> Features:
        """The features of a store's item, for every sense that it and the checkpoint have.

        Raises:
            ApiError: the store has no such item.
        """
        return await asyncio.to_thread(self._load, item)

    async def find(self, file: SentFile) -> Features:
        """The features of a file, for every sense that it and the checkpoint have. The file is removed.

        Raises:
            ApiError: it cannot be encoded here.
        """
        known = self._memory.get(file.key)
        if known is not None:
            file.remove()
            self._metrics.remembered.inc()
            return known
        finding = self._finding.get(file.key)
        if finding:
            file.remove()
        else:
            finding = self._finding[file.key] = _Finding(asyncio.create_task(self._find(file)))
            finding.task.add_done_callback(lambda _: file.remove())
        return await self._shared(file.key, finding)

    async def close(self) -> None:
        """Stop decoding and encoding, and let go of the cache."""
        for finding in self._finding.values():
            finding.task.cancel()
        await asyncio.gather(*(finding.task for finding in self._finding.values()), return_exceptions=True)
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._decoders.close()
        self._encoder.close()
        self._cache_thread.shutdown()
        self._folder.close()

    def _load(self, item: Item) -> Features:
        readers = self._readers[item.store]
        senses = [sense for sense, reader in readers.items() if item.key in reader or item.key in reader.failed]
        if not senses:
            said = f"{item.where}: store {item.store} has no item {item.key[:SHOWN]!r}"
            raise ApiError(404, said, item.where, "item_not_found")
        return self._features.load(self._stores[item.store], item.key, senses)

    async def _shared(self, key: str, finding: _Finding) -> Features:
        """Wait together with others; what nobody waits for any more is dropped."""
        finding.waiting += 1
        try:
            return await asyncio.shield(finding.task)
        finally:
            finding.waiting -= 1
            if not finding.waiting:
                if self._finding.get(key) is finding:
                    del self._finding[key]
                finding.task.cancel()

    async def _find(self, file: SentFile) -> Features:
        known: Known = await self._in_cache_thread(self._cache.load, file.key)
        lacking = [sense for sense in self._features.senses if sense not in known]
        if lacking:
            made = await self._encode(file, lacking)
            await self._in_cache_thread(self._cache.save, file.key, file.kind, made)
            known = {**known, **{s: o if isinstance(o, MediaError) else o.arrays for s, o in made.items()}}
        else:
            self._metrics.remembered.inc()
        features = self._features.select(known)
        self._memory.keep(file.key, features)
        return features

    async def _encode(self, file: SentFile, senses: list[Sense]) -> dict[Sense, Outcome]:
        """Decode and encode a file.

        Raises:
            ApiError: decoding took too long, or the encoders are not those of the checkpoint.
        """
        started = time.perf_counter()
        item = MediaItem(file.key, str(file.path), file.kind, shard=0, position=0, bytes=None)
        try:
            prepared = await self._decoders.prepare(
                item, {sense: functools.partial(self._features.encoder, sense) for sense in senses}
            )
        except UserError as error:  # a column was imported, or an encoder's weights are others than in training
            log.error("files cannot be encoded: %s", error)
            raise ApiError(400, "this server has no encoder for files; ask about items of its stores") from None
        except LateError as error:  # not remembered: the machine may have been busy
            raise ApiError(422, error.reason, "messages", "too_slow") from None
        jobs = {sense: self._outcome(sense, item, units) for sense, units in prepared.items()}
        outcomes = dict(zip(jobs, await asyncio.gather(*jobs.values()), strict=True))
        self._metrics.encoded.inc()
        self._metrics.encode_seconds.observe(time.perf_counter() - started)
        return outcomes

    async def _outcome(self, sense: Sense, item: MediaItem, units: Units | MediaError) -> Outcome:
        if isinstance(units, MediaError):
            return units
        try:
            return await asyncio.wrap_future(self._encoder.encode(self._features.encoder(sense), item, units))
        except MediaError as error:
            return MediaError(error.code, error.reason)  # a new one: the raised one holds the file's frames

    async def _in_cache_thread(self, function: Callable[P, R], *words: P.args, **_: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._cache_thread, function, *words)


class Memory:
    """Features of files that were asked about last.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._features: OrderedDict[str, Features] = OrderedDict()

    def get(self, key: str) -> Features | None:
        """The features of a file, or None."""
        if key in self._features:
            self._features.move_to_end(key)
        return self._features.get(key)

    def keep(self, key: str, features: Features) -> None:
        """Keep features, and forget those that were not asked about for longest."""
        self._bytes += _size(features) - (_size(self._features[key]) if key in self._features else 0)
        self._features[key] = features
        while self._bytes > self._most:
            self._bytes -= _size(self._features.popitem(last=False)[1])


def _size(features: Features) -> int:
    return 1024 + sum(array.nbytes for array in features.arrays.values())
