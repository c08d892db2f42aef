"""Decode a stream packet by packet: a packet that cannot be decoded is lost, not the file.

Players continue after such a packet too. Losses are counted and bounded, so that garbage does not pass for a film.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import av

from featurize.media.bounds import MAX_PIXELS
from featurize.media.errors import MediaError, blamed

LOST_SHARE = 0.05  # of the packets since the first frame may be lost ...
FEW = 4  # ... and this many more
TAGGED = ("mp3", "aac", "ac3", "eac3", "dts", "flac", "ape", "wv", "tta")  # formats that may have tags after the sound
MPEG4_SIZE = re.compile(rb"\x00\x00\x01[\x20-\x2f]")  # start code of the header that holds the frame size
REPEATING = ("theora",)  # codecs in which an empty packet repeats the last frame


@dataclass
class Losses:
    """Packets of a stream that could not be decoded.

    Attributes:
        packets: attempted since the first frame.
        before: lost before the first frame: a recording may begin between keyframes.
        between: lost between frames.
        after: lost since the last frame.
        reason: the decoder's message about the first loss.
    """

    packets: int = 0
    before: int = 0
    between: int = 0
    after: int = 0
    reason: str = ""

    @property
    def skipped(self) -> int:
        """Number of lost packets."""
        return self.before + self.between + self.after

    def add(self, error: Exception, begun: bool) -> None:
        """Count a lost packet; `begun` if a frame was decoded before it."""
        self.reason = self.reason or str(getattr(error, "strerror", None) or error)
        self.before, self.after = self.before + (not begun), self.after + begun

    def resume(self) -> None:
        """Note that a frame was decoded.

        Raises:
            MediaError: too many packets are lost (`unreadable`).
        """
        self.between, self.after = self.between + self.after, 0
        self._bound(self.between)

    def check(self, frames: int, tagged: bool = False) -> None:
        """Check that enough of a stream was decoded; with `tagged`, losses after the last frame do not count.

        Raises:
            MediaError: nothing was decoded, or too many packets are lost (`unreadable`).
        """
        if not frames and self.skipped:
            raise MediaError("unreadable", f"FFmpeg: {self.reason}")
        self._bound(self.between + self.after * (not tagged))

    def _bound(self, lost: int) -> None:
        if lost > FEW + LOST_SHARE * self.packets:
            raise MediaError("unreadable", f"FFmpeg: {self.reason} ({lost} of {self.packets} packets are lost)")


@dataclass
class Beside:
    """A stream that is not decoded, and the end of its last packet in seconds of the container's clock."""

    stream: Any
    end: float = -math.inf

    def see(self, packet: Any) -> None:
        """Update `end` by a packet."""
        at = packet.pts if packet.pts is not None else packet.dts
        if at is not None and packet.size and not packet.is_discard:
            self.end = max(self.end, float((at + (packet.duration or 0)) * packet.time_base))


def decode(
    container: av.container.InputContainer,
    stream: Any,
    losses: Losses,
    beside: Beside | None = None,
    sent: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Iterator[Any]:
    """Decode a stream from the container's position; `sent` may choose among its packets.

    Packets that cannot be decoded are counted in `losses`.

    Raises:
        MediaError: the container cannot be read further, frames are too large, or too many packets are lost.
    """
    last: Any = None
    end: Any = None  # the flush packet: empty, but the frames it releases take its time base
    repeats = stream.codec_context.name in REPEATING
    with blamed("FFmpeg"):
        for packet in sent(_packets(container, stream, losses, beside)):
            if packet.size:
                for frame in _decoded(stream, packet, losses, last is not None):
                    losses.resume()
                    yield (last := frame)
            elif repeats and last is not None and packet.pts is not None:
                last.pts = packet.pts
                yield last
            else:
                end = packet
        yield from _decoded(stream, end, losses, last is not None)


def _packets(
    container: av.container.InputContainer, stream: Any, losses: Losses, beside: Beside | None
) -> Iterator[Any]:
    """The packets of a stream. Some demuxers report tags after the last packet as damage: that is one loss."""
    try:
        for packet in container.demux(stream, *([beside.stream] if beside else [])):
            if beside and packet.stream_index != stream.index:
                beside.see(packet)
            else:
                yield packet
    except av.error.InvalidDataError as error:
        if container.format.name not in TAGGED:
            raise
        losses.add(error, begun=True)


def _decoded(stream: Any, packet: Any, losses: Losses, begun: bool) -> list[Any]:
    losses.packets += begun
    try:
        return stream.decode(packet)  # type: ignore[no-any-return]
    except av.error.EOFError:
        return []  # already flushed
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:  # decoders report damage by many codes
        if isinstance(error, av.error.ArgumentError) and stream.type == "video" and _size_refused(stream, packet):
            reason = f"frames of no valid size, or of more than {MAX_PIXELS} pixels"
            raise MediaError("too_large", reason) from None
        losses.add(error, begun)
        return []


def _size_refused(stream: Any, packet: Any) -> bool:
    """Whether the decoder refused the frame size, which FFmpeg then resets. In MPEG-4 it may not have come yet."""
    context = stream.codec_context
    return not context.width and (context.name != "mpeg4" or MPEG4_SIZE.search(bytes(packet)) is not None)
