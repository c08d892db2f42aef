"""Where the frames of a video lie, read from its packets, and the shortest way to those that are wanted."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from featurize.media.bounds import MAX_FRAMES
from featurize.media.decoding import REPEATING
from featurize.media.errors import MediaError, blamed
from featurize.media.references import spare_of

WORTH = 8  # frames that need not be decoded, for which another way than reading on is worth its while
BY_PTS = ("mov", "matroska", "nut")  # formats whose index FFmpeg takes to go by the time of presentation
WHOLE = ("mov", "matroska", "avi", "flv", "asf")  # formats in which no part of a frame passes for one, be the file cut
HEAD = 256  # bytes that hold what an MPEG-4 keyframe's packet says of the film
TINY = 12  # bytes: an MPEG-4 packet with no more may say that nothing is coded, and then shows nothing


@dataclass(frozen=True)
class Run:
    """Frames decoded in one go: from the keyframe at place `start` (found at time `seek`) on, wanted at `places`."""

    start: int
    seek: int
    places: list[int]


@dataclass(frozen=True)
class Packets:
    """What the packets of a video stream say, without decoding any.

    Attributes:
        held: packets, empty ones too.
        partial: whether the last one lacks bytes, as FFmpeg says.
        complete: whether they are all, to the end of the stream.
        count: frames that decoding them should show: not those outside an edit list, nor hidden references.
        doubtful: the last place, if the packet there may be cut: only decoding it can tell.
        sure: whether `count` can be relied on as long as the frames that are decoded are those of `shown`.
        end: when the last packet ends, in the stream's time base.
        shown: presentation times of the frames in the order they are shown, int64 [n], in the stream's time base;
            empty where the packets do not tell.
        keys: places (in the order shown) of the frames where decoding can begin, int64 [k], rising.
        seeks: the time at which to seek for each of them, int64 [k].
        spare: whether the frame at each place is one that no other refers to, bool [n]; False where that is not sure.
    """

    held: int
    partial: bool
    complete: bool
    count: int
    doubtful: list[int]
    sure: bool
    end: int
    shown: NDArray[np.int64]
    keys: NDArray[np.int64]
    seeks: NDArray[np.int64]
    spare: NDArray[np.bool_]

    def runs(self, places: Sequence[int]) -> list[Run]:
        """The runs that decode the wanted `places` (rising); none where the packets do not tell where those are."""
        if not self.sure or not len(self.keys) or self.keys[0] or places[-1] >= len(self.shown):
            return []
        needed = np.cumsum(~self.spare)
        runs: list[Run] = []
        for place in places:
            at = int(np.searchsorted(self.keys, place, "right")) - 1
            if not runs or needed[self.keys[at]] - needed[runs[-1].places[-1]] > WORTH:
                runs.append(Run(int(self.keys[at]), int(self.seeks[at]), []))
            runs[-1].places.append(place)
        return runs

    def decoded(self, run: Run) -> NDArray[np.int64]:
        """The places of the frames that a run decodes, up to the last that is wanted."""
        return run.start + np.flatnonzero(self._needed(run)[run.start : run.places[-1] + 1])

    def _needed(self, run: Run) -> NDArray[np.bool_]:
        """Whether the frame at each place is decoded: others refer to it, or it is shown beside a wanted one.

        A wanted frame's neighbours, up to the nearest that others refer to, show by their order that it has its place.
        """
        gaps = np.cumsum(~self.spare)
        near = gaps[run.places]
        return ~self.spare | np.isin(gaps, [near, near - ~self.spare[run.places]])

    def saved(self, runs: Sequence[Run]) -> int:
        """How many frames fewer `runs` decode than reading from the start to the last wanted one."""
        return runs[-1].places[-1] + 1 - sum(len(self.decoded(run)) for run in runs) if runs else 0

    def sent(self, run: Run, packets: Iterable[Any]) -> Iterator[Any]:
        """Those of the packets behind a seek that a run decodes; none if the seek led beyond its keyframe."""
        first, begun, idle = int(self.shown[run.start]), False, ~self._needed(run)
        for packet in packets:
            begun = begun or (packet.pts == first and packet.is_keyframe)
            if not begun and packet.dts is not None and packet.dts > first:
                return
            at = len(idle) if packet.pts is None else int(np.searchsorted(self.shown, packet.pts))
            if begun and not (at < len(idle) and idle[at] and self.shown[at] == packet.pts):
                yield packet


def read_packets(container: av.container.InputContainer, stream: av.VideoStream, until: int | None = None) -> Packets:
    """Read the packets of a stream: all, or where the container was sought those from the keyframe to the time `until`.

    Raises:
        MediaError: they cannot be read, or are more than `MAX_FRAMES`.
    """
    codec = stream.codec_context.name
    reading = _Reading(
        by_pts=container.format.name.split(",")[0] in BY_PTS,
        repeats=codec in REPEATING,
        shows=SHOWS.get(codec, _always),
        smallest=TINY if codec == "mpeg4" else 0,
        sought=until is not None,
        seekable=container.format.name != "mpeg",
        whole=container.format.name.split(",")[0] in WHOLE,
        is_spare=spare_of(container, stream),
    )
    with blamed("FFmpeg"):
        for packet in container.demux(stream):
            if (
                until is not None and packet.dts is not None and packet.dts >= until
            ):  # no later packet is shown before this time
                return reading.packets(complete=False)
            if packet.size or packet.dts is not None or packet.pts is not None:  # the very last one has none of these
                reading.add(packet)
    return reading.packets(complete=True)


@dataclass
class _Reading:
    """What is known of a stream's packets while they are read.

    Attributes:
        by_pts: whether the container's index goes by the time of presentation; the others' go by that of decoding.
        repeats: whether an empty packet shows the last frame again.
        shows: whether a packet's bytes hold a frame that is shown.
        smallest: bytes; whether a packet of no more shows a frame, only decoding can tell.
        sought: whether they begin in mid-stream: what is shown before the first keyframe does not count.
        seekable: whether packets have the same times after a seek. A part of a program stream may begin with the rest
            of a frame, to which FFmpeg then gives the next one's time.
        whole: whether the last packet surely is a frame like the others.
        is_spare: whether a packet's bytes hold a frame that no other refers to.
    """

    by_pts: bool
    repeats: bool
    shows: Callable[[memoryview], bool]
    smallest: int
    sought: bool
    seekable: bool
    whole: bool
    is_spare: Callable[[memoryview], bool]
    held: int = 0
    partial: bool = False
    count: int = 0
    end: int = 0
    latest: int | None = None
    sure: bool = True
    first: int | None = None
    head: bytes = b""
    shown: "array[int]" = field(default_factory=lambda: array("q"))
    keys: "array[int]" = field(default_factory=lambda: array("q"))
    seeks: "array[int]" = field(default_factory=lambda: array("q"))
    spare: "array[int]" = field(default_factory=lambda: array("b"))

    def add(self, packet: Any) -> None:
        """Take the next packet."""
        if self.sought and not self.held and not packet.is_keyframe:
            return
        self.held += 1
        if self.held > MAX_FRAMES:
            raise MediaError("too_large", f"more than {MAX_FRAMES} frames")
        self.partial = packet.is_corrupt
        if not packet.size and not self.repeats:
            return
        self.sure = self.sure and packet.pts is not None and packet.size > self.smallest and not packet.is_corrupt
        if self.smallest and packet.is_keyframe:
            head = _mpeg4_head(bytes(memoryview(packet)[:HEAD]))
            self.head = self.head or head
            self.sure = self.sure and head in (b"", self.head)
        if self.held == 1:
            self.first, self.sure = packet.pts, self.sure and packet.is_keyframe
        if self.sought and self.first is not None and packet.pts is not None and packet.pts < self.first:
            return
        at = packet.pts if packet.pts is not None else packet.dts
        if at is not None:
            self.end = max(self.end, at + (packet.duration or 0))
        if not packet.is_discard and (not packet.size or self.shows(memoryview(packet))):
            self.count += 1
            self._keep(packet)
        if packet.pts is not None and (self.latest is None or packet.pts > self.latest):
            self.latest = packet.pts

    def _keep(self, packet: Any) -> None:
        """Note a frame that is shown.

        A spare one is read after one that is shown later. If it is not, the container's times are those of decoding.
        """
        if packet.pts is None:
            return
        self.shown.append(packet.pts)
        self.spare.append(self.latest is not None and packet.pts < self.latest and self.is_spare(memoryview(packet)))
        if packet.is_keyframe and packet.size and self.seekable:
            self.keys.append(packet.pts)
            self.seeks.append(packet.pts if self.by_pts or packet.dts is None else packet.dts)

    def packets(self, complete: bool) -> Packets:
        """All of them. Frames shown before the first keyframe lack what they are made from: some decoders drop them."""
        pts, keys, seeks = (np.array(times, np.int64) for times in (self.shown, self.keys, self.seeks))
        shown, order = np.unique(pts, return_index=True)
        spare = np.array(self.spare, np.bool_)[order]
        sure = self.sure and len(shown) == len(pts) > 0 and not (np.diff(keys) <= 0).any()
        sure = sure and self.first is not None and bool(shown[0] >= self.first)
        if not sure:
            shown, keys, seeks, spare = shown[:0], keys[:0], seeks[:0], spare[:0]
        places = np.searchsorted(shown, keys).astype(np.int64)
        doubtful = [] if self.whole or not self.count else [self.count - 1]
        counts = self.held, self.partial, complete, self.count
        return Packets(*counts, doubtful, sure, self.end, shown, places, seeks, spare)


def _always(data: memoryview) -> bool:
    return True


def _mpeg4_head(data: bytes) -> bytes:
    """What says how frames are made, without times. Where it changes, the decoder may drop the frame it waited with."""
    return data.partition(b"\0\0\1\xb3")[0].partition(b"\0\0\1\xb6")[0]


def _vp8(data: memoryview) -> bool:
    return bool(data[0] & 0x10)


def _vp9(data: memoryview) -> bool:
    """A lone frame's header says so in its first byte; a superframe (its last byte marks it) always shows one."""
    bits = data[0] if data[0] & 0x30 != 0x30 else data[0] << 1  # profile 3 has a bit more
    return data[-1] & 0xE0 == 0xC0 or bool(bits & 0x0A)  # an earlier frame is shown, or this one


SHOWS: dict[str, Callable[[memoryview], bool]] = {"vp8": _vp8, "vp9": _vp9, "libvpx": _vp8, "libvpx-vp9": _vp9}
