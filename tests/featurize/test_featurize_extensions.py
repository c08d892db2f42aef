"""Each extension that is taken for media is that of files that the media readers decode."""

import av
import numpy as np
import pytest
from PIL import Image

from featurize.media.file import open_container
from featurize.media.image import read_image
from featurize.media.probe import probe
from featurize.sources.kinds import guess_kind

VIDEOS = {
    "ts": "mpegts", "mts": "mpegts", "m2ts": "mpegts", "m2t": "mpegts", "vob": "vob", "mxf": "mxf", "mpe": "mpeg",
    "m2v": "mpeg2video", "mk3d": "matroska", "asf": "asf", "qt": "mov", "f4v": "mov", "divx": "avi",
}  # fmt: skip
SOUNDS = {
    "mka": ("matroska", "pcm_s16le"), "aif": ("aiff", "pcm_s16be"), "aiff": ("aiff", "pcm_s16be"),
    "mp2": ("mp2", "mp2"), "mpga": ("mp2", "mp2"), "amr": ("amr", "libopencore_amrnb"), "weba": ("webm", "libopus"),
    "wv": ("wv", "wavpack"), "caf": ("caf", "pcm_s16be"), "au": ("au", "pcm_s16be"), "w64": ("w64", "pcm_s16le"),
    "ac3": ("ac3", "ac3"),
}  # fmt: skip
STILLS = {"avif": "AVIF", "jfif": "JPEG", "jpe": "JPEG", "apng": "PNG", "ppm": "PPM"}


@pytest.mark.parametrize("extension", VIDEOS)
def test_a_video_of_this_extension_is_planned_and_decoded(tmp_path, extension):
    path = str(tmp_path / f"x.{extension}")
    codec = "mpeg4" if VIDEOS[extension] in ("asf", "mov", "avi") else "mpeg2video"
    with av.open(path, "w", format=VIDEOS[extension]) as container:
        stream = container.add_stream(codec, rate=25, width=64, height=48, pix_fmt="yuv420p")
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        container.mux(stream.encode())
    assert guess_kind(path) == "video"
    assert _decoded(path, "video") == 10


@pytest.mark.parametrize("extension", SOUNDS)
def test_a_sound_of_this_extension_is_planned_and_decoded(tmp_path, extension):
    path = str(tmp_path / f"x.{extension}")
    format, codec = SOUNDS[extension]
    rate = 8000 if extension == "amr" else 48000
    with av.open(path, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        size = stream.codec_context.frame_size or 960
        resample = av.AudioResampler(stream.codec_context.format.name, "mono", rate, frame_size=size)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 10 * size), np.int16), "s16", "mono")
        frame.sample_rate = rate
        for part in resample.resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    assert guess_kind(path) == "audio"
    assert _decoded(path, "audio") >= 1


@pytest.mark.parametrize("extension", STILLS)
def test_a_still_of_this_extension_is_planned_and_decoded(tmp_path, extension):
    path = str(tmp_path / f"x.{extension}")
    Image.new("RGB", (64, 48), (255, 255, 255)).save(path, STILLS[extension])
    assert guess_kind(path) == "image"
    probe(path, "image")
    assert read_image(path, [8]).pixels[8].min() > 250


def _decoded(path, kind):
    probe(path, kind)
    with open_container(path) as container:
        return sum(1 for _ in container.decode(**{kind: 0}))
