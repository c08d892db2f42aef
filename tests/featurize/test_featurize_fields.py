"""Films whose frames are coded as two fields each: two pictures in the stream, one on the grid."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

COUNT = 40
FORMS = {"mkv": "matroska", "mp4": "mp4", "ts": "mpegts", "avi": "avi"}
FIELD = 32  # lines of a field; a frame of 64 has two
MACROBLOCKS = 8 * 2  # of a field


class Bits:
    """Writes numbers as H.264 does."""

    def __init__(self):
        self.bits = []

    def u(self, size, number):
        self.bits += [number >> place & 1 for place in reversed(range(size))]

    def ue(self, *numbers):
        for number in numbers:
            size = (number + 1).bit_length()
            self.u(2 * size - 1, number + 1)

    def align(self, bit):
        while len(self.bits) % 8:
            self.bits.append(bit)

    def unit(self, head):
        """A unit of the stream, ended, with the bytes that keep start codes out of it."""
        self.bits.append(1)
        self.align(0)
        data = np.packbits(np.array(self.bits, np.uint8)).tobytes()
        escaped, zeros = bytearray(), 0
        for byte in data:
            if zeros >= 2 and byte <= 3:
                escaped, zeros = escaped + b"\3", 0
            escaped.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([head]) + bytes(escaped)


def parameters():
    """Frames of 128 x 64, of which each is coded as a frame or as two fields; timed at 25 frames a second."""
    sequence = Bits()
    sequence.u(8, 77)  # main profile
    sequence.u(16, 40)  # level 4
    sequence.ue(0, 0, 2, 1)  # id, bits of a frame's number, order of coding is that of showing, references
    sequence.u(1, 0)
    sequence.ue(7, 1)  # macroblocks across, and pairs of them down
    sequence.u(5, 0b00100)  # not only frames, no mixing within a frame, direct 8 x 8, no cropping, nothing on use
    picture = Bits()
    picture.ue(0, 0)
    picture.u(2, 0)
    picture.ue(0, 0, 0)
    picture.u(3, 0)
    picture.ue(0, 0, 0)  # quantizers, as signed numbers
    picture.u(3, 0)
    return sequence.unit(0x67) + picture.unit(0x68)


def field(lines, bottom):
    """A field, each of whose macroblocks holds its pixels as they are. The upper one begins anew."""
    slice_ = Bits()
    slice_.ue(0, 7, 0)  # the first macroblock, all are intra, the parameters
    slice_.u(4, 0)
    slice_.u(2, 0b10 | bottom)
    if bottom:
        slice_.u(1, 0)  # references are kept as usual
    else:
        slice_.ue(0)
        slice_.u(2, 0)
    slice_.ue(0)  # no change of the quantizer
    for place in range(MACROBLOCKS):
        y, x = divmod(place, 8)
        slice_.ue(25)
        slice_.align(0)
        for shade in lines[16 * y : 16 * y + 16, 16 * x : 16 * x + 16].flatten().tolist():
            slice_.u(8, shade)
        for _ in range(128):
            slice_.u(8, 128)
    return slice_.unit(0x65 if not bottom else 0x61)


def h264(films):
    """The two fields of each frame."""
    heads = parameters()
    for number in range(COUNT):
        lines = films.stripes(number, height=FIELD)[..., 0] // 255 * 219 + 16
        yield heads + field(lines, 0), field(lines, 1)


def mpeg2(films):
    """The two fields of each frame: pictures of half the height, with headers that say what they are."""
    with av.open(io.BytesIO(), "w", format="mpeg2video") as film:
        stream = film.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 128, FIELD, "yuv420p", 1
        pictures = [av.VideoFrame.from_ndarray(films.stripes(n, height=FIELD), format="rgb24") for n in range(COUNT)]
        packets = [bytes(packet) for picture in [*pictures, None] for packet in stream.encode(picture)]
    for packet in packets:
        head, mark, picture = packet.partition(b"\0\0\1\0")
        head = bytearray(head)
        head[6] = 2 * FIELD
        head[head.index(b"\0\0\1\xb5") + 5] &= ~8  # not progressive
        fields = []
        for structure in (1, 2):
            coded = bytearray(picture)
            at = coded.index(b"\0\0\1\xb5")
            coded[at + 6] = coded[at + 6] & ~3 | structure
            coded[at + 7] &= 0b00111110
            coded[at + 8] &= 0x7F
            fields.append(mark + bytes(coded))
        yield bytes(head) + fields[0], fields[1]


@pytest.fixture(scope="module")
def streams(films):
    return {"h264": list(h264(films)), "mpeg2video": list(mpeg2(films))}


@pytest.mark.parametrize("codec", ["h264", "mpeg2video"])
@pytest.mark.parametrize("ending", ["bare", "mkv", "mp4", "ts", "avi"])
@pytest.mark.parametrize("apart", [False, True])
def test_two_fields_are_one_frame(films, streams, tmp_path, codec, ending, apart):
    """Whether a packet holds one of them or both."""
    packets = [data for fields in streams[codec] for data in (fields if apart else [b"".join(fields)])]
    bare, path = tmp_path / "bare", tmp_path / f"film.{ending}"
    bare.write_bytes(b"".join(packets))
    with av.open(str(bare), format=codec) as old, av.open(str(path), "w", format=FORMS.get(ending, codec)) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.duration = 1 if apart else 2
            packet.pts = packet.dts = number * packet.duration
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 50), stream, not (apart and number % 2)
            new.mux(packet)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == COUNT
    for count in (1, 2, 8, 32):
        assert films.numbers(path, count) == films.grid(range(COUNT), count)
