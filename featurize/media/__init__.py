"""Decode video, image and sound files (PyAV, Pillow)."""

from featurize.media.audio import read_audio
from featurize.media.errors import MediaError
from featurize.media.frames import Frames
from featurize.media.image import read_image, scale
from featurize.media.isolated import Isolated, LateError, StoppedError
from featurize.media.limits import MediaLimits, check_limits
from featurize.media.sound import Sound, check_length
from featurize.media.video import read_video

__all__ = [
    "Frames",
    "Isolated",
    "LateError",
    "MediaError",
    "MediaLimits",
    "Sound",
    "StoppedError",
    "check_length",
    "check_limits",
    "read_audio",
    "read_image",
    "read_video",
    "scale",
]
