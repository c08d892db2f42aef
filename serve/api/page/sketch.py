"""What the page shows of a medium: small pictures of the frames that encoders take, and the outline of its sound.

This module is imported by decoding processes, so it imports nothing heavy.
"""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from featurize.grid import segment_bounds
from featurize.media import MediaLimits, check_limits, read_audio, read_image, read_video
from store import Kind

SIZE = 160  # side of a picture in pixels; square, as encoders take frames
QUALITY = 82
RATE = 8000  # Hz: the outline needs no more
PEAKS = 120  # steps of the outline
LONGEST = 4 * 3600.0  # seconds of sound


@dataclass(frozen=True)
class Source:
    """A local file, or a part of one; attributes as in `MediaItem`, and limits on a file that a stranger sent."""

    uri: str
    kind: Kind
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    limits: MediaLimits | None = None

    def check(self) -> None:
        """Refuse a file that holds too much.

        Raises:
            MediaError: it does (`too_large`).
        """
        if self.limits:
            check_limits(self.uri, self.kind, self.limits)


@dataclass(frozen=True)
class Sight:
    """The frames of a medium.

    Attributes:
        pictures: the distinct frames, as JPEG in base64.
        index: the picture at each place of the grid.
        times: of each place, in seconds from the first frame; empty if unknown.
    """

    pictures: list[str]
    index: list[int]
    times: list[float]


@dataclass(frozen=True)
class Sound:
    """The sound of a medium.

    Attributes:
        seconds: its length.
        peaks: the largest amplitude in each of up to `PEAKS` equal steps, 0 to 100.
    """

    seconds: float
    peaks: list[int]


def sight_of(source: Source, count: int) -> Sight:
    """The `count` frames on the uniform grid of a film, or the one of a still.

    Raises:
        MediaError: as `read_video` and `read_image`.
    """
    source.check()
    if source.kind == "image":
        frames = read_image(source.uri, [SIZE])
    else:
        frames = read_video(source.uri, [SIZE], count, source.start, source.end, source.fps)
    pictures = [_jpeg(Image.fromarray(pixels)) for pixels in frames.pixels[SIZE]]
    return Sight(pictures, frames.index.tolist(), frames.times)


def sound_of(source: Source) -> Sound:
    """The outline of a sound.

    Raises:
        MediaError: as `read_audio`.
    """
    source.check()
    sound = read_audio(source.uri, [RATE], LONGEST, source.start, source.end)[RATE]
    steps = segment_bounds(len(sound), min(PEAKS, len(sound)))
    peaks = [min(100, round(100 * float(abs(sound[start:end]).max()))) for start, end in steps]
    return Sound(round(len(sound) / RATE, 3), peaks)


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
