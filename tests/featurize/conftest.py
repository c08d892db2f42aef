"""Films whose frames carry their own number, so that the frames that were taken can be read off."""

import fcntl
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from featurize.media import read_video

WIDTH, HEIGHT, BITS = 128, 64, 8
QUIET = {"libx265": {"x265-params": "log-level=none"}}
PLAIN = {"aac": {"aac_pns": "0"}}  # else the decoder makes up noise, another one after a seek


def stripes(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A number as eight black and white stripes, the lowest bit on the left."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8) * 255
    return np.ascontiguousarray(np.broadcast_to(np.repeat(bits, width // BITS)[None, :, None], (height, width, 3)))


def number_of(pixels: np.ndarray) -> int:
    """The number on a square picture of stripes."""
    side = len(pixels)
    middles = pixels[side // 2, side // BITS // 2 :: side // BITS].mean(1)
    return sum(1 << bit for bit, shade in enumerate(middles) if shade > 127)


def write(
    path: Path,
    encoder: str = "libx264",
    count: int = 150,
    gop: int = 250,
    sound: str = "",
    seconds: float = 6.0,
    container: dict[str, str] | None = None,
    **options: str,
) -> None:
    """A film of 25 frames a second, each with its number; with `seconds` of sound, or without."""
    with av.open(str(path), "w", options=container or {}) as film:
        stream = film.add_stream(encoder, rate=25, options=QUIET.get(encoder, {}) | options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        heard = film.add_stream(sound, rate=48_000, layout="mono", options=PLAIN.get(sound, {})) if sound else None
        if heard:
            heard.bit_rate = 64_000
        for number in range(count):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(stripes(number), format="rgb24")))
        film.mux(stream.encode())
        if heard:
            write_tone(film, heard, seconds)


def write_sound(path: Path, codec: str, seconds: float) -> None:
    """A file of sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono", options=PLAIN.get(codec, {}))
        write_tone(container, stream, seconds)


def write_tone(container: Any, stream: Any, seconds: float, loudness: float = 0.3) -> None:
    """Encode noise and a tone into a stream of sound."""
    wave = np.sin(2 * np.pi * 440 * np.arange(int(seconds * stream.rate)) / stream.rate)
    wave = loudness * (wave + np.random.default_rng(0).uniform(-1, 1, len(wave)))
    frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
    frame.rate, frame.pts = stream.rate, 0
    resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=stream.rate)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(part))
    container.mux(stream.encode())


def remux(source: Path, target: Path, change: Callable[[int, Any], Any], **options: str) -> None:
    """Copy the packets of a film; `change` gets each with its number and gives another, or None to leave it out."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            changed = change(number, packet) if packet.size else None
            if changed is not None:
                changed.stream = stream
                new.mux(changed)


def with_bytes(packet: Any, data: bytes) -> Any:
    """A packet like another one, with other bytes."""
    new = av.Packet(data)
    for name in ("pts", "dts", "time_base", "duration", "is_keyframe"):
        setattr(new, name, getattr(packet, name))
    return new


def numbers(path: Path, count: int) -> list[int]:
    """The numbers of the frames on the grid of `count`."""
    frames = read_video(str(path), [64], count)
    return [number_of(frames.pixels[64][row]) for row in frames.index]


def grid(shown: Iterable[int], count: int) -> list[int]:
    """What `numbers` is to give where decoding shows these."""
    shown = list(shown)
    return [shown[place * len(shown) // count] for place in range(count)]


@pytest.fixture(scope="session")
def films() -> SimpleNamespace:
    """The functions of this file."""
    functions = (write, write_sound, write_tone, number_of, stripes, remux, with_bytes, numbers, grid)
    return SimpleNamespace(**{function.__name__: function for function in functions})


@pytest.fixture
def only_cluster(tmp_path_factory, worker_id):
    """Ray refuses to start a cluster beside another: tests that start one take turns, in whichever process they run."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with open(shared / "cluster.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
