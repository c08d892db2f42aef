"""Sound keeps its time: segment k of a clip is what is heard in its k-th part.

Right values are those of `ffmpeg -i FILE -af aresample=async=1:first_pts=0`, and what players play.
"""

import subprocess

import av
import imageio_ffmpeg
import numpy as np
import pytest

from featurize.media import MediaError, read_audio

RATE = 48_000
FORMS = {
    "mp4": ("libx264", "aac"), "mkv": ("libx264", "aac"), "mov": ("libx264", "pcm_s16le"),
    "webm": ("libvpx", "libopus"),
    "ts": ("libx264", "aac"), "mpg": ("mpeg2video", "mp2"), "flv": ("flv", "libmp3lame"), "wmv": ("wmv2", "wmav2"),
    "ogv": ("libtheora", "libvorbis"), "avi": ("mpeg4", "libmp3lame"),
}  # fmt: skip


def ffmpeg(*words):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def make(path, picture, sound, late=0.0):
    """A film of `picture` s, with noise of `sound` s that begins `late`."""
    encoder, codec = FORMS[path.suffix[1:]]
    noise = f"anoisesrc=d={sound}:r={RATE}:a=0.3:seed=1"
    films = ["-f", "lavfi", "-i", f"testsrc=s=128x64:r=25:d={picture}"]
    sounds = ["-itsoffset", late, "-f", "lavfi", "-i", noise]
    ffmpeg(*films, *sounds, "-map", "0:v", "-map", "1:a", "-c:v", encoder, "-c:a", codec, path)


def loud(sound):
    """Where something is heard, in seconds: from and to."""
    blocks = np.abs(sound[0 : len(sound) // 480 * 480]).reshape(-1, 480).max(1) > 0.02
    edges = np.flatnonzero(np.diff(np.concatenate([[0], blocks, [0]]))) / 100
    spans = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    joined = spans[:1]
    for start, end in spans[1:]:
        joined[-1:] = [(joined[-1][0], end)] if start - joined[-1][1] < 0.06 else [joined[-1], (start, end)]
    return joined


def heard(path, *bounds):
    sound = read_audio(str(path), [RATE, 16_000], 1e4, *bounds)[RATE]
    return sound, loud(sound)


def about(spans, *expected):
    return [each for span in spans for each in span] == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "avi"])  # whose muxer keeps no such time
def test_a_sound_that_begins_late_has_silence_before_it(tmp_path, form):
    make(tmp_path / f"late.{form}", picture=6, sound=3, late=3)
    sound, spans = heard(tmp_path / f"late.{form}")
    assert len(sound) / RATE == pytest.approx(6, abs=0.1)
    assert about(spans, 3, 6)
    assert sound.facts["silent"] == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_that_ends_early_has_silence_after_it(tmp_path, form):
    make(tmp_path / f"early.{form}", picture=6, sound=3)
    sound, spans = heard(tmp_path / f"early.{form}")
    assert len(sound) / RATE == pytest.approx(6, abs=0.1)
    assert about(spans, 0, 3)


@pytest.mark.parametrize("form", FORMS)
def test_what_has_no_hole_is_decoded_as_it_is(tmp_path, form):
    make(tmp_path / f"full.{form}", picture=6, sound=6)
    sound, spans = heard(tmp_path / f"full.{form}")
    with av.open(str(tmp_path / f"full.{form}")) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert len(sound) == samples
    assert "silent" not in sound.facts
    assert about(spans, 0, 6)


@pytest.mark.parametrize("form", ["mkv", "webm", "ts", "mpg", "flv", "wmv", "ogv"])
def test_a_hole_stays_a_hole(tmp_path, form):
    make(tmp_path / f"full.{form}", picture=6, sound=6)
    drop = "noise=drop='between((pts-startpts)*tb,2,4)'"
    ffmpeg("-i", tmp_path / f"full.{form}", "-c", "copy", "-bsf:a", drop, tmp_path / f"hole.{form}")
    sound, spans = heard(tmp_path / f"hole.{form}")
    wanted = ffmpeg(
        "-i", tmp_path / f"hole.{form}", "-vn", "-ac", "1", "-ar", RATE, "-af", "aresample=async=1:first_pts=0",
        "-f", "f32le", "-",
    )  # fmt: skip
    assert len(sound) == pytest.approx(len(wanted) // 4, abs=0.1 * RATE)
    assert len(spans) == 2
    assert about(spans, *(edge for span in loud(np.frombuffer(wanted, np.float32)) for edge in span))
    assert sound.facts["silent"] == pytest.approx(2, abs=0.1)


def test_a_hole_in_an_mp4_is_no_missing_half(tmp_path):
    """Its header counts the hole's seconds too."""
    make(tmp_path / "full.mp4", picture=6, sound=6)
    drop = "noise=drop='between(pts*tb,2,4)'"
    ffmpeg("-i", tmp_path / "full.mp4", "-c", "copy", "-bsf:a", drop, tmp_path / "hole.mp4")
    sound, _ = heard(tmp_path / "hole.mp4")
    assert len(sound) / RATE == pytest.approx(6, abs=0.1)


def test_a_late_sound_that_is_cut_is_still_truncated(tmp_path):
    make(tmp_path / "late.mov", picture=6, sound=3, late=3)
    ffmpeg("-i", tmp_path / "late.mov", "-c", "copy", "-movflags", "faststart", tmp_path / "front.mov")
    data = (tmp_path / "front.mov").read_bytes()
    (tmp_path / "cut.mov").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(MediaError) as error:
        heard(tmp_path / "cut.mov")
    assert error.value.code == "truncated"


@pytest.mark.parametrize("parts", [(6, 6), (6, 2), (2, 6, 2)])
def test_joined_broadcasts_have_clocks_of_their_own(tmp_path, parts):
    """A clock that goes back, or far ahead, is no hole."""
    joined = b""
    for number, seconds in enumerate(parts):
        make(tmp_path / f"{number}.ts", picture=seconds, sound=seconds)
        joined += (tmp_path / f"{number}.ts").read_bytes()
    (tmp_path / "joined.ts").write_bytes(joined)
    sound, spans = heard(tmp_path / "joined.ts")
    assert len(sound) / RATE == pytest.approx(sum(parts), abs=0.3)
    assert about(spans, 0, sum(parts))


def test_a_sound_without_a_picture_is_as_long_as_it_is(tmp_path):
    """A cover picture is none."""
    make(tmp_path / "film.mp4", picture=1, sound=3)
    ffmpeg("-i", tmp_path / "film.mp4", "-vn", tmp_path / "sound.mp3")
    ffmpeg("-i", tmp_path / "film.mp4", "-frames:v", "1", tmp_path / "cover.jpg")
    ffmpeg(
        "-i", tmp_path / "sound.mp3", "-i", tmp_path / "cover.jpg", "-map", "0", "-map", "1", "-c", "copy",
        "-disposition:1", "attached_pic", tmp_path / "covered.mp3",
    )  # fmt: skip
    plain, covered = (heard(tmp_path / name)[0] for name in ("sound.mp3", "covered.mp3"))
    assert len(plain) == len(covered) == pytest.approx(3 * RATE, abs=0.1 * RATE)


@pytest.mark.parametrize("form", ["mkv", "ts", "mp4"])
def test_a_part_of_a_hole_is_silent(tmp_path, form):
    make(tmp_path / f"full.{form}", picture=6, sound=6)
    drop = "noise=drop='between((pts-startpts)*tb,2,4)'"
    ffmpeg("-i", tmp_path / f"full.{form}", "-c", "copy", "-bsf:a", drop, tmp_path / f"hole.{form}")
    sound, spans = heard(tmp_path / f"hole.{form}", 1.0, 5.0)
    assert len(sound) == pytest.approx(4 * RATE, abs=100)
    assert about(spans, 0, 1, 3, 4)
    sound, spans = heard(tmp_path / f"hole.{form}", 2.5, 3.5)
    assert (len(sound), spans, sound.facts["silent"]) == (RATE, [], 1.0)
