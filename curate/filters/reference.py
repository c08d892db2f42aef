"""What is known about a clip, as the rules compare texts with it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from curate.captions import Clip, Span
from curate.curation import Perceived
from curate.filters.words import meanings, subjects_of


class Moment(NamedTuple):
    """A caption and when it holds: from 0 to 1, where the last caption of its sense ends."""

    start: float
    end: float
    stems: frozenset[str]


@dataclass(frozen=True)
class Reference:
    """All captions of a clip, by which an instruction of one modality is verified.

    Attributes:
        modality: of the instruction.
        frames: captions of frames, of a clip that is only heard too.
        segments: captions of the sound, of a clip that is only seen too.
        fused: the fused captions that the instruction was written from, by modality.
    """

    modality: Perceived
    frames: tuple[Span, ...]
    segments: tuple[Span, ...]
    fused: Mapping[Perceived, str]

    @classmethod
    def of(cls, clip: Clip, modality: Perceived, fused: Mapping[Perceived, str]) -> "Reference":
        """That of a clip."""
        return cls(modality, clip.frames, clip.segments, fused)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """All captions of the modality."""
        spans = (*(self.frames if self.sees else ()), *(self.segments if self.hears else ()))
        return (*(span.text for span in spans), *self.fused.values())

    @property
    def sees(self) -> bool:
        """Whether the instruction is about what is seen."""
        return self.modality != "audio"

    @property
    def hears(self) -> bool:
        """Whether the instruction is about what is heard."""
        return self.modality != "visual"

    @cached_property
    def stems(self) -> frozenset[str]:
        """Content words of the captions."""
        return _stems(self.texts)

    @cached_property
    def meanings(self) -> frozenset[str]:
        """The stems and their synonyms."""
        return frozenset(meanings(self.stems))

    @cached_property
    def elsewhere(self) -> frozenset[str]:
        """Content words of captions that the instruction may not know: those of the other modality."""
        others = (*(() if self.sees else self.frames), *(() if self.hears else self.segments))
        return _stems(span.text for span in others) - self.meanings

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        """The captions and when they hold."""
        frames = _moments(self.frames) if self.sees else []
        return (*frames, *(_moments(self.segments) if self.hears else []))


def _stems(texts: Iterable[str]) -> frozenset[str]:
    return frozenset[str]().union(*map(subjects_of, texts))


def _moments(spans: tuple[Span, ...]) -> list[Moment]:
    """By their seconds, or evenly where these are not known."""
    ends = [span.end for span in spans if span.end is not None]
    if not spans or len(ends) < len(spans) or not max(ends):
        bounds = [(n / len(spans), (n + 1) / len(spans)) for n in range(len(spans))]
    else:
        bounds = [((span.start or 0.0) / max(ends), (span.end or 0.0) / max(ends)) for span in spans]
    return [Moment(*bound, _stems([span.text])) for span, bound in zip(spans, bounds, strict=True)]
