"""Frames of a video on a uniform grid, scaled to the sizes that encoders take.

A frame's place is its index among all frames decoded from the start. If the packets tell the place of each frame,
decoding begins at the keyframes before the wanted frames, and skips unwanted frames that no other refers to. If that
does not give exactly the frames that the packets promise, the whole file is decoded from the start instead. For a part
of a file, only the packets from the keyframe before it to its end are read.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from numpy.typing import NDArray
from PIL import Image

from featurize.grid import frame_indices
from featurize.media.bounds import MAX_PIXELS, room
from featurize.media.decoding import Losses, decode
from featurize.media.errors import MediaError, blamed
from featurize.media.file import bounded, open_container, picture_of
from featurize.media.frames import Frames
from featurize.media.image import scale
from featurize.media.orientation import upright
from featurize.media.packets import WORTH, Packets, Run, read_packets
from featurize.media.stills import is_folder, read_folder
from featurize.media.truncation import check_frames, check_video, frames_promised

BACK = (0.0, 10.0)  # seconds to seek before a part for a keyframe; failing both, decode from the film's start
STREAMED = ("mpegts", "mpeg")  # formats in which FFmpeg guesses the times of the first packets after a seek
NEVER = 1 << 62  # later than any time, in any time base
HALF = Fraction(1, 2)
RATE = 25  # frames per second of a stream that tells none


@dataclass
class Found:
    """Wanted frames by place: scaled pixels uint8 [size, size, 3] by size, and time in seconds."""

    sizes: Sequence[int]
    pixels: dict[int, dict[int, NDArray[np.uint8]]] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    losses: Losses = field(default_factory=Losses)

    def add(self, place: int, frame: av.VideoFrame) -> None:
        """Scale and keep a frame."""
        image = _image(frame)
        self.pixels[place] = {size: scale(image, size) for size in self.sizes}
        self.times[place] = place / RATE if frame.time is None else frame.time

    def frames(self, places: NDArray[np.int64]) -> Frames:
        """The frames of a grid, with each distinct frame stored once."""
        distinct, index = np.unique(places, return_inverse=True)
        pixels = {size: np.stack([self.pixels[place][size] for place in distinct.tolist()]) for size in self.sizes}
        start = self.times[int(places[0])]
        times = [round(self.times[place] - start, 6) for place in places.tolist()]
        return Frames(pixels, index.astype(np.int64), times, self.losses.skipped)


def read_video(
    uri: str,
    sizes: Sequence[int],
    count: int,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
) -> Frames:
    """`count` frames on the uniform grid of a video, of its part from `start` to `end`, or of a folder of stills.

    A part holds the frames with times in [start, end), as `ffmpeg -ss START -to END -i FILE` cuts. It ends with the
    film if that ends first. If no frame is in it, it holds the one shown at `start`.

    Args:
        uri: path or fsspec URL.
        sizes: sides of the squares that frames are scaled to, in pixels.
        count: number of grid frames.
        start: in seconds from the beginning.
        end: in seconds from the beginning.
        fps: stills per second of a folder.

    Raises:
        MediaError: the file is missing, empty, unreadable, truncated or too large, has no video stream (`absent`), or
            ends before `start` (`empty`).
    """
    if is_folder(uri):
        return read_folder(uri, sizes, count, start, end, fps)
    if start is not None or end is not None:
        return _read_part(uri, sizes, count, start or 0.0, end)
    with open_video(uri) as (container, stream):
        packets = _whole(uri, container, stream)
        places = frame_indices(packets.count, count)
        wanted = sorted({*places.tolist(), *packets.doubtful})
        found = Found(sizes)
        runs = packets.runs(wanted)
        if packets.saved(runs) > WORTH and all(_decode_run(container, stream, packets, run, found) for run in runs):
            return found.frames(places)
    return _read_through(uri, sizes, count, packets)


@contextlib.contextmanager
def open_video(uri: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file at the video stream that players show (see `picture_of`).

    Raises:
        MediaError: the file is missing, empty, unreadable or too large, or has no such stream (`absent`).
    """
    with open_container(uri) as container:
        stream = picture_of(container)
        if not stream:
            raise MediaError("absent", "no video stream")
        bounded(stream)
        stream.thread_type = "SLICE"  # frame threads would hold many frames of a large video in memory at once
        with room(stream.width or 0, stream.height or 0, MAX_PIXELS):
            yield container, stream


def _whole(uri: str, container: av.container.InputContainer, stream: av.VideoStream) -> Packets:
    promised = frames_promised(container, stream)
    packets = read_packets(container, stream)
    check_frames(uri, packets, promised)
    check_video(uri, container, stream, packets)
    return packets


def _read_part(uri: str, sizes: Sequence[int], count: int, start: float, end: float | None) -> Frames:
    """Frames of a part: from the keyframe before it if one can be found, else by decoding from the film's start."""
    for back in (*BACK, None):
        with open_video(uri) as (container, stream):
            if back == 0 and container.format.name in STREAMED:
                continue
            part = _part(container, stream, start, end)
            seek = None if back is None else part.low - round(back / (stream.time_base or 1))
            if seek is not None and not _sought(container, stream, seek):
                continue
            packets = read_packets(container, stream, part.high if seek is not None else None)
            if packets.complete and packets.end < part.high:
                _check_reached(uri, part)
            frames = _by_packets(container, stream, packets, part, sizes, count)
        if frames := frames or _by_decoding(uri, sizes, count, part, seek):
            return frames
    raise MediaError("unreadable", "the video does not decode twice to the same frames")


@dataclass(frozen=True)
class _Part:
    """A part of a film: `start` in seconds, and its frames' times in [`low`, `high`), in time base units."""

    start: float
    low: int
    high: int

    def check(self, end: int, time_base: Fraction) -> None:
        """Refuse a film that ends before the part begins."""
        if 0 < end <= self.low:
            seconds = self.start - float((self.low - end) * time_base)
            raise MediaError("empty", f"nothing from {self.start:g} s on: the video ends at {seconds:.1f} s")


def _part(container: av.container.InputContainer, stream: av.VideoStream, start: float, end: float | None) -> _Part:
    def ticks(seconds: float) -> int:
        micros = round(seconds * 1e6) + (container.start_time or 0)
        return math.floor(Fraction(micros, 1_000_000) / (stream.time_base or 1) + HALF)

    return _Part(start, ticks(start), NEVER if end is None else ticks(end))


def _sought(container: av.container.InputContainer, stream: av.VideoStream, at: int) -> bool:
    try:
        container.seek(at, stream=stream)
    except av.error.FFmpegError:
        return False
    return True


def _check_reached(uri: str, part: _Part) -> None:
    """For a film that ends within a part or before it: check that it is as long as its header promises."""
    with open_video(uri) as (container, stream):
        packets = _whole(uri, container, stream)
        part.check(packets.end, stream.time_base or Fraction(1))


def _by_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: Packets,
    part: _Part,
    sizes: Sequence[int],
    count: int,
) -> Frames | None:
    """Frames of a part, located by packets; None if packets do not tell, or begin after the part does."""
    if not packets.sure or packets.shown[0] > part.low:
        return None
    first, last = np.searchsorted(packets.shown, (part.low, part.high)).tolist()
    first, last = (first, last) if first < last else (first - 1, first)
    found, places = Found(sizes), first + frame_indices(last - first, count)
    runs = packets.runs(sorted(set(places.tolist())))
    if runs and all(_decode_run(container, stream, packets, run, found) for run in runs):
        return found.frames(places)
    return None


def _by_decoding(uri: str, sizes: Sequence[int], count: int, part: _Part, seek: int | None) -> Frames | None:
    """Frames of a part by decoding from `seek` or the start; None if no keyframe precedes it or decodes differ."""
    total = 0
    for _ in range(3):  # the first pass counts the frames
        found, places = Found(sizes), frame_indices(total, count)
        number = _decode_part(uri, set(places.tolist()) if total else set(), found, part, seek)
        if number is None:
            return None
        if number == total:
            return found.frames(places)
        total = number
    return None


def _decode_part(uri: str, wanted: set[int], found: Found, part: _Part, seek: int | None) -> int | None:
    """Add the wanted frames of a part to `found`; return its frame count, None if no keyframe at `seek` precedes it.

    A part without frames holds the last one before it.
    """
    number, before = 0, None
    with open_video(uri) as (container, stream):
        if seek is not None and not _sought(container, stream, seek):
            return None
        for at, frame in enumerate(decode(container, stream, found.losses)):
            if seek is not None and not at and (frame.pts is None or frame.pts > part.low or not frame.key_frame):
                return None
            time = _time(frame, at, stream)
            if time >= part.high:
                break
            if time < part.low:
                before = frame
                continue
            if number in wanted:
                found.add(number, frame)
            number += 1
        else:
            if before is not None and not number and before.pts is None:  # the last frame's duration is unknown
                part.check(_time(before, at + 1, stream), stream.time_base or Fraction(1))
        found.losses.check(number + (before is not None))
        if not number and before is not None:
            found.add(0, before)
            number = 1
    if not number:
        raise MediaError("empty", f"nothing from {part.start:g} s on")
    return number


def _time(frame: av.VideoFrame, number: int, stream: av.VideoStream) -> int:
    """When a frame is shown, in time base units; by the frame rate if the stream tells no times."""
    if frame.pts is not None:
        return frame.pts
    return round(number / ((stream.average_rate or RATE) * (stream.time_base or 1)))


def _read_through(uri: str, sizes: Sequence[int], count: int, packets: Packets) -> Frames:
    """Frames of the grid by decoding from the start."""
    total, known = packets.count, False
    for _ in range(2):
        found, places = Found(sizes), frame_indices(total, count)
        wanted = {*places.tolist(), *(packets.doubtful if not known else ())}
        decoded = _decode_through(uri, wanted, found, packets, total if known else None)
        if decoded == total:
            return found.frames(places)
        tried = found.losses.packets  # two may be the fields of one frame; those before the first do not count
        if decoded + found.losses.skipped < tried / 2 - 1:
            raise MediaError("truncated", f"only {decoded} of {tried} frames can be decoded")
        total, known = decoded, True
    raise MediaError("unreadable", "the video does not decode twice to the same frames")


def _decode_through(uri: str, wanted: set[int], found: Found, packets: Packets, total: int | None) -> int:
    """Decode up to the last wanted place, or to the end if `total` is unknown and the packets are not reliable.

    Return the number of frames that decoding the whole film shows.
    """
    number, last, sure = 0, max(wanted), packets.sure
    with open_video(uri) as (container, stream):
        for number, frame in enumerate(decode(container, stream, found.losses), 1):
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
    """Decode a run; return whether it gave exactly the frames that the packets promise."""
    due = packets.decoded(run).tolist()
    number, losses, wanted = 0, Losses(), set(run.places)
    whole = packets.spare.any()  # frames are skipped, so each must be one packet: of two fields, one might be skipped
    try:
        with blamed("FFmpeg"):
            container.seek(run.seek, stream=stream)
        for frame in decode(container, stream, losses, sent=functools.partial(packets.sent, run)):
            if not number and (frame.pts is None or frame.pts < packets.shown[run.start]):
                continue  # before the keyframe, or leading it: shown earlier, with references that were not decoded
            if losses.skipped or frame.pts != packets.shown[due[number]] or not (number or frame.key_frame):
                return False
            if frame.is_corrupt or (frame.interlaced_frame and whole):
                return False
            if due[number] in wanted:
                found.add(due[number], frame)
            number += 1
            if number == len(due):
                return True
    except MediaError:
        return False
    return False


def _image(frame: av.VideoFrame) -> Image.Image:
    with blamed("FFmpeg"):
        plane = frame.reformat(format="rgb24").planes[0]
        image = Image.frombytes("RGB", (plane.width, plane.height), memoryview(plane), "raw", "RGB", plane.line_size, 1)
        side_data: Any = SideDataContainer  # `frame.side_data` and its frame would hold each other, and the decoder
        matrix = side_data(frame).get("DISPLAYMATRIX")
        return image if matrix is None else upright(image, np.frombuffer(matrix, np.int32), frame.rotation)
