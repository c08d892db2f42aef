import contextlib
import gc
import os
import time
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from featurize.media import MediaError, image, read_audio, read_image, read_video, video
from featurize.prepare import ItemMedia, decoded
from store import MediaItem

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)


def colours(frames):
    return [tuple(round(x / 64) for x in frames.pixels[32][i].mean((0, 1))) for i in frames.index]


def heard(path, rate):
    return read_audio(str(path), [rate], 60)[rate][:]


def as_levels(colour):
    return tuple(round(x / 64) for x in colour)


def test_frames_stand_where_the_grid_says(media):
    """Frames 0, 4, 8, 12 of 8 red and 8 green ones."""
    frames = read_video(str(media / "red-loud.mp4"), [32], 4)
    assert colours(frames) == [as_levels(c) for c in (RED, RED, GREEN, GREEN)]
    assert frames.times == [0.0, 0.4, 0.8, 1.2]


def test_decoding_leaves_no_thread_behind(media, bad_media):
    """A decoder has a thread for each core and more; a child that decodes little collects no garbage, and ran out."""
    files = sorted(path for folder in (media, bad_media) for path in folder.iterdir())

    def decode_all():
        for path in files:
            for read in (
                lambda p: read_video(p, [32], 4),
                lambda p: read_audio(p, [8000], 60),
                lambda p: read_image(p, [32]),
            ):
                with contextlib.suppress(MediaError):
                    read(str(path))

    decode_all()
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/task"))
        decode_all()
        assert len(os.listdir("/proc/self/task")) == before
    finally:
        gc.enable()


def test_a_clip_shorter_than_the_grid_repeats_frames_but_keeps_each_once(media):
    """T tokens are promised; encoding a frame twice would be waste."""
    frames = read_video(str(media / "short.mp4"), [32], 6)
    assert frames.pixels[32].shape == (3, 32, 32, 3)
    assert colours(frames) == [as_levels(c) for c in (RED, RED, GREEN, GREEN, BLUE, BLUE)]


def test_a_still_is_a_video_of_one_frame(media):
    frames = read_image(str(media / "blue.png"), [32, 48])
    assert frames.index.tolist() == [0]
    assert frames.pixels[48].shape == (1, 48, 48, 3)
    assert colours(frames) == [as_levels(BLUE)]


def test_a_still_stands_upright(tmp_path):
    """Phones write pictures lying on their side, and say so in EXIF."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = RED
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    frames = read_image(str(tmp_path / "turned.jpg"), [32])
    assert frames.pixels[32][0, -4, 16, 0] > 150 > frames.pixels[32][0, 4, 16, 0]


@pytest.mark.parametrize(
    ("name", "hertz"), [("low.wav", 220), ("high.flac", 1760), ("middle.ogg", 880), ("red-loud.mp4", 440)]
)
def test_sound_is_mono_at_the_rate_asked_for(media, name, hertz):
    sound = heard(media / name, 48_000)
    spectrum = np.abs(np.fft.rfft(sound))
    assert sound.dtype == np.float32
    assert np.argmax(spectrum) * 48_000 / len(sound) == pytest.approx(hertz, rel=0.01)


def test_resampling_keeps_the_pitch(media):
    sound = heard(media / "low.wav", 16_000)
    assert len(sound) == pytest.approx(16_000, abs=64)
    assert np.argmax(np.abs(np.fft.rfft(sound))) * 16_000 / len(sound) == pytest.approx(220, rel=0.01)


@pytest.mark.parametrize(
    ("name", "code"),
    [("truncated.mp4", "truncated"), ("empty.mp4", "empty"), ("text.mp4", "unreadable"), ("gone.mp4", "missing")],
)
def test_bad_files_say_why(bad_media, name, code):
    """A file that kills a run at hour nine is a record with a reason here, by sight and by ear."""
    for read in (lambda p: read_video(p, [32], 4), lambda p: read_audio(p, [48_000], 60)):
        with pytest.raises(MediaError) as error:
            read(str(bad_media / name))
        assert error.value.code == code
        assert error.value.reason


def test_a_file_whose_end_is_cut_off_is_truncated(media, tmp_path):
    """With its header at the front a cut file opens well; half a video must not pass for a whole one."""
    with (
        av.open(str(media / "red-loud.mp4")) as old,
        av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "faststart"}) as new,
    ):
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    whole = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(MediaError) as error:
        read_video(str(tmp_path / "cut.mp4"), [32], 4)
    assert error.value.code == "truncated"


def test_streams_that_a_file_lacks_are_absent(media):
    with pytest.raises(MediaError) as error:
        read_audio(str(media / "silent.mp4"), [48_000], 60)
    assert error.value.code == "absent"
    with pytest.raises(MediaError) as error:
        read_video(str(media / "low.wav"), [32], 4)
    assert error.value.code == "absent"


def test_what_is_too_large_is_refused_before_it_is_read(media, monkeypatch):
    with pytest.raises(MediaError) as error:
        read_audio(str(media / "red-loud.mp4"), [48_000], max_seconds=1.0)
    assert error.value.code == "too_large"
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    monkeypatch.setattr(image, "MAX_STILL_PIXELS", 1000)
    for read in (
        lambda: read_video(str(media / "red-loud.mp4"), [32], 4),
        lambda: read_image(str(media / "blue.png"), [32]),
    ):
        with pytest.raises(MediaError) as error:
            read()
        assert error.value.code == "too_large"


def test_sixteen_bits_keep_their_shades(tmp_path):
    """Pillow alone cuts them off at 255: a grey picture turns white."""
    Image.fromarray(np.full((40, 40), 100 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(str(tmp_path / "deep.png"), [32]).pixels[32].tolist() == np.full((1, 32, 32, 3), 100).tolist()


def test_what_is_no_plain_file_is_refused_at_once(tmp_path):
    """Opening a pipe would wait for ever; a playlist would open other files."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/hostname\n")
    for name, reason in (("pipe.mp4", "plain file"), ("folder.mp4", "plain file"), ("list.mp4", "none of the formats")):
        with pytest.raises(MediaError, match=reason) as error:
            read_video(str(tmp_path / name), [32], 4)
        assert error.value.code == "unreadable"


def test_one_decode_gives_each_rate_what_its_own_decode_would(media):
    """CLAP listens at 48 kHz and Whisper at 16: together they must hear what each would alone."""
    for name in ("red-loud.mp4", "middle.ogg", "low.wav"):
        both = read_audio(str(media / name), [48_000, 16_000], 60)
        for rate, sound in both.items():
            np.testing.assert_array_equal(sound[:], heard(media / name, rate))


def test_a_stream_that_changes_its_form_is_heard_to_its_end(tmp_path):
    """Broadcasts join streams of other rates and channels; a resampler is made for one form only."""
    parts = []
    for rate, layout in ((48_000, "stereo"), (32_000, "mono")):
        path = tmp_path / f"{rate}.aac"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=rate, layout=layout)
            wave = (0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
            channels = np.stack([wave] * stream.channels)
            frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
            frame.rate, frame.pts = rate, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        parts.append(path.read_bytes())
    (tmp_path / "joined.aac").write_bytes(b"".join(parts))
    sound = heard(tmp_path / "joined.aac", 48_000)
    assert len(sound) / 48_000 == pytest.approx(2, abs=0.2)
    second = sound[-40_000:-8_000]
    assert np.argmax(np.abs(np.fft.rfft(second))) * 48_000 / len(second) == pytest.approx(440, rel=0.01)


class Needs:
    """What an encoder says of itself, and no more."""

    def __init__(self, size=0, rate=0, frame_count=1, max_seconds=60.0):
        self.size, self.rate, self.frame_count = size, rate, frame_count
        self.settings = SimpleNamespace(max_seconds=max_seconds)


def test_all_columns_share_one_decode(media):
    """Decoding costs more than small encoders; each column must not pay for it again."""
    calls = []

    def call(function, *words):
        calls.append((function.__name__, *words[1:]))
        return function(*words)

    encoders = [
        Needs(32, frame_count=4),
        Needs(48, frame_count=8),
        Needs(rate=48_000),
        Needs(rate=16_000, max_seconds=1),
    ]
    clip = MediaItem(key="k", uri=str(media / "red-loud.mp4"), kind="video", shard=0, position=0, bytes=None)
    item = ItemMedia(clip, encoders, call)
    coarse, fine = item.frames(32, 4), item.frames(48, 8)
    assert coarse.times == fine.times[::2]
    assert len(item.sound(48_000, 60.0)) == pytest.approx(1.6 * 48_000, abs=4_800)
    with pytest.raises(MediaError, match="more than 1 s of sound"):
        item.sound(16_000, 1.0)
    assert calls == [("read_video", [32, 48], 8), ("read_audio", [16_000, 48_000], 60.0)]


def test_items_come_in_order_and_only_so_many_are_decoded_ahead(media):
    """A slow encoder must not make a worker hold a whole shard of decoded videos."""
    begun = []

    class Slow(Needs):
        def prepare(self, item, media):
            begun.append(item.key)
            time.sleep(0.02 if item.position % 3 == 0 else 0)
            return item.key

    items = [MediaItem(key=str(n), uri="", kind="video", shard=0, position=n, bytes=None) for n in range(30)]
    for number, (item, units) in enumerate(decoded(items, [Slow()], threads=2)):
        assert (item.key, units) == (str(number), [str(number)])
        assert len(begun) <= number + 2 * 2
