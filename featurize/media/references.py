"""Find frames that no other frame refers to, by the bytes of packets: they need decoding only if wanted.

H.264 and HEVC say so in the header of each NAL unit. Without such frames, both decode the others to the same pixels.
"""

import re
from collections.abc import Callable, Iterator

import av

TIMED = ("mov", "matroska", "flv", "mpegts")  # formats that store presentation times; for others FFmpeg guesses
PROGRESSIVE = 1  # FFmpeg's field order of progressive films, 0 if unknown; two fields may come in two packets
START = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)  # start code of a NAL unit, where sizes are not stored
H264_SPARE = 1  # a slice that nothing refers to
H264_BESIDE = (6, 9, 12)  # SEI, delimiters, filler data
HEVC_SPARE = range(0, 16, 2)  # slices that no picture of the same temporal layer refers to
HEVC_BESIDE = (35, 38, 39, 40)


def spare_of(container: av.container.InputContainer, stream: av.VideoStream) -> Callable[[memoryview], bool]:
    """A function that says whether a packet's bytes hold only a frame that no other refers to; False if unsure."""
    codec, head = stream.codec_context, stream.codec_context.extradata or b""
    stored = head[:1] == b"\1"  # whether the sizes of NAL units are
    if container.format.name.split(",")[0] not in TIMED or codec.field_order > PROGRESSIVE:
        return _never
    if codec.name == "h264" and (not stored or len(head) > 4):
        return lambda data: _h264(data, head[4] % 4 + 1 if stored else 0)
    if codec.name == "hevc" and stored and len(head) > 21:
        return lambda data: _hevc(data, head[21] % 4 + 1, head[21] >> 3 & 7)
    return _never


def _never(data: memoryview) -> bool:
    return False


def _h264(data: memoryview, width: int) -> bool:
    kinds = {head[0] & 0x7F for head in _heads(data, width)}
    return H264_SPARE in kinds and kinds <= {H264_SPARE, *H264_BESIDE}


def _hevc(data: memoryview, width: int, layers: int) -> bool:
    """Higher temporal layers may refer to a picture, so only the highest of `layers` counts."""
    heads = [head for head in _heads(data, width) if head[0] >> 1 not in HEVC_BESIDE]
    return bool(heads) and all(head[0] >> 1 in HEVC_SPARE and head[1] == layers for head in heads)


def _heads(data: memoryview, width: int) -> Iterator[bytes]:
    """The first bytes of each NAL unit; `width` bytes before it store its size, if not 0."""
    if not width:
        yield from START.findall(data)
        return
    at = 0
    while at < len(data):
        yield bytes(data[at + width : at + width + 2]).ljust(2, b"\xff")
        at += width + int.from_bytes(data[at : at + width], "big")
