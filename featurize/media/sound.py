"""Samples of a sound of any length, in bounded memory."""

import os
import tempfile
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from featurize.media.errors import MediaError

IN_MEMORY = 32 << 20  # bytes of a sound that are kept in memory (3 minutes at 48 kHz); a longer one goes to disk


def check_length(seconds: float, max_seconds: float) -> None:
    """Refuse a sound of more than `max_seconds`.

    Raises:
        MediaError: it is longer (`too_large`).
    """
    if seconds > max_seconds:
        raise MediaError("too_large", f"more than {max_seconds:.0f} s of sound (max_seconds)")


class Sound:
    """Mono samples, float32, at `rate` Hz; `len(sound)` of them, read by `sound[a:b]`, which copies.

    `skipped` counts packets that could not be decoded; `silent` counts samples added for times without sound.

    A long sound lies in an unlinked temporary file (in `TMPDIR`), so two hours of it cost no memory.
    """

    def __init__(self, rate: int) -> None:
        self.rate, self.skipped, self.silent = rate, 0, 0
        self._file: Any = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self._samples = 0

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """Samples float32 [b - a]; bounds as in a list slice, without a step."""
        start, stop, step = part.indices(len(self))
        assert step == 1
        samples = np.empty(max(0, stop - start), np.float32)
        self._file.seek(start * samples.itemsize)
        read = self._file.readinto(samples.view(np.uint8))
        assert read == samples.nbytes
        return samples

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Facts stored beside the arrays."""
        facts: dict[str, JsonValue] = {"seconds": round(len(self) / self.rate, 6)}
        if self.skipped:
            facts["skipped"] = self.skipped
        if self.silent:
            facts["silent"] = round(self.silent / self.rate, 6)
        return facts

    def append(self, samples: NDArray[np.float32]) -> None:
        """Add float32 [n] at the end."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(samples, np.float32).data)
        self._samples += len(samples)

    def append_silence(self, samples: int) -> None:
        """Add zeros for a time without sound."""
        self.append(np.zeros(samples, np.float32))
        self.silent += samples

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle for another process: hand over the open file, not its bytes."""
        if isinstance(self._file, tempfile.SpooledTemporaryFile):
            self._file.rollover()
        self._file.flush()
        return _received, (self.rate, len(self), self.skipped, self.silent, DupFd(self._file.fileno()))


def _received(rate: int, samples: int, skipped: int, silent: int, handle: Any) -> Sound:
    sound = Sound(rate)
    sound.skipped, sound.silent = skipped, silent
    sound._file, sound._samples = os.fdopen(handle.detach(), "rb+"), samples
    return sound
