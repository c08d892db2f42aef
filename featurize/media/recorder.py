"""Place the frames of an audio stream on the timeline of a file or of a part of it."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import av
import numpy as np
from numpy.typing import NDArray

from featurize.media.errors import MediaError, blamed
from featurize.media.sound import Sound, check_length

LOUDEST = 2.0**31  # for float files too: full scale is 1, but some hold integers of 16, 24 or 32 bits
RATES = range(1_000, 1_000_001)  # accepted Hz: resampling a second of 1 Hz makes 48,000 samples of one
SLACK = 0.1  # seconds that clocks may differ without it being a gap, as in FFmpeg's `aresample=async=1`
JUMP = 10.0  # seconds: a gap of this size in a broadcast is a clock jump, as in the ffmpeg command
BROADCAST = ("mpegts", "mpeg")  # formats whose clock may jump


class Recorder:
    """Turns decoded frames into mono `Sound`s at several rates.

    Time 0 is the beginning of the file or part. A frame later than the end of the one before it leaves silence between
    them; one that is earlier, or beyond the file's end, has another clock and follows directly.

    Attributes:
        begin: time 0, in seconds of the container's clock.
        at: when the next frame is expected, in seconds.
        heard: seconds of recorded frames.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        rates: Sequence[int],
        max_seconds: float,
        bounds: tuple[float, float] | None,
    ) -> None:
        start, end = bounds or (0.0, math.inf)
        origin = (container.start_time or 0) / 1e6
        self.begin, self.at, self.heard = origin + start, -start, 0.0
        self._start, self._length, self._cut = start, end - start, bounds is not None
        self._stop = origin + container.duration / 1e6 if container.duration else math.inf
        self._broadcast = str(container.format.name) in BROADCAST
        self._max_seconds = max_seconds
        self._sounds = {rate: Sound(rate) for rate in rates}
        self._mixer: _Mixer | None = None
        self._form: tuple[str, str, int] | None = None
        self._first = 0.0
        self._begun = self._jumped = False

    @property
    def reached(self) -> float:
        """Seconds to the end of the last frame: from the file's beginning for a part, else from the first frame."""
        return self._start + self.at if self._cut else self.at - self._first

    def is_late(self, frame: av.AudioFrame) -> bool:
        """Whether the first frame comes after time 0, or has no time."""
        return not self._begun and (frame.time is None or frame.time - self.begin > SLACK)

    def add(self, frame: av.AudioFrame) -> bool:
        """Add the next frame; return whether more are wanted.

        Raises:
            MediaError: its samples are invalid, or the sound exceeds its maximum length.
        """
        form = _form(frame)
        time = self._place(frame)
        if time >= self._length:
            return False
        seconds = frame.samples / frame.sample_rate
        self.at = time + seconds
        if self.at > 0:
            if form != self._form or not self._mixer:
                self._flush()
                bounds = (self.begin, self.begin + self._length) if self._cut else None
                with blamed("FFmpeg"):
                    self._form, self._mixer = form, _Mixer(frame, list(self._sounds), bounds)
            self._keep(self._mixer, frame)
            self.heard += seconds
        return True

    def finish(self, skipped: int, picture_end: float | None = None) -> dict[int, Sound]:
        """The finished sounds, by rate; `skipped` packets were lost.

        Args:
            picture_end: when the picture ends, in seconds of the container's clock, if the sound has ended.

        Raises:
            MediaError: the file ends before the part begins (`empty`).
        """
        if picture_end is not None and not self._jumped:
            end = min(picture_end - self.begin, self._length)
            if end > self.at + SLACK:
                self._silence(end)
        self._flush()
        if not all(map(len, self._sounds.values())):
            raise MediaError("empty", f"nothing from {self._start:g} s on: the sound ends at {self.reached:.1f} s")
        for sound in self._sounds.values():
            sound.skipped = skipped
        return self._sounds

    def _place(self, frame: av.AudioFrame) -> float:
        """The time of a frame; writes the silence before it."""
        if frame.time is None:
            return self.at
        time = frame.time - self.begin
        if not self._begun:
            self._begun = True
            self.at = min(time, 0.0) if self._cut else 0.0
            if 0 < time <= SLACK:
                self.begin, time = self.begin + time, 0.0
            self._first = time
        gap = time - self.at
        if abs(gap) <= SLACK:
            return self.at
        beyond = frame.time > self._stop + SLACK or (self._broadcast and gap >= JUMP)
        if gap < 0 or beyond:
            self.begin, self._jumped = self.begin + gap, True
            self._stop += gap
            self._flush()
            return self.at
        self._silence(min(time, self._length))
        return time

    def _silence(self, until: float) -> None:
        self._flush()
        for rate, sound in self._sounds.items():
            while (lacking := round(until * rate) - len(sound)) > 0:
                sound.append_silence(min(lacking, rate))
                check_length(len(sound) / rate, self._max_seconds)

    def _flush(self) -> None:
        """Write what the mixer buffers; the next frame starts a new mixer."""
        if self._mixer:
            self._keep(self._mixer, None)
            self._mixer = None

    def _keep(self, mixer: "_Mixer", frame: av.AudioFrame | None) -> None:
        with blamed("FFmpeg"):
            blocks = list(mixer.push(frame))
        for rate, block in blocks:
            if not (np.abs(block) <= LOUDEST).all():
                raise MediaError("unreadable", "invalid samples: NaN, infinite, or beyond the 32-bit range")
            sound = self._sounds[rate]
            sound.append(block)
            check_length(len(sound) / rate, self._max_seconds)


def _form(frame: av.AudioFrame) -> tuple[str, str, int]:
    if frame.sample_rate not in RATES:
        raise MediaError("unreadable", f"a sample rate of {frame.sample_rate} Hz")
    return frame.format.name, frame.layout.name, frame.sample_rate


class _Mixer:
    """Mixes frames of one form to mono and resamples them to several rates, as `av.AudioResampler` does to one.

    (Several resamplers cannot share frames: each may alter its input.) With `bounds`, in seconds of the frames' clock,
    samples outside are dropped first.
    """

    def __init__(self, frame: av.AudioFrame, rates: Sequence[int], bounds: tuple[float, float] | None) -> None:
        graph = av.filter.Graph()
        base = {"time_base": str(frame.time_base)} if frame.time_base else {}
        form = {"sample_rate": str(frame.sample_rate), "sample_fmt": frame.format.name}
        self._source = graph.add("abuffer", channel_layout=frame.layout.name, **form, **base)
        split = graph.add("asplit", outputs=str(len(rates)))
        if bounds:
            names = {"start": bounds[0], "end": bounds[1]}
            trim = graph.add("atrim", **{name: f"{time:.6f}" for name, time in names.items() if time < math.inf})
            self._source.link_to(trim)
            trim.link_to(split)
        else:
            self._source.link_to(split)
        self._sinks = {rate: graph.add("abuffersink") for rate in rates}
        for place, (rate, sink) in enumerate(self._sinks.items()):
            mono = graph.add("aformat", sample_rates=str(rate), sample_fmts="flt", channel_layouts="mono")
            split.link_to(mono, place, 0)
            mono.link_to(sink)
        graph.configure()
        self._graph = graph  # keeps its filters alive

    def push(self, frame: av.AudioFrame | None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Push a frame, or None at the end; yield the samples now ready at each rate, mono [n]."""
        with contextlib.suppress(av.error.EOFError):  # the graph takes nothing beyond the bounds
            self._source.push(frame)
        for rate, sink in self._sinks.items():
            with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):  # no more for now, no more at all
                while True:
                    yield rate, sink.pull().to_ndarray()[0]  # type: ignore[attr-defined]
