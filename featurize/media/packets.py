"""Where the frames of a video lie, read from its packets, and the shortest way to those that are wanted."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from featurize.media.bounds import MAX_FRAMES
from featurize.media.errors import MediaError, blamed

WORTH = 32  # frames that need not be decoded, for which a seek is worth its while


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
        count: packets that hold data.
        shown: presentation times of the frames in the order they are shown, int64 [n], in the stream's time base;
            empty where the packets do not tell.
        keys: places (in the order shown) of the frames where decoding can begin, int64 [k], rising.
        seeks: the time at which to seek for each of them, int64 [k].
    """

    count: int
    shown: NDArray[np.int64]
    keys: NDArray[np.int64]
    seeks: NDArray[np.int64]

    def runs(self, places: Sequence[int]) -> list[Run]:
        """The runs that decode the wanted `places` (rising); none where the packets do not tell where those are.

        A single run is the whole way from the start.
        """
        if not len(self.keys) or self.keys[0] or places[-1] >= len(self.shown):
            return []
        runs: list[Run] = []
        for place in places:
            at = int(np.searchsorted(self.keys, place, "right")) - 1
            if not runs or self.keys[at] - runs[-1].places[-1] > WORTH:
                runs.append(Run(int(self.keys[at]), int(self.seeks[at]), []))
            runs[-1].places.append(place)
        return runs


def read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Packets:
    """Read all packets of a stream.

    Raises:
        MediaError: they cannot be read, or are more than `MAX_FRAMES`.
    """
    count, told = 0, True
    by_pts = container.format.name.startswith("matroska")  # the others' indexes go by decoding time
    shown, keys, seeks = array("q"), array("q"), array("q")
    with blamed("FFmpeg"):
        for packet in container.demux(stream):
            if not packet.size:
                continue
            count += 1
            if count > MAX_FRAMES:
                raise MediaError("too_large", f"more than {MAX_FRAMES} frames")
            told = told and packet.pts is not None and not packet.is_corrupt
            if packet.pts is None or packet.is_discard:
                continue
            shown.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
                seeks.append(packet.pts if by_pts or packet.dts is None else packet.dts)
    return _sorted(
        count, np.array(shown if told else [], np.int64), np.array(keys, np.int64), np.array(seeks, np.int64)
    )


def _sorted(count: int, pts: NDArray[np.int64], keys: NDArray[np.int64], seeks: NDArray[np.int64]) -> Packets:
    shown = np.unique(pts)
    if len(shown) < len(pts) or not len(shown) or (np.diff(keys) <= 0).any():
        return Packets(count, shown[:0], keys[:0], seeks[:0])
    return Packets(count, shown, np.searchsorted(shown, keys).astype(np.int64), seeks)
