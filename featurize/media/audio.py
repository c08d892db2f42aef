"""Decode a file's sound once, mono, at every rate that encoders take, on the timeline of the file.

Sound keeps its time: silence fills in where it begins after the picture, has a hole or ends before the picture.
"""

import contextlib
import math
from collections.abc import Sequence

import av

from featurize.media.decoding import TAGGED, Beside, Losses, decode
from featurize.media.errors import MediaError
from featurize.media.file import bounded, open_container, picture_of
from featurize.media.recorder import Recorder
from featurize.media.sound import Sound, check_length
from featurize.media.stills import is_folder
from featurize.media.truncation import check_sound, seconds_promised

DEFAULT = 5_000_000  # channels that the default flag is worth when streams are ranked
LEAD = 1.0  # seconds decoded before a part, since codecs depend on earlier packets
# Formats whose packets carry their times, which are therefore right after a seek too.
TIMED = ("mov", "matroska", "mpegts", "flv", "asf", "ogg", "wav", "w64", "aiff", "caf", "au", "nut", "mxf")


class _LateError(Exception):
    """Decoding began after the time that was sought."""


def read_audio(
    uri: str, rates: Sequence[int], max_seconds: float, start: float | None = None, end: float | None = None
) -> dict[int, Sound]:
    """The audio stream that players choose (default flag, then channels), mixed to mono, as a `Sound` by rate.

    The sound begins where the file does, with picture or sound, and ends with the longer of the two. A part begins and
    ends at its bounds, as far as the file goes.

    Args:
        uri: path or fsspec URL.
        rates: in Hz.
        max_seconds: maximum length of a sound.
        start: of a part, in seconds from the beginning.
        end: of a part, in seconds from the beginning.

    Raises:
        MediaError: the file is missing, empty, unreadable, truncated or longer than `max_seconds`, has no audio stream
            (`absent`), or ends before `start` (`empty`).
    """
    if is_folder(uri):
        raise MediaError("absent", "a folder of stills has no sound")
    bounds = None if start is None and end is None else (start or 0.0, math.inf if end is None else end)
    if bounds and bounds[0] > LEAD:
        with contextlib.suppress(_LateError):
            return _read(uri, rates, max_seconds, bounds, sought=True)
    return _read(uri, rates, max_seconds, bounds)


def _read(
    uri: str, rates: Sequence[int], max_seconds: float, bounds: tuple[float, float] | None, sought: bool = False
) -> dict[int, Sound]:
    """Read a file or a part of it; with `sought`, decode only from shortly before the part."""
    with open_container(uri) as container:
        if not container.streams.audio:
            raise MediaError("absent", "no audio stream")
        stream = max(container.streams.audio, key=_rank)
        bounded(stream)
        promised = seconds_promised(uri, container, stream)
        check_length(min(promised, bounds[1] - bounds[0]) if bounds else promised, max_seconds)
        picture = picture_of(container)
        beside = Beside(picture) if picture else None
        recorder = Recorder(container, rates, max_seconds, bounds)
        if sought:
            _seek(container, stream, recorder.begin - LEAD)
        losses = Losses()
        for frame in decode(container, stream, losses, beside):
            if sought and recorder.is_late(frame):
                raise _LateError
            if not recorder.add(frame):
                return recorder.finish(losses.skipped)
        if sought and not recorder.heard:
            raise _LateError
        losses.check(bool(recorder.heard), tagged=container.format.name in TAGGED)
        check_sound(uri, container, stream, recorder.reached, promised)
        return recorder.finish(losses.skipped, beside.end if beside else None)


def _seek(container: av.container.InputContainer, stream: av.AudioStream, seconds: float) -> None:
    """Seek to a time of the container's clock, if its packets carry times."""
    if str(container.format.name).split(",", 1)[0] not in TIMED:
        raise _LateError
    try:
        container.seek(round(seconds / (stream.time_base or 1)), stream=stream)
    except av.error.FFmpegError:
        raise _LateError from None


def _rank(stream: av.AudioStream) -> int:
    """Rank streams as the ffmpeg command does; the first of equals wins. A stream without a decoder comes last."""
    if stream.codec_context is None:
        return -1
    return int(stream.channels) + DEFAULT * bool(stream.disposition & av.stream.Disposition.default)
