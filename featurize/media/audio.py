"""The sound of a file, mono, at every rate that encoders take, from one decode."""

import contextlib
from collections.abc import Iterator, Sequence

import av
import numpy as np
from numpy.typing import NDArray

from featurize.media.decoding import TAGGED, Losses, decode
from featurize.media.errors import MediaError, blamed
from featurize.media.file import bounded, open_container
from featurize.media.promises import check_sound, seconds_promised
from featurize.media.sound import Sound

DEFAULT = 5_000_000  # channels that a stream's being the default one is worth
LOUDEST = 2.0**31  # in float files too: full scale is 1, but some hold the whole numbers of 16, 24 or 32 bits
RATES = range(1_000, 1_000_001)  # Hz that a stream may have: resampling a second of 1 Hz makes 48,000 samples of one


def read_audio(uri: str, rates: Sequence[int], max_seconds: float) -> dict[int, Sound]:
    """The audio stream that players play (the default one; of the most channels), mixed to mono at each of `rates` Hz.

    Raises:
        MediaError: the file is missing, empty, unreadable, truncated or longer than `max_seconds`, or has no audio
            stream (`absent`).
    """
    sounds = {rate: Sound(rate) for rate in rates}
    with open_container(uri) as container:
        if not container.streams.audio:
            raise MediaError("absent", "no audio stream")
        stream = max(container.streams.audio, key=_rank)
        bounded(stream)
        promised = seconds_promised(uri, container, stream)
        check_length(promised, max_seconds)
        losses = Losses()
        for rate, block in _blocks(container, stream, rates, losses):
            if not (np.abs(block) <= LOUDEST).all():
                raise MediaError("unreadable", "samples that are no sound: not a number, infinite or beyond 32 bits")
            sounds[rate].append(block)
            check_length(len(sounds[rate]) / rate, max_seconds)
        seconds = min(len(sound) / rate for rate, sound in sounds.items())
        losses.check(bool(seconds), tagged=container.format.name in TAGGED)
        check_sound(uri, container, stream, seconds, promised)
    for sound in sounds.values():
        sound.skipped = losses.skipped
    return sounds


def _rank(stream: av.AudioStream) -> int:
    """As the ffmpeg command ranks streams; of equals it takes the first. One without a decoder comes last."""
    if stream.codec_context is None:
        return -1
    return int(stream.channels) + DEFAULT * bool(stream.disposition & av.stream.Disposition.default)


def check_length(seconds: float, max_seconds: float) -> None:
    """Refuse a sound of more than `max_seconds`.

    Raises:
        MediaError: it is longer (`too_large`).
    """
    if seconds > max_seconds:
        raise MediaError("too_large", f"more than {max_seconds:.0f} s of sound (max_seconds)")


def _blocks(
    container: av.container.InputContainer, stream: av.AudioStream, rates: Sequence[int], losses: Losses
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Mono blocks [n] with their rates. A stream may change its form on the way: resampling then begins anew."""
    form: tuple[str, str, int] | None = None
    mixer: _Mixer | None = None
    with blamed("FFmpeg"):
        for frame in decode(container, stream, losses):
            if form != (form := _form(frame)):
                yield from mixer.push(None) if mixer else ()
                mixer = _Mixer(frame, rates)
            assert mixer
            yield from mixer.push(frame)
        yield from mixer.push(None) if mixer else ()


def _form(frame: av.AudioFrame) -> tuple[str, str, int]:
    if frame.sample_rate not in RATES:
        raise MediaError("unreadable", f"a sample rate of {frame.sample_rate} Hz")
    return frame.format.name, frame.layout.name, frame.sample_rate


class _Mixer:
    """Mixes frames of one form down to mono and resamples them to several rates, as `av.AudioResampler` does to one.

    (Several of those cannot share frames: each may alter those it is given.)
    """

    def __init__(self, frame: av.AudioFrame, rates: Sequence[int]) -> None:
        graph = av.filter.Graph()
        base = {"time_base": str(frame.time_base)} if frame.time_base else {}
        form = {"sample_rate": str(frame.sample_rate), "sample_fmt": frame.format.name}
        self._source = graph.add("abuffer", channel_layout=frame.layout.name, **form, **base)
        split = graph.add("asplit", outputs=str(len(rates)))
        self._source.link_to(split)
        self._sinks = {rate: graph.add("abuffersink") for rate in rates}
        for place, (rate, sink) in enumerate(self._sinks.items()):
            mono = graph.add("aformat", sample_rates=str(rate), sample_fmts="flt", channel_layouts="mono")
            split.link_to(mono, place, 0)
            mono.link_to(sink)
        graph.configure()
        self._graph = graph  # which holds what it is made of

    def push(self, frame: av.AudioFrame | None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Take a frame, or None at the end; what is now ready of each rate."""
        self._source.push(frame)
        for rate, sink in self._sinks.items():
            with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):  # no more for now, no more at all
                while True:
                    yield rate, sink.pull().to_ndarray()[0]  # type: ignore[attr-defined]
