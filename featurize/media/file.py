"""Open a media file, local or behind any fsspec URL."""

import contextlib
from collections.abc import Iterator
from typing import Any

import av
import fsspec

from featurize.media.bounds import MAX_PIXELS
from featurize.media.errors import MediaError, blamed
from featurize.media.structure import container_is_truncated

# Demuxers of self-contained files. Playlists (hls, dash, concat, sdp) would make FFmpeg open other files.
FORMATS = (
    "mov,matroska,avi,flv,asf,mpeg,mpegts,mpegvideo,ogg,rm,mxf,nut,ivf,dv,wtv,h264,hevc,m4v,obu,mjpeg,gif,apng,webp,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,gif_pipe,"
    "wav,w64,flac,mp3,aac,ac3,eac3,dts,aiff,au,caf,amr,ape,wv,tta,tak,mpc,mpc8,dsf,truehd,voc"
)
DEFAULT = 5_000_000  # pixels that the default flag is worth when streams are ranked
OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}


def check_file(uri: str) -> int:
    """The size of the file in bytes.

    Raises:
        MediaError: the file does not exist (`missing`), has 0 bytes (`empty`), or is not a plain file or not readable
            (`unreadable`).
    """
    fs, path = fsspec.core.url_to_fs(uri)
    try:
        facts = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError("missing", f"no such file: {uri}") from None
    except OSError as error:
        raise MediaError("unreadable", f"{error.strerror or type(error).__name__}: {uri}") from None
    if facts["type"] != "file":
        raise MediaError("unreadable", f"not a plain file ({facts['type']}): {uri}")
    if not facts["size"]:
        raise MediaError("empty", "the file has 0 bytes")
    return int(facts["size"])


@contextlib.contextmanager
def open_container(uri: str) -> Iterator[av.container.InputContainer]:
    """Open a video or sound file. A read error raised inside becomes `truncated` if the file lacks its end.

    Raises:
        MediaError: the file is missing, empty, unreadable or truncated.
    """
    check_file(uri)
    with contextlib.ExitStack() as stack, _cut_if_so(uri):
        with blamed("FFmpeg"):
            source = stack.enter_context(fsspec.open(uri, "rb")) if "://" in uri else uri
            container = stack.enter_context(_opened(source))
        yield container


@contextlib.contextmanager
def _cut_if_so(uri: str) -> Iterator[None]:
    try:
        yield
    except MediaError as error:
        if error.code in ("unreadable", "absent") and container_is_truncated(uri):
            raise MediaError("truncated", f"{error.reason} (the file ends before its last part does)") from None
        raise


def _opened(source: Any) -> av.container.InputContainer:
    try:
        return av.open(source, metadata_errors="replace", options=dict(OPTIONS))  # type: ignore[no-any-return]
    except av.error.EOFError as error:  # no media in it, which does not mean that it was cut
        raise MediaError("unreadable", f"FFmpeg: {error.strerror}") from None
    except av.error.ArgumentError:
        raise MediaError("unreadable", "FFmpeg: none of the formats that are taken for video or sound") from None


def picture_of(container: av.container.InputContainer) -> av.VideoStream | None:
    """The video stream that players show, or None: the largest, the default one preferred, never a cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    return max(streams, key=_rank, default=None)


def _rank(stream: av.VideoStream) -> int:
    """Rank streams as the ffmpeg command does; the first of equals wins. A stream without a decoder comes last."""
    if stream.codec_context is None:
        return -1
    default = bool(stream.disposition & av.stream.Disposition.default)
    return int(stream.width or 0) * int(stream.height or 0) + DEFAULT * default


def bounded(stream: av.stream.Stream) -> None:
    """Make the stream's decoder refuse frames over `MAX_PIXELS`, even if their size changes mid-stream.

    Raises:
        MediaError: FFmpeg has no decoder for it.
    """
    if stream.codec_context is None:
        raise MediaError("unreadable", f"FFmpeg: no decoder for its {stream.type} stream")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
