"""Captions of clips, from the store's text columns, with the times that they are about."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from curate.curation import CaptionSettings, Perceived
from curate.texts import clean
from store import Column, ColumnReader, Storage, UserError, open_column

K_OF = re.compile(r"\.k(\d+)$")


class Span(NamedTuple):
    """A caption, and the seconds that it is about; None where they are not known."""

    text: str
    start: float | None = None
    end: float | None = None

    def __str__(self) -> str:
        return (
            self.text if self.start is None or self.end is None else f"{self.start:.1f}-{self.end:.1f} s: {self.text}"
        )


@dataclass(frozen=True)
class Clip:
    """The captions of a clip.

    Attributes:
        key: of the clip.
        frames: captions of its frames, in order; empty if it has none.
        segments: captions of its sound, in order; empty if it has none.
    """

    key: str
    frames: tuple[Span, ...] = ()
    segments: tuple[Span, ...] = ()

    def has(self, modality: Perceived) -> bool:
        """Whether it has the captions that an instruction of a modality needs."""
        return bool(self.frames or modality == "audio") and bool(self.segments or modality == "visual")


class Captions:
    """The captions of a store's clips.

    Args:
        storage: the store.
        settings: which columns.

    Raises:
        UserError: a column is not there, holds no text, or is of the other modality.
    """

    def __init__(self, storage: Storage, settings: CaptionSettings) -> None:
        self._frames, self._segments = (
            _Texts(storage, name, modality, settings.longest) if name else None
            for name, modality in ((settings.frames, "visual"), (settings.segments, "audio"))
        )
        self._clip = lru_cache(maxsize=4096)(self._read)

    @property
    def columns(self) -> list[Column]:
        """The columns that are read."""
        return [texts.reader.column for texts in (self._frames, self._segments) if texts]

    def held(self, keys: Sequence[str], modality: Perceived) -> list[str]:
        """Those of some clips of which the columns hold what an instruction of a modality can be about."""
        held = np.ones(len(keys), bool)
        for texts, other in ((self._frames, "audio"), (self._segments, "visual")):
            if modality != other:
                held &= texts.reader.rows(keys) >= 0 if texts else False
        return [keys[place] for place in np.flatnonzero(held)]

    def __getitem__(self, key: str) -> Clip:
        return self._clip(key)

    def _read(self, key: str) -> Clip:
        frames = self._frames.spans(key) if self._frames else ()
        segments = self._segments.spans(key) if self._segments else ()
        return Clip(key, frames, segments)


class _Texts:
    """A text column."""

    def __init__(self, storage: Storage, name: str, modality: str, longest: int) -> None:
        column = open_column(storage, name)
        texts = [feature for feature, spec in column.spec.features.items() if spec.dtype == "text"]
        field = "frames" if modality == "visual" else "segments"
        if column.spec.modality != modality or not texts:
            kind = column.spec.modality if texts else "no text"
            raise UserError(f"field 'captions.{field}': column {column.name} is {kind}, not {modality} captions")
        self._feature = max(texts, key=_segments_of)
        self._longest = longest
        self.reader = ColumnReader(column)

    def spans(self, key: str) -> tuple[Span, ...]:
        """The captions of a clip, equal neighbours as one."""
        if key not in self.reader:
            return ()
        texts = [clean(str(text), self._longest) for text in self.reader.read(key)[self._feature].tolist()]
        return tuple(merged(texts, _bounds(self.reader.facts(key), len(texts))))


def merged(texts: Sequence[str], bounds: Sequence[float] | None) -> Iterator[Span]:
    """Spans of captions that differ from their neighbours; empty ones are left out.

    Args:
        texts: N captions in order of time.
        bounds: N + 1 seconds, between which the captions hold; None if they are not known.
    """
    start = 0
    for end in range(1, len(texts) + 1):
        if end < len(texts) and texts[end].casefold() == texts[start].casefold():
            continue
        if texts[start]:
            yield Span(texts[start], bounds[start], bounds[end]) if bounds else Span(texts[start])
        start = end


def _segments_of(feature: str) -> int:
    """K of `caption.k4`; 0 of other features."""
    match = K_OF.search(feature)
    return int(match[1]) if match else 0


def _bounds(facts: Mapping[str, object], count: int) -> list[float] | None:
    """Seconds between which N captions hold, from the times of frames or the length of a sound."""
    times, seconds = facts.get("times"), facts.get("seconds")
    if isinstance(times, list) and len(times) == count > 1:
        return [*times, float(seconds) if isinstance(seconds, int | float) else times[-1]]
    if isinstance(seconds, int | float) and count:
        return [seconds * n / count for n in range(count + 1)]
    return None
