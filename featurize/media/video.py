"""Frames of a video or an image, scaled to the sizes that encoders take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from featurize.grid import frame_indices
from featurize.media.errors import MediaError
from featurize.media.file import check_file, open_container

MAX_PIXELS = 100_000_000  # of one frame; a larger one is recorded as too large
TRUNCATED = 0.98  # a file that holds less than this share of the frames its header promises is truncated


@dataclass(frozen=True)
class Frames:
    """Frames of one item.

    Attributes:
        pixels: for each size, the distinct frames, uint8 [U, size, size, 3], RGB.
        index: the distinct frame that stands at each place of the grid, int64 [T].
        times: of each place of the grid, in seconds from the first frame.
    """

    pixels: dict[int, NDArray[np.uint8]]
    index: NDArray[np.int64]
    times: list[float]


def scale(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Stretch to `size` x `size`, bicubic, as the paper resizes frames (no crop)."""
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def read_image(uri: str, sizes: Sequence[int]) -> Frames:
    """A still as a 1-frame video, upright by its EXIF orientation.

    Raises:
        MediaError: the file is missing, empty, unreadable or too large.
    """
    check_file(uri)
    try:
        with fsspec.open(uri, "rb") as file, Image.open(file) as image:
            _check_pixels(image.width, image.height)
            upright = ImageOps.exif_transpose(image)
            pixels = {size: scale(upright, size)[None] for size in sizes}
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError("unreadable", f"Pillow: {error}") from None
    return Frames(pixels, np.zeros(1, np.int64), [0.0])


def read_video(uri: str, sizes: Sequence[int], count: int) -> Frames:
    """`count` frames of a video on the uniform grid.

    Raises:
        MediaError: the file is missing, empty, unreadable, truncated or too large, or has no video stream (`absent`).
    """
    total = _count_frames(uri)
    for _ in range(2):
        found, decoded, times = _decode(uri, sizes, frame_indices(total, count))
        if decoded is None:
            break
        if decoded < TRUNCATED * total:
            raise MediaError("truncated", f"only {decoded} of {total} frames can be decoded")
        total = decoded  # some codecs hold packets that show nothing: ask again on what is really there
    places, index = np.unique(frame_indices(total, count), return_inverse=True)
    pixels = {size: np.stack([found[place][size] for place in places.tolist()]) for size in sizes}
    return Frames(pixels, index.astype(np.int64), [times[place] for place in places[index].tolist()])


def _count_frames(uri: str) -> int:
    with open_container(uri) as container:
        stream = _video_stream(container)
        promised = stream.frames
        packets = sum(1 for packet in container.demux(stream) if packet.size)
    if promised and packets < TRUNCATED * promised:
        raise MediaError("truncated", f"{packets} of the {promised} frames that the header promises")
    if not packets:
        raise MediaError("unreadable", "the video stream holds no frames")
    return packets


def _decode(
    uri: str, sizes: Sequence[int], places: NDArray[np.int64]
) -> tuple[dict[int, dict[int, NDArray[np.uint8]]], int | None, dict[int, float]]:
    """Scaled frames and times by place; and how many frames there are if that was too few for the last place."""
    wanted, last = set(places.tolist()), int(places[-1])
    found: dict[int, dict[int, NDArray[np.uint8]]] = {}
    times: dict[int, float] = {}
    with open_container(uri) as container:
        number, start = 0, None
        for number, frame in enumerate(_frames(container), 1):
            start = frame.time if start is None else start
            if number - 1 in wanted:
                image = frame.to_image().rotate(  # type: ignore[no-untyped-call]
                    frame.rotation, expand=True
                )
                found[number - 1] = {size: scale(image, size) for size in sizes}
                times[number - 1] = round((frame.time or 0.0) - (start or 0.0), 6)
            if number > last:
                return found, None, times
    return found, number, times


def _frames(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    stream = _video_stream(container)
    stream.thread_type = "SLICE"  # frame threads would hold many frames of a large video in memory at once
    for frame in container.decode(stream):
        _check_pixels(frame.width, frame.height)
        yield frame


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            _check_pixels(stream.width or 0, stream.height or 0)
            return stream
    raise MediaError("absent", "no video stream")


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise MediaError("too_large", f"a frame of {width} x {height} pixels; at most {MAX_PIXELS} are taken")
