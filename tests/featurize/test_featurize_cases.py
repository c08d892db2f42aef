"""Films that players show well, as people reported them: the grid lies over the frames that are shown.

Right values are those of the ffmpeg command (`ffmpeg -i FILE -fps_mode passthrough`).
"""

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from featurize.media import MediaError, read_video
from featurize.prepare import ItemMedia
from store import MediaItem

GRIDS = (1, 2, 4, 8, 32)
OPEN = "open-gop=1:keyint=30:min-keyint=30:scenecut=0"
OPEN_HEVC = {"x265-params": f"log-level=none:{OPEN}"}


def shows(films, path, expected):
    for count in GRIDS:
        assert films.numbers(path, count) == films.grid(expected, count)


def cut(films, source, target, keyframe, seconds):
    """What `ffmpeg -ss SECONDS -c copy` does: packets from a keyframe on, an edit list that hides the first."""

    def later(number, packet):
        if number < keyframe:
            return None
        shift = round(seconds / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packet

    films.remux(source, target, later, avoid_negative_ts="disabled")


@pytest.mark.parametrize(("first", "gop"), [(50, 250), (10, 250), (37, 30), (60, 20), (100, 90)])
def test_a_cut_film_begins_where_its_edit_list_says(films, tmp_path, first, gop):
    """The packets before it are decoded but not shown; a grid over them all drifts, or runs out of frames."""
    films.write(tmp_path / "gop.mp4", gop=gop, **{"x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0"})
    cut(films, tmp_path / "gop.mp4", tmp_path / "cut.mp4", first // gop * gop, first / 25)
    shows(films, tmp_path / "cut.mp4", range(first, 150))


def test_an_edit_list_may_leave_most_of_a_film_out(films, tmp_path):
    """The header's number of frames counts what is never shown."""
    films.write(tmp_path / "gop.mp4", gop=30)
    data = bytearray((tmp_path / "gop.mp4").read_bytes())
    at = data.index(b"elst") + 12  # one edit: its length (1/1000 s) and its begin (1/12800 s)
    _, begin = struct.unpack_from(">Ii", data, at)
    struct.pack_into(">Ii", data, at, 2000, begin + 2 * 12_800)
    (tmp_path / "middle.mp4").write_bytes(data)
    shows(films, tmp_path / "middle.mp4", range(50, 100))


@pytest.mark.parametrize(("encoder", "options"), [("libx265", OPEN_HEVC), ("libx264", {"x264-params": OPEN})])
def test_a_film_may_be_cut_at_a_keyframe_that_frames_before_it_lean_on(films, tmp_path, encoder, options):
    films.write(tmp_path / "open.mp4", encoder, **options)
    with av.open(str(tmp_path / "open.mp4")) as container:
        keys = [number for number, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    cut(films, tmp_path / "open.mp4", tmp_path / "cut.mp4", keys[1], 38 / 25)
    with av.open(str(tmp_path / "cut.mp4")) as container:
        decoded = sum(1 for _ in container.decode(video=0))
    shows(films, tmp_path / "cut.mp4", range(150 - decoded, 150))
    assert decoded == 112


def test_a_recording_may_begin_between_keyframes(films, tmp_path):
    """Broadcasts do: what comes before the first keyframe cannot be decoded, and is no damage."""
    films.write(tmp_path / "whole.ts", gop=30, **{"x264-params": "keyint=30:min-keyint=30:scenecut=0:bframes=0"})
    packets = (tmp_path / "whole.ts").read_bytes()
    packets = [packets[at : at + 188] for at in range(0, len(packets), 188)]
    begun = len(packets) * 2 // 5
    (tmp_path / "begun.ts").write_bytes(b"".join(packets[:3] + packets[begun:]))
    shown = films.numbers(tmp_path / "begun.ts", 1)[0]
    assert shown in (60, 90)
    shows(films, tmp_path / "begun.ts", range(shown, 150))


def test_hidden_frames_of_vp8_have_no_place_on_the_grid(films, tmp_path):
    """Alternate references are packets like others, but for one bit."""

    def hide(number, packet):
        data = bytearray(bytes(packet))
        if number % 5 == 3:
            data[0] &= ~0x10
        return films.with_bytes(packet, bytes(data))

    films.write(tmp_path / "plain.webm", "libvpx", gop=7)
    films.remux(tmp_path / "plain.webm", tmp_path / "hidden.webm", hide)
    shows(films, tmp_path / "hidden.webm", [number for number in range(150) if number % 5 != 3])


def uncoded(data):
    """An MPEG-4 frame's header, up to the bit that says that nothing follows; a time has five bits at 25 a second."""
    at = data.index(b"\0\0\1\xb6") + 4
    bits = "".join(f"{byte:08b}" for byte in data[at : at + 4])
    end = bits.index("0", 2) + 8
    bits = (bits[:end] + "00").ljust(16, "1")
    return data[:at] + bytes([int(bits[:8], 2), int(bits[8:], 2)])


def test_frames_of_mpeg4_that_are_not_coded_have_no_place_on_the_grid(films, tmp_path):
    def skip(number, packet):
        late = number >= 100 and number % 2
        return films.with_bytes(packet, uncoded(bytes(packet))) if late and not packet.is_keyframe else packet

    films.write(tmp_path / "plain.avi", "mpeg4", gop=100)
    films.remux(tmp_path / "plain.avi", tmp_path / "skipping.avi", skip)
    with av.open(str(tmp_path / "skipping.avi")) as container:
        times = [frame.pts for frame in container.decode(video=0)]
    assert 120 < len(times) < 130
    for count in GRIDS:
        found = read_video(str(tmp_path / "skipping.avi"), [64], count)
        assert found.times == [round(times[place * len(times) // count] / 25, 6) for place in range(count)]


def test_an_empty_packet_of_theora_shows_the_last_frame_again(films):
    """65 frames, made by libtheora from a film that changes at 20, 40 and 60; all others are empty packets."""
    path = Path(__file__).parent / "again.ogv"
    for count in (2, 4, 8, 16, 65):
        assert films.numbers(path, count) == films.grid([5 + n // 20 * 20 for n in range(65)], count)


def test_what_a_decoder_refuses_is_too_large_only_if_its_size_is(films, tmp_path, monkeypatch):
    films.write(tmp_path / "film.mp4", count=20)
    monkeypatch.setattr("featurize.media.file.MAX_PIXELS", 128 * 64 - 1)
    with pytest.raises(MediaError, match="no valid size") as error:
        read_video(str(tmp_path / "film.mp4"), [64], 2)
    assert error.value.code == "too_large"


def test_mpeg4_that_never_says_how_large_its_frames_are_is_not_too_large(films, tmp_path):
    """The decoder says of it what it says of frames that are too large: that an argument is invalid."""
    films.write(tmp_path / "whole.ts", "mpeg4", count=100, sc_threshold="1000000000")
    with av.open(str(tmp_path / "whole.ts")) as container:
        begin = [packet.pos for packet in container.demux(video=0)][10]
    (tmp_path / "begun.ts").write_bytes((tmp_path / "whole.ts").read_bytes()[begin:])
    with pytest.raises(MediaError, match="Invalid argument") as error:
        read_video(str(tmp_path / "begun.ts"), [64], 2)
    assert error.value.code == "unreadable"


MATRICES = {
    "as it is": (1, 0, 0, 1),
    "front camera": (-1, 0, 0, 1),
    "upside down": (-1, 0, 0, -1),
    "upside down, mirrored": (1, 0, 0, -1),
    "right": (0, 1, -1, 0),
    "left": (0, -1, 1, 0),
    "right, mirrored": (0, 1, 1, 0),
    "left, mirrored": (0, -1, -1, 0),
}


@pytest.mark.parametrize("name", MATRICES)
def test_all_eight_orientations_are_shown_upright(films, tmp_path, name):
    """A selfie that is mirrored, text in it too, is another picture."""
    shades = np.zeros((64, 128, 3), np.uint8)
    shades[:32, :64], shades[:32, 64:], shades[32:, :64] = 250, 170, 90  # four corners, four shades
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(shades, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray((tmp_path / "film.mp4").read_bytes())
    a, b, c, d = MATRICES[name]
    struct.pack_into(">5i", data, data.index(b"tkhd") + 44, a << 16, b << 16, 0, c << 16, d << 16)
    (tmp_path / "film.mp4").write_bytes(data)
    found = read_video(str(tmp_path / "film.mp4"), [64], 1).pixels[64][0, :, :, 0].astype(int)
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):  # a corner (x, y), from -1 to 1, comes to (a x + c y, b x + d y)
        across, down = a * (2 * x - 1) + c * (2 * y - 1), b * (2 * x - 1) + d * (2 * y - 1)
        shade = found[16 + 32 * (down > 0), 16 + 32 * (across > 0)]
        assert shade == pytest.approx(int(shades[63 * y, 127 * x, 0]), abs=12)


def test_the_default_film_is_taken_not_the_first(films, tmp_path):
    """Some put a thumbnail of one frame before it, without saying that it is one."""
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        thumbnail, film = container.add_stream("mjpeg", rate=25), container.add_stream("libx264", rate=25)
        thumbnail.width, thumbnail.height, thumbnail.pix_fmt = 256, 128, "yuvj420p"
        film.width, film.height, film.pix_fmt = 128, 64, "yuv420p"
        thumbnail.disposition, film.disposition = av.stream.Disposition(0), av.stream.Disposition.default
        container.mux(thumbnail.encode(av.VideoFrame.from_ndarray(films.stripes(255, 256, 128), format="rgb24")))
        container.mux(thumbnail.encode())
        for number in range(50):
            container.mux(film.encode(av.VideoFrame.from_ndarray(films.stripes(number), format="rgb24")))
        container.mux(film.encode())
    shows(films, tmp_path / "two.mkv", range(50))


def test_of_films_that_are_all_default_the_largest_is_taken(films, tmp_path):
    with av.open(str(tmp_path / "two.mp4"), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, scale in zip(streams, (1, 2), strict=True):
            stream.width, stream.height, stream.pix_fmt = 64 * scale, 32 * scale, "yuv420p"
            stream.disposition = av.stream.Disposition.default
        for number in range(40):
            for stream, scale in zip(streams, (1, 2), strict=True):
                picture = films.stripes(number * scale, 64 * scale, 32 * scale)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    shows(films, tmp_path / "two.mp4", range(0, 80, 2))


def test_a_packet_that_cannot_be_decoded_is_a_frame_lost_and_a_fact(films, tmp_path):
    """Players go on; whoever trains on the features can see how many packets were skipped."""

    def spoil(number, packet):
        return films.with_bytes(packet, b"rubbish" * 9) if number == 61 else packet

    films.write(tmp_path / "plain.avi", "mpeg4", gop=1)
    films.remux(tmp_path / "plain.avi", tmp_path / "spoilt.avi", spoil)
    shows(films, tmp_path / "spoilt.avi", [number for number in range(150) if number != 61])
    assert facts(tmp_path / "spoilt.avi")["skipped"] == 1
    assert "skipped" not in facts(tmp_path / "plain.avi")


def facts(path):
    item = MediaItem(key="k", uri=str(path), kind="video", shard=0, position=0, bytes=None)
    needs = type("Needs", (), {"size": 64, "rate": 0, "frame_count": 8})
    return ItemMedia(item, [needs]).frames(64, 4).facts


def test_a_film_of_which_much_cannot_be_decoded_is_refused(films, tmp_path):
    def spoil(number, packet):
        return films.with_bytes(packet, b"rubbish" * 9) if number % 4 == 1 else packet

    films.write(tmp_path / "plain.avi", "mpeg4", gop=1)
    films.remux(tmp_path / "plain.avi", tmp_path / "spoilt.avi", spoil)
    with pytest.raises(MediaError, match="packets are lost") as error:
        read_video(str(tmp_path / "spoilt.avi"), [64], 32)
    assert error.value.code == "unreadable"


def test_the_last_frames_have_their_times_too(films, tmp_path):
    """They come when the decoder is told that no more packets follow."""
    films.write(tmp_path / "film.mp4", count=20)
    assert read_video(str(tmp_path / "film.mp4"), [64], 20).times == [round(n / 25, 6) for n in range(20)]
