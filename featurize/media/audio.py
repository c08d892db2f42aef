"""The sound of a file: mono samples at the rate that encoders take."""

import itertools

import av
import numpy as np
from numpy.typing import NDArray

from featurize.media.errors import MediaError
from featurize.media.file import open_container

TRUNCATED = 0.95  # a stream that holds less than this share of its promised duration is truncated
SLACK_SECONDS = 0.5  # ... unless it is only this much short: codecs pad and headers round


def read_audio(uri: str, rate: int, max_seconds: float) -> NDArray[np.float32]:
    """All samples of the first audio stream, mixed to mono, float32 [samples] at `rate` Hz.

    Raises:
        MediaError: the file is missing, empty, unreadable, truncated or longer than `max_seconds`, or has no audio
            stream (`absent`).
    """
    blocks: list[NDArray[np.float32]] = []
    count = 0
    with open_container(uri) as container:
        if not container.streams.audio:
            raise MediaError("absent", "no audio stream")
        stream = container.streams.audio[0]
        promised = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        if promised > max_seconds:
            raise MediaError("too_large", f"{promised:.0f} s of sound; max_seconds is {max_seconds:.0f}")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        for frame in itertools.chain(container.decode(stream), [None]):
            for block in resampler.resample(frame):
                blocks.append(block.to_ndarray()[0])
                count += len(blocks[-1])
            if count > max_seconds * rate:
                raise MediaError("too_large", f"more than {max_seconds:.0f} s of sound (max_seconds)")
    seconds = count / rate
    if seconds < TRUNCATED * promised - SLACK_SECONDS:
        raise MediaError("truncated", f"{seconds:.1f} s of the {promised:.1f} s of sound that the header promises")
    if not count:
        raise MediaError("unreadable", "the audio stream holds no samples")
    return np.concatenate(blocks)
