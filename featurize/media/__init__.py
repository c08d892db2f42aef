"""Decode video, image and sound files (PyAV, Pillow)."""

from featurize.media.audio import read_audio
from featurize.media.errors import MediaError
from featurize.media.video import Frames, read_image, read_video, scale

__all__ = ["Frames", "MediaError", "read_audio", "read_image", "read_video", "scale"]
