"""Where films and sounds end: what is cut is `truncated`, what is whole passes, and half a packet is no frame."""

import contextlib
import io
import subprocess

import av
import imageio_ffmpeg
import pytest

from featurize.media import MediaError, read_audio, read_video
from featurize.media.probe import probe
from featurize.media.structure import container_is_truncated

GRIDS = (2, 8, 32)
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
PIXELS = {"gif": "rgb8", "apng": "rgb24", "png": "rgb24", "mjpeg": "yuvj420p"}


class Pipe(io.RawIOBase):
    """Takes bytes and cannot go back, so that headers keep what they say while a file is written."""

    def __init__(self, path):
        self._path = path
        path.write_bytes(b"")

    def writable(self):
        return True

    def write(self, data):
        with self._path.open("ab") as file:
            return file.write(data)


def film(films, path, encoder, file=None, count=60, form=None, options=None, **words):
    with av.open(file or str(path), "w", format=form, options=options or {}) as container:
        stream = container.add_stream(encoder, rate=25, options=words)
        stream.width, stream.height, stream.pix_fmt = 128, 64, PIXELS.get(encoder, "yuv420p")
        stream.gop_size = int(words.get("g", 12))
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(films.stripes(number), format="rgb24")))
        container.mux(stream.encode())


def ffmpeg(films, folder, words, count):
    """Run the ffmpeg command on a film of so many numbered frames."""
    source = "-y -loglevel error -f rawvideo -pix_fmt rgb24 -s 128x64 -r 25 -i -"
    pictures = b"".join(films.stripes(number).tobytes() for number in range(count))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *source.split(), *words.split()]
    subprocess.run(command, cwd=folder, input=pictures, check=True)


def decoded(path):
    """The numbers of the frames that plain decoding shows."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            with contextlib.suppress(av.error.InvalidDataError):
                frames += stream.decode(packet)
    bits = [frame.to_ndarray(format="gray")[32, 8::16] > 127 for frame in frames]
    return [sum(1 << place for place in range(8) if row[place]) for row in bits]


def shows(films, path, expected):
    for count in GRIDS:
        assert films.numbers(path, count) == films.grid(expected, count)


def refused(read, path):
    with pytest.raises(MediaError) as error:
        read(str(path))
    return error.value.code


def sees(path):
    return read_video(path, [64], 4)


def hears(path):
    return read_audio(path, [16_000], 600)


@pytest.mark.parametrize(
    ("name", "encoder", "options"),
    [
        ("film.mp4", "libx264", {}), ("film.mov", "mpeg4", {}), ("parts.mov", "png", FRAGMENTS),
        ("film.avi", "mjpeg", {}), ("film.mkv", "libx264", {}), ("film.webm", "libvpx", {}), ("film.wmv", "wmv2", {}),
        ("film.mxf", "mpeg2video", {}), ("film.rm", "rv20", {}), ("film.gif", "gif", {}), ("film.apng", "apng", {}),
        ("film.ivf", "libvpx", {}), ("film.obu", "libsvtav1", {}), ("film.flv", "flv", {}), ("film.asf", "msmpeg4", {}),
        ("index_first.mp4", "libx264", {"movflags": "faststart"}),
    ],
)  # fmt: skip
def test_a_film_that_lacks_its_end_is_truncated(films, tmp_path, name, encoder, options):
    """Not `unreadable`, `absent`, or a whole film: the download is to be repeated."""
    film(films, tmp_path / name, encoder, options=options)
    assert not container_is_truncated(str(tmp_path / name))
    assert len(sees(str(tmp_path / name)).times) == 4
    data = (tmp_path / name).read_bytes()
    for size in (200, *(int(len(data) * share) for share in (0.33, 0.67, 0.9, 0.95))):
        (tmp_path / name).write_bytes(data[:size])
        assert (size, refused(sees, tmp_path / name)) == (size, "truncated")


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("sound.wav", "pcm_s16le"), ("sound.flac", "flac"), ("sound.ogg", "libopus"), ("sound.m4a", "aac"),
        ("sound.aiff", "pcm_s16be"), ("sound.caf", "pcm_s16be"), ("sound.mka", "flac"),
    ],
)  # fmt: skip
def test_the_first_bytes_of_a_sound_are_truncated_too(films, tmp_path, name, encoder):
    with av.open(str(tmp_path / name), "w") as container:
        films.write_tone(container, container.add_stream(encoder, rate=48_000, layout="mono"), 2)
    assert not container_is_truncated(str(tmp_path / name))
    hears(str(tmp_path / name))
    data = (tmp_path / name).read_bytes()
    for size in (20, 50, 70):
        (tmp_path / name).write_bytes(data[:size])
        assert (size, refused(hears, tmp_path / name)) == (size, "truncated")
    (tmp_path / name).write_bytes(data[:20])
    assert refused(lambda path: probe(path, "audio"), tmp_path / name) == "truncated"


@pytest.mark.parametrize("encoder", ["ffv1", "mjpeg"])
def test_a_film_that_lacks_its_last_frame_is_truncated_and_one_that_lacks_its_index_is_whole(films, tmp_path, encoder):
    film(films, tmp_path / "film.avi", encoder, count=117)
    data = (tmp_path / "film.avi").read_bytes()
    index = data.rindex(b"idx1")
    for size, expected in ((index - 40, "truncated"), (index - 1000, "truncated"), (index, None), (index + 300, None)):
        (tmp_path / "film.avi").write_bytes(data[:size])
        if expected:
            assert (size, refused(sees, tmp_path / "film.avi")) == (size, expected)
        else:
            shows(films, tmp_path / "film.avi", range(117))


@pytest.mark.parametrize(
    ("name", "encoder", "last"),
    [
        ("sound.wav", "pcm_s16le", 0.999), ("sound.w64", "pcm_s16le", 0.999), ("sound.caf", "pcm_s16be", 0.999),
        ("sound.aiff", "pcm_s16be", 0.999), ("sound.mp3", "libmp3lame", 0.999), ("sound.ogg", "libopus", 0.999),
        ("sound.m4a", "aac", 0.95), ("sound.mka", "flac", 0.98),
        ("sound.flac", "flac", 0.95), ("sound.au", "pcm_s16be", 0.95), ("sound.tta", "tta", 0.95),
    ],
)  # fmt: skip
def test_a_sound_that_lacks_its_end_is_truncated(films, tmp_path, name, encoder, last):
    with av.open(str(tmp_path / name), "w", options={"movflags": "faststart"}) as container:
        films.write_tone(container, container.add_stream(encoder, rate=48_000, layout="mono"), 20)
    assert len(hears(str(tmp_path / name))[16_000]) == pytest.approx(20 * 16_000, abs=1600)
    data = (tmp_path / name).read_bytes()
    for share in (0.3, 0.5, 0.9, last):
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        assert (share, refused(hears, tmp_path / name)) == (share, "truncated")


@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_that_was_streamed_promises_nothing(films, tmp_path, length):
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        films.write_tone(container, container.add_stream("pcm_s16le", rate=48_000, layout="mono"), 2)
    data = bytearray((tmp_path / "sound.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = data[4:8] = length.to_bytes(4, "little")
    (tmp_path / "sound.wav").write_bytes(data)
    assert len(hears(str(tmp_path / "sound.wav"))[16_000]) == pytest.approx(2 * 16_000, abs=160)


def test_a_whole_file_without_its_index_is_unreadable(films, tmp_path):
    """A camera that lost power leaves no index; the same file comes again, however often it is fetched."""
    film(films, tmp_path / "film.mp4", "libx264")
    data = (tmp_path / "film.mp4").read_bytes()
    (tmp_path / "film.mp4").write_bytes(data[: data.index(b"moov") - 4])
    assert refused(sees, tmp_path / "film.mp4") == "unreadable"


def test_a_whole_file_without_frames_is_unreadable(films, tmp_path):
    film(films, tmp_path / "film.webm", "libvpx")
    with av.open(str(tmp_path / "film.webm")) as old, av.open(str(tmp_path / "none.webm"), "w") as new:
        new.add_stream_from_template(old.streams.video[0])
        new.start_encoding()
    assert refused(sees, tmp_path / "none.webm") == "unreadable"


def test_a_film_that_was_streamed_promises_nothing(films, tmp_path):
    """Its header has the mark of an unknown number, which FFmpeg takes for a number."""
    film(films, tmp_path / "film", "libvpx", Pipe(tmp_path / "film"), form="ivf")
    shows(films, tmp_path / "film", range(60))


@pytest.mark.parametrize(("step", "begin", "number"), [(2, 0, 120), (1, -40, 60)])
def test_ivf_counts_frames_or_their_time(films, tmp_path, step, begin, number):
    """Writers differ, and neither need be the larger number."""
    film(films, tmp_path / "film.ivf", "libvpx")
    data = bytearray((tmp_path / "film.ivf").read_bytes())
    data[24:28] = number.to_bytes(4, "little")
    at, half = 32, 0
    for place in range(60):
        data[at + 4 : at + 12] = (begin + place * step).to_bytes(8, "little", signed=True)
        at += 12 + int.from_bytes(data[at : at + 4], "little")
        half = at if place == 20 else half
    (tmp_path / "film.ivf").write_bytes(data)
    shows(films, tmp_path / "film.ivf", range(60))
    (tmp_path / "film.ivf").write_bytes(data[:half])  # between two frames
    assert refused(sees, tmp_path / "film.ivf") == "truncated"


def test_the_sound_of_a_film_that_was_streamed_promises_nothing(films, tmp_path):
    """FFmpeg guesses its duration from the bit rate."""
    with av.open(Pipe(tmp_path / "film.mxf"), "w", format="mxf") as container:
        stream = container.add_stream("prores_ks", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv422p10le"
        heard = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for number in range(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(films.stripes(number), format="rgb24")))
        container.mux(stream.encode())
        films.write_tone(container, heard, 4)
    sound = read_audio(str(tmp_path / "film.mxf"), [16_000], 60)[16_000]
    assert len(sound) / 16_000 == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(("name", "encoder"), [("film.nut", "ffv1"), ("film.mpg", "mpeg1video")])
def test_half_a_packet_at_the_end_is_no_frame(films, tmp_path, name, encoder):
    """Where the container promises nothing, what is there is taken: without the packet that was cut."""
    film(films, tmp_path / name, encoder, g="250")
    data = (tmp_path / name).read_bytes()
    for size in range(len(data) // 2, len(data) // 2 + 1000, 100):
        (tmp_path / name).write_bytes(data[:size])
        shows(films, tmp_path / name, decoded(tmp_path / name))


@pytest.mark.parametrize("ending", ["avi", "ts"])
def test_joined_films_of_mpeg4_may_lose_a_frame(films, tmp_path, ending):
    """The last one of a film with B-frames, where one without them follows: the decoder no longer waits for it."""
    ffmpeg(films, tmp_path, f"-c:v mpeg4 -q:v 3 -bf 2 -g 250 first.{ending}", count=54)
    ffmpeg(films, tmp_path, f"-c:v mpeg4 -q:v 3 -bf 0 -g 1 second.{ending}", count=61)
    (tmp_path / "list").write_text(f"file first.{ending}\nfile second.{ending}\n")
    ffmpeg(films, tmp_path, f"-f concat -safe 0 -i list -map 1 -c copy joined.{ending}", count=1)
    numbers = decoded(tmp_path / f"joined.{ending}")
    assert len(numbers) == 114
    shows(films, tmp_path / f"joined.{ending}", numbers)


def test_most_of_a_recording_may_come_before_its_first_keyframe(films, tmp_path):
    """Decoders of MPEG-1 and 2 drop it without a word."""
    film(films, tmp_path / "whole.mpg", "mpeg1video", count=100, g="80", sc_threshold="1000000000")
    data = (tmp_path / "whole.mpg").read_bytes()
    (tmp_path / "begun.mpg").write_bytes(data[len(data) // 8 :])
    with av.open(str(tmp_path / "begun.mpg")) as container:
        assert sum(1 for packet in container.demux(video=0) if packet.size) > 60
    shows(films, tmp_path / "begun.mpg", range(80, 100))


def test_frames_of_a_program_stream_are_where_a_whole_reading_finds_them(films, tmp_path):
    """After a seek FFmpeg gives them the times of their neighbours."""
    ffmpeg(films, tmp_path, "-c:v mpeg1video -q:v 3 -bf 2 -g 1 film.mpg", count=90)
    shows(films, tmp_path / "film.mpg", range(90))
