import numpy as np
import pytest
from PIL import Image

from featurize.media import MediaError, image, read_audio, read_image, read_video, video

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
    [("truncated.mp4", "unreadable"), ("empty.mp4", "empty"), ("text.mp4", "unreadable"), ("gone.mp4", "missing")],
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
    import av

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
    assert error.value.code in ("truncated", "unreadable")


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
