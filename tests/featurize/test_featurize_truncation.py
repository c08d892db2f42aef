"""What a header promises, and what is no promise: whole files pass, halves do not; codes name the true cause."""

import random

import av
import numpy as np
import pytest
from PIL import Image

from featurize.media import Isolated, MediaError, read_audio, read_image, read_video
from featurize.media.probe import probe

RATE = 44_100


def heard(path, seconds=600.0):
    """Seconds of sound, and how many packets were skipped."""
    sound = read_audio(str(path), [16_000], seconds)[16_000]
    assert sound.facts.get("skipped", 0) == sound.skipped
    return pytest.approx(len(sound) / 16_000, abs=0.15), sound.skipped


def mp3(films, path, seconds, kilobits=128, xing=0, loudness=0.3):
    options = {"write_xing": str(xing), "id3v2_version": "0"}
    with av.open(str(path), "w", format="mp3", options=options) as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        stream.bit_rate = kilobits * 1000
        films.write_tone(container, stream, seconds, loudness)
    return path.read_bytes()


def refused(read, path, code):
    with pytest.raises(MediaError) as error:
        read(str(path))
    assert error.value.code == code, error.value.reason
    assert " at 0x" not in error.value.reason
    return error.value.reason


def sees(path):
    return read_video(str(path), [64], 4)


def hears(path):
    return read_audio(str(path), [16_000], 600)


@pytest.mark.parametrize("encoder", ["mpeg4", "libx264"])
def test_avi_counts_time_slots_not_frames(films, tmp_path, encoder):
    """Copied from an MP4 at 25 frames a second, every second slot may be empty; a screen recording has holes."""
    films.write(tmp_path / "film.mp4", encoder, **({"x264-params": "bframes=0"} if encoder == "libx264" else {}))

    with av.open(str(tmp_path / "film.mp4")) as old, av.open(str(tmp_path / "film.avi"), "w") as new:
        film = old.streams.video[0]
        stream = new.add_stream_from_template(film)
        stream.time_base = film.time_base
        form = av.bitstream.BitStreamFilterContext("h264_mp4toannexb" if encoder == "libx264" else "null", film)
        for number, packet in enumerate(old.demux(film)):
            for part in form.filter(packet) if packet.size else ():
                part.pts = part.dts = round((number + 4 * (number // 3)) / 25 / film.time_base)
                part.stream = stream
                new.mux(part)
    with av.open(str(tmp_path / "film.avi")) as container:
        assert container.streams.video[0].frames > 300
    for count in (1, 4, 8, 32):
        assert films.numbers(tmp_path / "film.avi", count) == films.grid(range(150), count)


@pytest.mark.parametrize(
    ("name", "encoder", "sound"),
    [
        ("film.mkv", "libx264", "aac"), ("silent.mkv", "libx265", ""), ("film.webm", "libvpx-vp9", "libopus"),
        ("film.flv", "flv", "libmp3lame"), ("film.avi", "mpeg4", "libmp3lame"), ("film.wmv", "wmv2", "wmav2"),
        ("film.mov", "mpeg4", "aac"), ("dash.mp4", "mpeg4", ""),
    ],
)  # fmt: skip
def test_half_a_film_is_truncated_by_sight_and_by_ear(films, tmp_path, name, encoder, sound):
    """Where the header gives the duration of the longest stream too."""
    flags = {"film.mov": "faststart", "dash.mp4": "dash+global_sidx"}
    options = {"movflags": flags[name]} if name in flags else {}
    films.write(tmp_path / name, encoder, gop=25, sound=sound, container=options)
    assert films.numbers(tmp_path / name, 1) == [0]
    if sound:
        assert heard(tmp_path / name) == (6.0, 0)
    data = (tmp_path / name).read_bytes()
    for share in (0.5, 0.8):
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        refused(sees, tmp_path / name, "truncated")
        if sound:
            refused(hears, tmp_path / name, "truncated")


@pytest.mark.parametrize("name", ["short.mkv", "short.wmv", "short.flv", "short.avi", "short.mp4"])
@pytest.mark.parametrize(("pictures", "sound"), [(2, 8), (8, 2)])
def test_sound_and_picture_may_differ_in_length(films, tmp_path, name, pictures, sound):
    """The whole file's duration promises nothing about a stream of it. After the sound, it is silent."""
    kinds = {"wmv": ("wmv2", "wmav2"), "flv": ("flv", "libmp3lame"), "avi": ("mpeg4", "libmp3lame")}
    encoder, codec = kinds.get(name[-3:], ("libx264", "aac"))
    films.write(tmp_path / name, encoder, count=pictures * 25, sound=codec, seconds=sound)
    assert films.numbers(tmp_path / name, 2) == [0, pictures * 25 // 2]
    assert sees(tmp_path / name).times[-1] == pytest.approx(pictures * 3 / 4, abs=0.1)
    assert heard(tmp_path / name) == (8, 0)


def test_an_mp3_without_a_header_promises_nothing(films, tmp_path):
    """FFmpeg guesses its duration from the first frames' bit rate: here four times too much."""
    quiet = mp3(films, tmp_path / "quiet.mp3", 4, kilobits=32)
    (tmp_path / "varying.mp3").write_bytes(quiet + mp3(films, tmp_path / "loud.mp3", 4, kilobits=320))
    with av.open(str(tmp_path / "varying.mp3")) as container:
        assert container.duration > 30e6
    assert heard(tmp_path / "varying.mp3", seconds=10) == (8.0, 0)


@pytest.mark.parametrize("rate", [44_100, 22_050, 11_025])
@pytest.mark.parametrize("tag", [b"", b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)])
def test_an_mp3_with_a_header_keeps_its_promise(films, tmp_path, monkeypatch, rate, tag):
    """Its number of frames is counted, so half of it is half."""
    monkeypatch.setitem(globals(), "RATE", rate)
    whole = tag + mp3(films, tmp_path / "whole.mp3", 6, kilobits=32, xing=1)
    (tmp_path / "whole.mp3").write_bytes(whole)
    assert heard(tmp_path / "whole.mp3") == (6.0, 0)
    (tmp_path / "half.mp3").write_bytes(whole[: len(whole) // 2])
    assert "of the 6." in refused(hears, tmp_path / "half.mp3", "truncated")


def ape(size):
    """A tag of APE's second version, with a picture in it."""
    picture = random.Random(0).randbytes(size)
    item = little(size) + little(2) + b"Cover Art (Front)\0" + picture
    body = b"APETAGEX" + little(2000) + little(len(item) + 32) + little(1)
    return body + little(0xA0000000) + bytes(8) + item + body + little(0x80000000) + bytes(8)


def little(number):
    return number.to_bytes(4, "little")


LYRICS = b"LYRICSBEGININD0000210LYR00700" + b"[00:01]la la la\r\n" * 60 + b"001000LYRICS200TAG" + b"song".ljust(125)


@pytest.mark.parametrize("tag", [ape(60_000), ape(400_000), LYRICS], ids=["cover", "large cover", "lyrics"])
@pytest.mark.parametrize("xing", [0, 1])
def test_tags_after_a_sound_are_no_sound(films, tmp_path, tag, xing):
    """They look like packets that cannot be decoded, and like more seconds."""
    sound = mp3(films, tmp_path / "plain.mp3", 4, xing=xing)
    (tmp_path / "tagged.mp3").write_bytes(sound + tag)
    assert heard(tmp_path / "tagged.mp3")[0] == 4.0


@pytest.mark.parametrize(("name", "encoder"), [("sound.ac3", "ac3"), ("sound.wv", "wavpack"), ("sound.aac", "aac")])
def test_a_tag_may_follow_any_sound(films, tmp_path, name, encoder):
    """Decoders and demuxers have other words for it than those of MP3 do."""
    with av.open(str(tmp_path / name), "w") as container:
        films.write_tone(container, container.add_stream(encoder, rate=RATE, layout="mono"), 4)
    with (tmp_path / name).open("ab") as file:
        file.write(LYRICS)
    assert heard(tmp_path / name)[0] == 4.0


def test_a_damaged_packet_of_an_mp4_is_skipped(films, tmp_path):
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        films.write_tone(container, container.add_stream("aac", rate=RATE, layout="mono"), 4)
    data = bytearray((tmp_path / "film.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = random.Random(0).randbytes(400)
    (tmp_path / "film.mp4").write_bytes(data)
    seconds, skipped = heard(tmp_path / "film.mp4")
    assert seconds == 4.0
    assert 0 < skipped < 5


def test_sounds_may_be_joined_and_damaged(films, tmp_path):
    """As players hear them; how many packets were skipped is kept beside the features."""
    first = mp3(films, tmp_path / "first.mp3", 4, 128, xing=1)
    second = mp3(films, tmp_path / "second.mp3", 3, 64, xing=1)
    (tmp_path / "joined.mp3").write_bytes(first + second)
    assert heard(tmp_path / "joined.mp3")[0] == 7.05
    rubbish, middle = random.Random(0).randbytes(3000), len(first) // 2
    (tmp_path / "damaged.mp3").write_bytes(first[:middle] + rubbish + first[middle:])
    seconds, skipped = heard(tmp_path / "damaged.mp3")
    assert seconds == 4.0
    assert 0 < skipped < 10
    with Isolated() as call:
        assert call(read_audio, str(tmp_path / "damaged.mp3"), [16_000], 60.0)[16_000].skipped == skipped


def test_a_sound_that_is_mostly_rubbish_is_refused(films, tmp_path):
    data = bytearray(mp3(films, tmp_path / "plain.mp3", 10))
    rng = random.Random(0)
    for at in range(4000, len(data) - 4000, 2000):
        data[at : at + 900] = rng.randbytes(900)
    (tmp_path / "rubbish.mp3").write_bytes(data)
    assert "packets are lost" in refused(hears, tmp_path / "rubbish.mp3", "unreadable")


def test_the_default_sound_is_heard_not_the_first(films, tmp_path):
    """The first may be a commentary."""
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        streams[0].disposition, streams[1].disposition = av.stream.Disposition(0), av.stream.Disposition.default
        for stream, loudness in zip(streams, (0.0, 0.3), strict=True):
            films.write_tone(container, stream, 2, loudness)
    assert np.abs(read_audio(str(tmp_path / "two.mkv"), [16_000], 60)[16_000][:]).max() > 0.2


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "name", ["cut.jpg", "cut.png", "cut.webp", "cut.bmp", "cut.gif", "cut.avif", "cut.tif", "lzw.tif"]
)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_a_cut_picture_is_truncated(tmp_path, name, share):
    """Not `unreadable`, as if it had never been a picture: the download is to be repeated."""
    shades = np.random.default_rng(0).integers(0, 256, (80, 120, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    options = {"cut.jpg": {"exif": exif}, "lzw.tif": {"compression": "tiff_lzw"}}
    Image.fromarray(shades).save(tmp_path / name, **options.get(name, {}))
    read_image(str(tmp_path / name), [32])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    refused(lambda path: read_image(path, [32]), tmp_path / name, "truncated")


def test_a_jpeg_that_lacks_its_last_two_bytes_is_truncated(tmp_path):
    """They hold no pixel, but nothing says that it was only them."""
    Image.new("RGB", (80, 60)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-2])
    refused(lambda path: read_image(path, [32]), tmp_path / "cut.jpg", "truncated")


def test_the_first_bytes_of_a_picture_are_truncated_too(tmp_path):
    Image.new("RGB", (800, 600)).save(tmp_path / "cut.jpg", quality=95)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:300])
    for read in (lambda path: read_image(path, [32]), lambda path: probe(path, "image")):
        assert "ends before" in refused(read, tmp_path / "cut.jpg", "truncated")


def test_a_damaged_picture_with_its_end_is_unreadable(tmp_path):
    """Codes differ as causes do."""
    Image.new("RGB", (80, 60)).save(tmp_path / "bad.png")
    data = bytearray((tmp_path / "bad.png").read_bytes())
    data[16:24] = bytes(8)  # no width, no height
    (tmp_path / "bad.png").write_bytes(data)
    refused(lambda path: read_image(path, [32]), tmp_path / "bad.png", "unreadable")
    (tmp_path / "text.jpg").write_text("no picture")
    for read in (lambda path: read_image(path, [32]), lambda path: probe(path, "image")):
        assert "none of JPEG, PNG" in refused(read, tmp_path / "text.jpg", "unreadable")
