"""Decode video, image and sound files (PyAV, Pillow)."""

from featurize.media.audio import read_audio
from featurize.media.errors import MediaError
from featurize.media.frames import Frames
from featurize.media.image import read_image, scale
from featurize.media.isolated import Isolated
from featurize.media.sound import Sound, check_length
from featurize.media.video import read_video

__all__ = [
    "Frames",
    "Isolated",
    "MediaError",
    "Sound",
    "check_length",
    "read_audio",
    "read_image",
    "read_video",
    "scale",
]
