"""Limits on a file by what its header says, for files that strangers send.

A header may lie. `featurize.media.bounds` holds for what is decoded, whatever a header says.
"""

from dataclasses import dataclass

import av

from featurize.media.errors import MediaError
from featurize.media.file import open_container, picture_of
from featurize.media.image import open_image
from store import Kind


@dataclass(frozen=True)
class MediaLimits:
    """The most that a file may hold.

    Attributes:
        pixels: of a frame or still.
        frames: of a video.
        seconds: of a video or sound.
    """

    pixels: int
    frames: int
    seconds: float


def check_limits(uri: str, kind: Kind, limits: MediaLimits) -> None:
    """Read a file's header, and refuse a file that holds too much. One that cannot be opened is left to the decoder.

    Raises:
        MediaError: it holds too much (`too_large`).
    """
    try:
        counts = _still(uri) if kind == "image" else _film(uri)
    except MediaError as error:
        if error.code == "too_large":
            raise
        return
    for unit, count in counts.items():
        most = getattr(limits, unit)
        if count > most:
            raise MediaError("too_large", f"{count:.0f} {unit}; at most {most:g} are taken")


def _still(uri: str) -> dict[str, float]:
    with open_image(uri) as image:
        return {"pixels": image.width * image.height}


def _film(uri: str) -> dict[str, float]:
    with open_container(uri) as container:
        seconds = (container.duration or 0) / av.time_base
        stream = picture_of(container)
        pixels = (stream.width or 0) * (stream.height or 0) if stream else 0
        frames = (stream.frames or seconds * float(stream.average_rate or 0)) if stream else 0.0
        return {"pixels": pixels, "frames": frames, "seconds": seconds}
