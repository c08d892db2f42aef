"""The types of files that each part of a request takes, and the extensions by which they are read.

The extension decides between still, clip and sound; decoders look at the bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from featurize.sources.kinds import EXTENSIONS


@dataclass(frozen=True)
class Types:
    """The types that a part takes.

    Attributes:
        declared: media types, and the extension by which each is read.
        endings: extensions of names, and the extension by which each is read.
    """

    declared: Mapping[str, str]
    endings: Mapping[str, str]


ACCEPTED: Mapping[str, Types] = {
    "image_url": Types(
        {
            "image/png": "png", "image/jpeg": "jpg", "image/jpg": "jpg", "image/webp": "webp", "image/gif": "png",
            "image/bmp": "bmp", "image/tiff": "tif", "image/avif": "avif",
        },
        {**{ending: ending for ending in EXTENSIONS["image"]}, "gif": "png"},
    ),
    "video_url": Types(
        {
            "video/mp4": "mp4", "video/x-m4v": "m4v", "video/quicktime": "mov", "video/webm": "webm",
            "video/x-matroska": "mkv", "video/x-msvideo": "avi", "video/mpeg": "mpg", "video/mp2t": "ts",
            "video/x-flv": "flv", "video/x-ms-wmv": "wmv", "video/3gpp": "3gp", "video/ogg": "ogv", "image/gif": "gif",
        },
        {ending: ending for ending in EXTENSIONS["video"]},
    ),
    "audio_url": Types(
        {
            "audio/wav": "wav", "audio/x-wav": "wav", "audio/wave": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3",
            "audio/flac": "flac", "audio/x-flac": "flac", "audio/ogg": "ogg", "audio/opus": "opus", "audio/mp4": "m4a",
            "audio/x-m4a": "m4a", "audio/aac": "aac", "audio/webm": "weba", "audio/aiff": "aiff",
            "audio/x-aiff": "aiff",
        },
        {ending: ending for ending in EXTENSIONS["audio"]},
    ),
}  # fmt: skip
