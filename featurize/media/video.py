"""Frames of a video on a uniform grid, scaled to the sizes that encoders take.

A frame's place is its number among all frames that decoding from the start gives. Where packets tell the place of each
frame, and the grid is sparse, decoding begins at the keyframes before the wanted frames; it must then give exactly the
frames that the packets promise there, or the whole file is decoded from the start after all.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurize.grid import frame_indices
from featurize.media.bounds import MAX_PIXELS, room
from featurize.media.decoding import Losses, decode
from featurize.media.errors import MediaError, blamed
from featurize.media.file import bounded, open_container
from featurize.media.frames import Frames
from featurize.media.image import scale
from featurize.media.orientation import upright
from featurize.media.packets import Packets, Run, read_packets
from featurize.media.promises import check_frames, check_video, frames_promised

DEFAULT = 5_000_000  # pixels that a stream's being the default one is worth


@dataclass
class Found:
    """Wanted frames by their place: scaled pixels uint8 [size, size, 3] by size, and time in seconds."""

    sizes: Sequence[int]
    pixels: dict[int, dict[int, NDArray[np.uint8]]] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    losses: Losses = field(default_factory=Losses)

    def add(self, place: int, frame: av.VideoFrame) -> None:
        """Scale and keep a frame."""
        image = _image(frame)
        self.pixels[place] = {size: scale(image, size) for size in self.sizes}
        self.times[place] = frame.time or 0.0

    def frames(self, places: NDArray[np.int64]) -> Frames:
        """The frames of a grid, each distinct one once."""
        distinct, index = np.unique(places, return_inverse=True)
        pixels = {size: np.stack([self.pixels[place][size] for place in distinct.tolist()]) for size in self.sizes}
        start = self.times[0]
        times = [round(self.times[place] - start, 6) for place in places.tolist()]
        return Frames(pixels, index.astype(np.int64), times, self.losses.skipped)


def read_video(uri: str, sizes: Sequence[int], count: int) -> Frames:
    """`count` frames of a video on the uniform grid.

    Raises:
        MediaError: the file is missing, empty, unreadable, truncated or too large, or has no video stream (`absent`).
    """
    with open_video(uri) as (container, stream):
        packets = _whole(uri, container, stream)
        places = frame_indices(packets.count, count)
        wanted = sorted(set(places.tolist()))
        found = Found(sizes)
        runs = packets.runs(wanted)
        if len(runs) > 1 and all(_decode_run(container, stream, packets, run, found) for run in runs):
            return found.frames(places)
    return _read_through(uri, sizes, count, packets)


@contextlib.contextmanager
def open_video(uri: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file at the video stream that players show: not a cover picture; the default one; the largest.

    Raises:
        MediaError: the file is missing, empty, unreadable or too large, or has no such stream (`absent`).
    """
    with open_container(uri) as container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise MediaError("absent", "no video stream")
        stream = max(streams, key=_rank)
        bounded(stream)
        stream.thread_type = "SLICE"  # frame threads would hold many frames of a large video in memory at once
        with room(stream.width or 0, stream.height or 0, MAX_PIXELS):
            yield container, stream


def _rank(stream: av.VideoStream) -> int:
    """As the ffmpeg command ranks streams; of equals it takes the first. One without a decoder comes last."""
    if stream.codec_context is None:
        return -1
    default = bool(stream.disposition & av.stream.Disposition.default)
    return int(stream.width or 0) * int(stream.height or 0) + DEFAULT * default


def _whole(uri: str, container: av.container.InputContainer, stream: av.VideoStream) -> Packets:
    promised = frames_promised(container, stream)
    packets = read_packets(container, stream)
    check_frames(packets, promised)
    check_video(uri, container, stream, packets)
    return packets


def _read_through(uri: str, sizes: Sequence[int], count: int, packets: Packets) -> Frames:
    """Frames of the grid by decoding from the start."""
    total, known = packets.count, False
    for _ in range(2):
        found, places = Found(sizes), frame_indices(total, count)
        decoded = _decode_through(uri, set(places.tolist()), found, packets, total if known else None)
        if decoded == total:
            return found.frames(places)
        if decoded + found.losses.skipped < packets.count / 2 - 1:  # two packets may be the two fields of one frame
            raise MediaError("truncated", f"only {decoded} of {packets.count} frames can be decoded")
        total, known = decoded, True
    raise MediaError("unreadable", "the video does not decode twice to the same frames")


def _decode_through(uri: str, wanted: set[int], found: Found, packets: Packets, total: int | None) -> int:
    """Decode up to the last wanted place, or to the end if `total` is not known and the packets cannot be relied on.

    The number of frames that decoding shows.
    """
    number, last, sure = 0, max(wanted), packets.sure
    with open_video(uri) as (container, stream):
        for number, frame in enumerate(_frames(container, stream, found.losses), 1):
            sure = sure and number <= packets.count and frame.pts == packets.shown[number - 1]
            if number - 1 in wanted:
                found.add(number - 1, frame)
            if number > last and (sure or total):
                number = total or packets.count
                break
    found.losses.check(number)
    if not number:
        raise MediaError("unreadable", "no frame of the video can be decoded")
    return number


def _decode_run(
    container: av.container.InputContainer, stream: av.VideoStream, packets: Packets, run: Run, found: Found
) -> bool:
    """Decode a run; whether it gave the very frames that the packets promise."""
    promised = packets.shown[run.start : run.places[-1] + 1].tolist()
    number, losses = 0, Losses()
    try:
        with blamed("FFmpeg"):
            container.seek(run.seek, stream=stream)
        for frame in _frames(container, stream, losses):
            if not number and (frame.pts is None or frame.pts < promised[0]):
                continue  # before the keyframe, or leading it: shown earlier, and made from what was not decoded
            if losses.skipped or frame.pts != promised[number] or frame.is_corrupt or not (number or frame.key_frame):
                return False
            if run.start + number in run.places:
                found.add(run.start + number, frame)
            number += 1
            if number == len(promised):
                return True
    except MediaError:
        return False
    return False


def _frames(container: av.container.InputContainer, stream: av.VideoStream, losses: Losses) -> Iterator[av.VideoFrame]:
    """All frames from where the container stands."""
    return decode(container, stream, losses)


def _image(frame: av.VideoFrame) -> Image.Image:
    with blamed("FFmpeg"):
        plane = frame.reformat(format="rgb24").planes[0]
        image = Image.frombytes("RGB", (plane.width, plane.height), memoryview(plane), "raw", "RGB", plane.line_size, 1)
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        return image if matrix is None else upright(image, np.frombuffer(matrix, np.int32), frame.rotation)
