"""Random films, made by the ffmpeg command, cut, joined and turned by it, and read as it reads them.

FILMS=200 SEED=1 in the environment makes more of them, and others; `pytest -s` shows how many ended how.
"""

import collections
import os
import random
import shlex
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from featurize.media import MediaError, read_video

FILMS, SEED = int(os.environ.get("FILMS", "24")), int(os.environ.get("SEED", "0"))
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SIDE, WIDTH, HEIGHT = 64, 128, 64
ALIKE = 14  # of 255, the mean difference of pictures that are the same: another number differs by 24 or more
X264 = ("bframes=0", "open-gop=1:bframes=3", "tff=1:bframes=2", "b-pyramid=strict:ref=6", "intra-refresh=1", "slices=4")
X265 = ("open-gop=1:bframes=4", "open-gop=0:bframes=4", "bframes=0")
VPX = "-b:v 400k -deadline realtime -cpu-used 8"
ENCODERS = {  # and the options of which each film takes one
    "libx264": [f"-pix_fmt yuv420p -x264-params {words}" for words in X264],
    "libx265": [f"-pix_fmt yuv420p -x265-params log-level=none:{words}" for words in X265],
    "libvpx": [f"{VPX} {words}" for words in ("-auto-alt-ref 1 -lag-in-frames 16", "-auto-alt-ref 0")],
    "libvpx-vp9": [f"-pix_fmt yuv420p {VPX} {words}" for words in ("-auto-alt-ref 6 -lag-in-frames 19", "-row-mt 1")],
    "libaom-av1": [f"-pix_fmt yuv420p -cpu-used 8 {words}" for words in ("-lag-in-frames 19", "-usage realtime")],
    "libsvtav1": ["-pix_fmt yuv420p -preset 12 -svtav1-params enable-overlays=1", "-pix_fmt yuv420p -preset 12"],
    "mpeg4": [f"-q:v 3 {words}" for words in ("-bf 2", "-bf 0", "-flags +ilme+ildct")],
    "mpeg2video": [f"-q:v 3 {words}" for words in ("-bf 2", "-bf 0", "-bf 2 -flags +ilme+ildct")],
    "mpeg1video": ["-q:v 3 -bf 2", "-q:v 3 -bf 0"],
    "dvvideo": ["-s 720x576 -pix_fmt yuv420p"],
    "h263": ["-q:v 3 -s 176x144"],
    "gif": ["", "-gifflags -offsetting"],
    **{name: ["-q:v 3"] for name in ("mjpeg", "libtheora", "wmv1", "wmv2", "msmpeg4", "flv", "libxvid", "rv20")},
    **{name: [""] for name in ("ffv1", "huffyuv", "utvideo", "prores_ks", "qtrle", "png", "apng")},
}
FORMS = {  # endings of names, and the encoders whose films are found in such files
    "mp4": "libx264 libx264 libx265 mpeg4 mpeg2video libvpx-vp9 libaom-av1 libsvtav1 mjpeg",
    "mov": "libx264 libx265 mpeg4 mjpeg prores_ks dvvideo qtrle png",
    "m4v": "libx264 mpeg4",
    "3gp": "h263 mpeg4",
    "mkv": "libx264 libx265 libvpx libvpx-vp9 libaom-av1 mpeg4 mpeg2video mpeg1video mjpeg libtheora ffv1 prores_ks",
    "webm": "libvpx libvpx-vp9 libaom-av1 libsvtav1",
    "avi": "libx264 mpeg4 mpeg2video mjpeg msmpeg4 ffv1 dvvideo libxvid huffyuv utvideo wmv2",
    "flv": "flv libx264 libx265 libvpx-vp9",
    "wmv": "wmv1 wmv2",
    "asf": "msmpeg4 libx264",
    "mxf": "mpeg2video libx264 prores_ks dvvideo",
    "rm": "rv20",
    "gif": "gif",
    "apng": "apng",
    "ivf": "libvpx libvpx-vp9 libaom-av1",
    "obu": "libaom-av1",
    "nut": "libx264 mpeg4 ffv1",
    "ogv": "libtheora",
    "ogg": "libtheora libvpx",
    "wtv": "mpeg2video",
    "ts": "libx264 libx265 mpeg2video mpeg1video mpeg4",
    "m2ts": "libx264",
    "mpg": "mpeg1video mpeg2video",
    "vob": "mpeg2video",
    "h264": "libx264",
    "hevc": "libx265",
    "m1v": "mpeg1video",
    "m2v": "mpeg2video",
    "mjpeg": "mjpeg",
    "dv": "dvvideo",
}
BOXES = ("mp4", "mov", "m4v", "3gp")
PROMISING = (*BOXES, "mkv", "webm", "avi", "flv", "wmv", "asf", "mxf", "rm", "gif", "apng", "ivf", "obu", "ogg", "ogv")
FLOWING = ("ts", "m2ts", "mpg", "vob", "h264", "hevc", "m1v", "m2v", "mjpeg", "dv")  # may begin anywhere
SILENT = ("gif", "apng", "ivf", "obu", "h264", "hevc", "m1v", "m2v", "mjpeg", "dv")
STEADY = (*FLOWING, "avi", "mxf")  # with frames at one rate
RIGID = ("mpeg1video", "mpeg2video", "dvvideo")  # encoders that know one rate
WITHOUT_COPY = ("gif", "apng", "wtv", "rm", "dv", "obu")  # formats that ffmpeg does not copy from or to
TWO_FILMS = ("mp4", "mov", "mkv", "ts", "avi", "asf", "wmv", "nut")
TURNED = ("mp4", "mov", "mkv")
MP4_TOO = ("libx264", "libx265", "mpeg4", "mpeg2video")  # encoders whose films can be copied to MP4


def pictures(first, count):
    """Frames that show their numbers as eight stripes, and below them how they lie."""
    bits = (np.arange(first, first + count)[:, None] >> np.arange(8) & 1) * 255
    frames = np.repeat(np.repeat(bits[:, None], HEIGHT, 1), WIDTH // 8, 2).astype(np.uint8)
    frames[:, HEIGHT * 3 // 4 :] = 128
    frames[:, HEIGHT * 3 // 4 :, : WIDTH // 4] = 20
    return frames.tobytes()


class Maker:
    """Makes one film in a folder, and keeps the commands that made it."""

    def __init__(self, folder, rng, ending, encoder):
        self.folder, self.rng, self.ending, self.encoder = folder, rng, ending, encoder
        self.commands, self.options = [], []
        self.count = rng.randrange(30, 120)

    def ffmpeg(self, *words, data=None, check=True):
        """Run the ffmpeg command, whose last word names what it makes; None if it made nothing."""
        words = shlex.split(" ".join(map(str, words)))
        self.commands.append(shlex.join(["ffmpeg", *words]))
        words = [FFMPEG, "-y", "-hide_banner", "-loglevel", "error", *words]
        run = subprocess.run(words, cwd=self.folder, input=data, capture_output=True, check=False)
        assert not (check and run.returncode), "\n".join([*self.commands, run.stderr.decode()])
        return words[-1] if not run.returncode else None

    def save(self, name, data, command):
        self.commands.append(f"{command} > {name}")
        (self.folder / name).write_bytes(data)
        return name

    def encode(self, stem, first=0, count=None, extra="", like=False, encoder=None):
        """A film of numbered frames; `like` another one, it has its options."""
        rng, ending, encoder = self.rng, self.ending, encoder or self.encoder
        if not like:
            self.options = [rng.choice(ENCODERS[encoder])]
            self.options += [f"-g {rng.choice([1, 12, 30, 250])}"] if encoder != "gif" else []
            if ending not in STEADY and encoder not in RIGID and rng.random() < 0.25:
                self.options.append("-vf setpts=(N+3*floor(N/5))/25/TB -fps_mode vfr")
            flags = ("", "faststart", "frag_keyframe+empty_moov", "dash+global_sidx", "negative_cts_offsets")
            flag = rng.choice(flags) if ending in BOXES else ""
            self.options += [f"-movflags {flag}"] if flag else []
        sound = ending not in SILENT and "-an" not in extra and rng.random() < 0.5
        source = f"-f lavfi -i sine=r=48000:d={rng.choice([1, 3, 6])}" if sound else ""
        source += " -c:a aac" if sound and ending == "3gp" else ""
        words = f"-f rawvideo -pix_fmt gray -s {WIDTH}x{HEIGHT} -r 25 -i - {source} -c:v {encoder}"
        return self.ffmpeg(words, *self.options, extra, f"{stem}.{ending}", data=pictures(first, count or self.count))


def whole(maker, name):
    return name


def half(maker, name):
    data = (maker.folder / name).read_bytes()
    size = int(len(data) * maker.rng.uniform(0.3, 0.9))
    return maker.save(f"half.{maker.ending}", data[:size], f"head -c {size} {name}")


def begun(maker, name):
    data = (maker.folder / name).read_bytes()
    at = int(len(data) * maker.rng.uniform(0.1, 0.7))
    return maker.save(f"begun.{maker.ending}", data[at:], f"tail -c +{at + 1} {name}")


def cut(maker, name):
    rng, seconds = maker.rng, maker.count / 25
    place = f"-ss {rng.uniform(0.05, 0.8) * seconds:.2f}"
    place += f" -t {rng.uniform(0.1, 0.8) * seconds:.2f}" if rng.random() < 0.5 else ""
    place = f"{place} -i {name}" if rng.random() < 0.6 else f"-i {name} {place}"
    times = f"-avoid_negative_ts {rng.choice(['disabled', 'auto', 'make_zero'])} {rng.choice(['', '-copyts'])}"
    return maker.ffmpeg(place, "-map 0 -c copy", times, f"cut.{maker.ending}", check=False) or name


def joined(maker, name):
    other = maker.encode("other", 128)
    data = (maker.folder / name).read_bytes() + (maker.folder / other).read_bytes()
    return maker.save(f"joined.{maker.ending}", data, f"cat {name} {other}")


def listed(maker, name):
    """Joined by ffmpeg, from a list."""
    other = maker.encode("other", 128, extra="-an", like=True)
    plain = maker.ffmpeg("-i", name, "-c copy -an", f"plain.{maker.ending}")
    maker.save("list", f"file {plain}\nfile {other}\n".encode(), f"printf 'file {plain}\\nfile {other}\\n'")
    return maker.ffmpeg("-f concat -safe 0 -i list -c copy", f"joined.{maker.ending}")


def turned(maker, name):
    mirror = maker.rng.choice(["", "-display_hflip", "-display_vflip"])
    return maker.ffmpeg(
        "-display_rotation",
        maker.rng.choice([0, 90, 180, 270]),
        mirror,
        "-i",
        name,
        "-map 0 -c copy",
        f"turned.{maker.ending}",
    )


def two_films(maker, name):
    """Two films, or a film and a thumbnail: which is the first, which the default one?"""
    rng = maker.rng
    if rng.random() < 0.5:
        small = "-s 64x32" if maker.encoder not in ("dvvideo", "h263") and rng.random() < 0.5 else ""
        other = maker.encode("other", 128, extra=f"-an {small}")
    else:
        encoder = "mpeg2video" if maker.ending == "ts" else "mjpeg"
        other = maker.encode("other", 255, 1, "-an -s 256x128", encoder=encoder)
    first, second = rng.sample([name, other], 2)
    defaults = rng.choice(
        ["", *(f"-disposition:v:0 {a} -disposition:v:1 {b}" for a in ("0", "default") for b in ("0", "default"))]
    )
    return maker.ffmpeg("-i", first, "-i", second, "-map 0 -map 1 -c copy", defaults, f"two.{maker.ending}")


def late(maker, name):
    shift = maker.rng.choice(["0.5", "7", "-0.3"])
    return maker.ffmpeg(f"-itsoffset {shift} -i {name} -map 0 -c copy late.{maker.ending}")


def copied(maker, name):
    """In another container."""
    target = maker.rng.choice(["mkv", "nut", *(["mp4", "mov", "ts"] if maker.encoder in MP4_TOO else [])])
    return maker.ffmpeg(f"-fflags +genpts -i {name} -map 0:v -c copy copied.{target}")


EDITS = {  # and the endings of what each is done to
    whole: tuple(FORMS),
    half: tuple(FORMS),
    begun: FLOWING,
    cut: tuple(ending for ending in FORMS if ending not in WITHOUT_COPY),
    joined: tuple(ending for ending in FLOWING if ending != "m2ts"),
    listed: tuple(ending for ending in FORMS if ending not in WITHOUT_COPY),
    turned: TURNED,
    two_films: TWO_FILMS,
    late: tuple(ending for ending in FORMS if ending not in (*SILENT, *WITHOUT_COPY, "mxf")),
    copied: ("mp4", "mov", "mkv", "webm", "avi", "flv", "ts", "nut"),
}


def shown(path):
    """The frames that the ffmpeg command shows, [n, SIDE, SIDE]; and what it says of the film."""
    words = f"-nostdin -hide_banner -threads 1 -i {path.name} -an -fps_mode passthrough"
    words += f" -vf scale={SIDE}:{SIDE}:flags=bicubic -pix_fmt gray -f rawvideo -"
    run = subprocess.run([FFMPEG, *words.split()], cwd=path.parent, capture_output=True, check=False)
    frames = np.frombuffer(run.stdout, np.uint8).reshape(-1, SIDE, SIDE).astype(np.int16)
    video = [line for line in run.stderr.splitlines() if b": Video: " in line]
    return frames, video[0] if video else b""


def expected(path, film, edit, ending, frames, found):
    """How reading the file may end, by how it was made and what ffmpeg shows of it."""
    if edit is half and ending in PROMISING:
        return {"truncated"} if len(frames) < len(shown(film)[0]) else {"truncated", "equal"}
    if edit is begun and b", none" in found:  # PyAV does not open what says only later what it is
        return {"equal", "unreadable"}
    if len(frames):
        return {"equal"}
    if not path.stat().st_size:
        return {"empty"}
    return ({"unreadable"} if found else {"absent", "unreadable"}) | ({"truncated"} if edit is half else set())


def read(path, frames, damaged):
    """How reading a film ends, and why: its grids are equal to those over `frames`, or differ, or the record's code.

    Pictures of which half a packet is left (`damaged`) look different in each version of FFmpeg.
    """
    for count in (2, 8, 32):
        try:
            found = read_video(str(path), [SIDE], count)
        except MediaError as error:
            return error.code, error.reason
        if not len(frames):
            return "read", "ffmpeg shows nothing"
        ours = found.pixels[SIDE].mean(-1)[found.index]
        wanted = [place * len(frames) // count for place in range(count)]
        apart = np.abs(ours - frames[wanted]).mean((1, 2)) * [place not in damaged for place in wanted]
        if (apart > ALIKE).any():
            taken = [int(np.abs(frames - picture).mean((1, 2)).argmin()) for picture in ours]
            return "other frames", f"{taken} were taken, not {wanted}"
    return "equal", ""


@pytest.fixture(scope="module")
def outcomes():
    outcomes = collections.Counter()
    yield outcomes
    print("\n" + "\n".join(f"{count:5} {outcome}" for outcome, count in sorted(outcomes.items())))


def kinds():
    kinds = [(ending, encoder) for ending, encoders in FORMS.items() for encoder in encoders.split()]
    random.Random(SEED).shuffle(kinds)
    return [(number, *kinds[number % len(kinds)]) for number in range(FILMS)]


@pytest.mark.parametrize(("number", "ending", "encoder"), kinds())
def test_films_are_read_as_ffmpeg_reads_them(tmp_path, outcomes, number, ending, encoder):
    rng = random.Random(f"{SEED}-{number}")
    maker = Maker(tmp_path, rng, ending, encoder)
    film = maker.encode("film")
    edit = rng.choice([edit for edit, endings in EDITS.items() if ending in endings])
    path = tmp_path / edit(maker, film)
    frames, found = shown(path)
    accepted = expected(path, tmp_path / film, edit, ending, frames, found)
    last = range(len(frames) - 4, len(frames))  # of these, one is made from half a packet, others lean on it
    outcome, why = read(path, frames, {half: last, begun: [0]}.get(edit, []))
    outcomes[f"{outcome}, as expected" if outcome in accepted else f"{outcome}, expected {sorted(accepted)}"] += 1
    assert outcome in accepted, "\n".join([f"{outcome} ({why}); {len(frames)} frames are shown", *maker.commands])
