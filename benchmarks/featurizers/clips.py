"""Clips for the benchmark: H.264 with AAC and VP9 with Opus, about 10 s each, with motion, noise and sound."""

import os
import subprocess
from pathlib import Path

import imageio_ffmpeg

from store.publish import publishing

CLIPS = 28  # distinct films; further clips are the same files under other names
SIZES = ((320, 240), (426, 240), (480, 270), (640, 360))
WEBM = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "600k", "-c:a", "libopus")
MP4 = ("-c:v", "libx264", "-c:a", "aac", "-movflags", "+faststart")  # x264's own defaults


def clips(folder: Path, count: int) -> Path:
    """A folder of `count` clips, made at the first call; they repeat `CLIPS` films under other names."""
    made = [_made(folder / "made", number) for number in range(min(count, CLIPS))]
    named = folder / str(count)
    named.mkdir(exist_ok=True)
    for number in range(count):
        clip = made[number % CLIPS]
        link = named / f"clip-{number:04d}{clip.suffix}"
        if not link.exists():
            os.link(clip, link)
    return named


def bad_files(folder: Path) -> dict[str, Path]:
    """Three bad files that should not cost a run its good ones: an empty one, a film cut short, and a text."""
    whole = _made(folder / "made", 0).read_bytes()
    contents = {"empty": b"", "cut in the middle": whole[: len(whole) // 2], "text": b"This is no film.\n" * 100}
    (folder / "bad").mkdir(exist_ok=True)
    paths = {what: folder / "bad" / f"{what.replace(' ', '-')}.mp4" for what in contents}
    for what, path in paths.items():
        path.write_bytes(contents[what])
    return paths


def _made(folder: Path, number: int) -> Path:
    """The film of that number, made if it does not exist; 6 of 28 are VP9, spread evenly."""
    vp9 = number % 14 in (3, 7, 11)
    path = folder / f"film-{number:02d}{'.webm' if vp9 else '.mp4'}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        width, height = SIZES[number % len(SIZES)]
        source = f"{('testsrc2', 'mandelbrot')[number % 2]}=size={width}x{height}:rate={(25, 30)[number % 3 == 0]}"
        sound = f"anoisesrc=color=pink:amplitude=0.3:sample_rate=44100:seed={number}"
        words = ["-f", "lavfi", "-i", source, "-f", "lavfi", "-i", sound, "-t", str(9 + number % 3)]
        words += ["-vf", "noise=alls=6:allf=t", "-pix_fmt", "yuv420p", *(WEBM if vp9 else MP4)]
        with publishing(path) as temporary:
            call = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *words, str(temporary)]
            subprocess.run(call, check=True)
    return path
