"""Encode the files of several requests together, in the one thread that uses the device."""

import itertools
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

from pydantic import JsonValue

from featurize.encoders import Encoder, Units
from featurize.media import MediaError
from featurize.shard_job import Batcher
from serve.api.clips.cache import Encoded
from store import Arrays, Failure, MediaItem


@dataclass(frozen=True)
class _Job:
    encoder: Encoder[Any]
    item: MediaItem
    units: Units
    future: "Future[Encoded]" = field(default_factory=Future)


class _Waiting:
    """The jobs of a round by their items' keys, to which a `Batcher` gives results."""

    def __init__(self) -> None:
        self.jobs: dict[str, _Job] = {}

    def add(self, key: str, arrays: Arrays, facts: Mapping[str, JsonValue]) -> None:
        """Deliver a result."""
        self.jobs.pop(key).future.set_result(Encoded(arrays, facts))

    def fail(self, failure: Failure) -> None:
        """Deliver a failure."""
        self.jobs.pop(failure.key).future.set_exception(MediaError(failure.code, failure.reason))


class EncoderThread:
    """Encodes what waits at the same time in batches, whose rows do not depend on each other.

    So the arrays are those that `FeatureSource.encode` gives.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="avllm encoder", daemon=True)
        self._thread.start()

    def encode(self, encoder: Encoder[Any], item: MediaItem, units: Units) -> "Future[Encoded]":
        """An item's arrays, later; a `MediaError` if its numbers are not finite."""
        job = _Job(encoder, replace(item, key=str(next(self._numbers))), units)
        self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Encode what is waiting, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._jobs.get()) is not None:
            later = [self._jobs.get() for _ in range(self._jobs.qsize())]
            waiting = _Waiting()
            jobs = [job for job in (first, *later) if job and job.future.set_running_or_notify_cancel()]
            try:
                _encode(jobs, waiting)
            except Exception as error:  # of the device: whoever waits is told, and the next round may succeed
                for job in waiting.jobs.values():
                    job.future.set_exception(error)
            if None in later:
                return


def _encode(jobs: list[_Job], waiting: _Waiting) -> None:
    waiting.jobs = {job.item.key: job for job in jobs}
    batchers: dict[Encoder[Any], Batcher] = {}
    for job in jobs:
        batchers.setdefault(job.encoder, Batcher(job.encoder, waiting)).push(job.item, job.units)
    for batcher in batchers.values():
        batcher.flush()
