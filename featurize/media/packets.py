"""Locate a video's frames by its packets, and plan the shortest decode of the wanted ones."""

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

WORTH = 8  # a seek pays off if it saves decoding more frames than this
BY_PTS = ("mov", "matroska", "nut")  # formats whose index FFmpeg reads as presentation times
WHOLE = ("mov", "matroska", "avi", "flv", "asf")  # formats whose demuxers never pass a partial frame for a whole one
HEAD = 256  # bytes of an MPEG-4 keyframe's packet that hold the film's headers
TINY = 12  # bytes: an MPEG-4 packet this small may say "not coded", and then shows no frame


@dataclass(frozen=True)
class Run:
    """Frames decoded in one go, from the keyframe at place `start` (found at time `seek`); `places` are wanted."""

    start: int
    seek: int
    places: list[int]


@dataclass(frozen=True)
class Packets:
    """What the packets of a video stream tell without decoding.

    Attributes:
        held: number of packets, empty ones included.
        partial: whether FFmpeg reports that the last one lacks bytes.
        complete: whether they were read to the end of the stream.
        count: number of frames that decoding should show, without those outside an edit list and hidden references.
        doubtful: the last place, if its packet may be cut: only decoding can tell.
        sure: whether `count` is reliable, provided that the decoded frames are those of `shown`.
        end: when the last packet ends, in the stream's time base.
        shown: presentation times of the frames in display order, int64 [n], in the stream's time base; empty if the
            packets do not tell.
        keys: places (in display order) of the keyframes where decoding can begin, int64 [k], ascending.
        seeks: the time to seek to for each keyframe, int64 [k].
        spare: whether no other frame refers to the one at each place, bool [n]; False if unsure.
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
        """The runs that decode the wanted `places` (ascending); empty if the packets do not tell where they are."""
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
        """The places of the frames that a run decodes, up to its last wanted one."""
        return run.start + np.flatnonzero(self._needed(run)[run.start : run.places[-1] + 1])

    def _needed(self, run: Run) -> NDArray[np.bool_]:
        """Whether the frame at each place is decoded: others refer to it, or it is shown next to a wanted one.

        The neighbours of a wanted frame, up to the nearest referenced ones, confirm its place by their order.
        """
        gaps = np.cumsum(~self.spare)
        near = gaps[run.places]
        return ~self.spare | np.isin(gaps, [near, near - ~self.spare[run.places]])

    def saved(self, runs: Sequence[Run]) -> int:
        """How many fewer frames `runs` decode than a decode from the start to the last wanted one."""
        return runs[-1].places[-1] + 1 - sum(len(self.decoded(run)) for run in runs) if runs else 0

    def sent(self, run: Run, packets: Iterable[Any]) -> Iterator[Any]:
        """The packets after a seek that a run decodes; none if the seek landed after its keyframe."""
        first, begun, idle = int(self.shown[run.start]), False, ~self._needed(run)
        for packet in packets:
            begun = begun or (packet.pts == first and packet.is_keyframe)
            if not begun and packet.dts is not None and packet.dts > first:
                return
            at = len(idle) if packet.pts is None else int(np.searchsorted(self.shown, packet.pts))
            if begun and not (at < len(idle) and idle[at] and self.shown[at] == packet.pts):
                yield packet


def read_packets(container: av.container.InputContainer, stream: av.VideoStream, until: int | None = None) -> Packets:
    """Read the packets of a stream: all of them, or, after a seek, those from the keyframe to the time `until`.

    Raises:
        MediaError: packets cannot be read, or there are more than `MAX_FRAMES`.
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
            # No later packet is shown before this time.
            if until is not None and packet.dts is not None and packet.dts >= until:
                return reading.packets(complete=False)
            # The demuxer's last packet, which flushes, has none of these.
            if packet.size or packet.dts is not None or packet.pts is not None:
                reading.add(packet)
    return reading.packets(complete=True)


@dataclass
class _Reading:
    """What is known of a stream's packets so far.

    Attributes:
        by_pts: whether the container's index holds presentation times; others hold decoding times.
        repeats: whether an empty packet repeats the last frame.
        shows: whether a packet's bytes hold a frame that is shown.
        smallest: bytes; for a packet of at most this size, only decoding tells whether it shows a frame.
        sought: whether they begin after a seek: frames shown before the first keyframe do not count.
        seekable: whether packets keep their times after a seek. In a program stream a seek may land inside a frame,
            whose rest FFmpeg then gives the next frame's time.
        whole: whether the last packet is certainly a whole frame.
        is_spare: whether a packet's bytes hold only a frame that no other refers to.
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
        """Record a frame that is shown.

        It is spare only if a frame shown later was read before; otherwise the container's times are decoding times.
        """
        if packet.pts is None:
            return
        self.shown.append(packet.pts)
        self.spare.append(self.latest is not None and packet.pts < self.latest and self.is_spare(memoryview(packet)))
        if packet.is_keyframe and packet.size and self.seekable:
            self.keys.append(packet.pts)
            self.seeks.append(packet.pts if self.by_pts or packet.dts is None else packet.dts)

    def packets(self, complete: bool) -> Packets:
        """The result. Not `sure` if frames precede the first keyframe: without references, some decoders drop them."""
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
    """The headers of a keyframe, without times. If they change, the decoder may drop the frame that it holds back."""
    return data.partition(b"\0\0\1\xb3")[0].partition(b"\0\0\1\xb6")[0]


def _vp8(data: memoryview) -> bool:
    return bool(data[0] & 0x10)


def _vp9(data: memoryview) -> bool:
    """Whether a frame is shown: a lone frame's first byte tells; a superframe (its last byte marks it) shows one."""
    bits = data[0] if data[0] & 0x30 != 0x30 else data[0] << 1  # profile 3 has one more bit
    return data[-1] & 0xE0 == 0xC0 or bool(bits & 0x0A)  # an earlier frame is shown, or this one


SHOWS: dict[str, Callable[[memoryview], bool]] = {"vp8": _vp8, "vp9": _vp9, "libvpx": _vp8, "libvpx-vp9": _vp9}
