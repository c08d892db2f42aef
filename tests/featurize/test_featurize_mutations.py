"""Hostile media: hundreds of damaged files, absurd headers, wrong extensions. Each is featurized or says why not."""

import collections
import json
import os
import random
import resource
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import soundfile
import yaml
from PIL import Image

from featurize.media import MediaError, read_audio, read_image, read_video
from featurize.sources.kinds import guess_kind
from store import ColumnReader, Corpus, Storage, column_stats, list_columns

REPO = Path(__file__).parents[2]
RATE = 48_000
LIMIT = 2 << 30  # bytes
VIDEOS = {
    "h264.mp4": ("libx264", "yuv420p", "aac"),
    "h264.mkv": ("libx264", "yuv420p", None),
    "hevc.mp4": ("libx265", "yuv420p", None),
    "vp9.webm": ("libvpx-vp9", "yuv420p", None),
    "vp8.webm": ("libvpx", "yuv420p", None),
    "mpeg4.avi": ("mpeg4", "yuv420p", None),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", None),
    "mjpeg.mov": ("mjpeg", "yuvj420p", None),
    "flash.flv": ("flv", "yuv420p", None),
    "windows.wmv": ("wmv2", "yuv420p", None),
    "moving.gif": ("gif", "rgb8", None),
}
SOUNDS = {"float.wav": "pcm_f32le", "short.mp3": "libmp3lame", "short.flac": "flac", "short.opus": "libopus"}
STILLS = {
    "rgb.png": ("RGB", {}), "palette.png": ("P", {}), "alpha.png": ("RGBA", {}), "grey16.png": ("I;16", {}),
    "rgb.jpg": ("RGB", {}), "cmyk.jpg": ("CMYK", {}), "rgb.webp": ("RGB", {}), "rgb.bmp": ("RGB", {}),
    "lzw.tif": ("RGB", {"compression": "tiff_lzw"}), "jpeg.tif": ("RGB", {"compression": "jpeg"}),
}  # fmt: skip


def write_sound(container, stream, seconds):
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)
    frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
    frame.rate, frame.pts = RATE, 0
    resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=RATE)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        if part is not None:
            container.mux(stream.encode(part))
    container.mux(stream.encode())


def write_video(path, encoder, form, sound):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=10, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, form
        heard = container.add_stream(sound, rate=RATE, layout="mono") if sound else None
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, number, 1), format="rgb24").reformat(format=form)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if heard:
            write_sound(container, heard, 1.2)


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory):
    """Undamaged files of many forms."""
    folder = tmp_path_factory.mktemp("whole")
    for name, words in VIDEOS.items():
        write_video(folder / name, *words)
    for name, encoder in SOUNDS.items():
        with av.open(str(folder / name), "w") as container:
            write_sound(container, container.add_stream(encoder, rate=RATE, layout="mono"), 0.5)
    shades = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    for name, (mode, words) in STILLS.items():
        deep = Image.fromarray(shades[..., 0].astype(np.uint16) * 257)
        image = deep if mode == "I;16" else Image.fromarray(shades).convert(mode)
        image.save(folder / name, **words)
    return folder


def mutated(data, rng):
    """A damaged copy: flipped bits, another header, cut, blanked, filled, lengthened."""
    data, size = bytearray(data), len(data)
    at = rng.randrange(size)
    match rng.randrange(6):
        case 0:
            for _ in range(rng.choice([1, 3, 30, 300])):
                data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        case 1:
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(min(size, 1024))] = rng.randrange(256)
        case 2:
            del data[at:]
        case 3:
            data[at : at + 500] = bytes(len(data[at : at + 500]))
        case 4:
            at = rng.randrange(min(size, 1024))
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x01\x86\xa0"])
        case 5:
            data[at:at] = rng.randbytes(rng.randrange(1, 300))
    return bytes(data)


def absurd(folder, whole):
    """Headers that promise the impossible; the code that each must end with."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    side = 100_000
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(side))) + chunk(b"IEND", b"")
    bmp = bytearray((whole / "rgb.bmp").read_bytes())
    bmp[18:26] = struct.pack("<ii", side, side)
    jpeg = bytearray((whole / "rgb.jpg").read_bytes())
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    gif = bytearray((whole / "moving.gif").read_bytes())
    gif[6:10] = struct.pack("<HH", 9000, 9000)
    size = b"\xff\xc0\x00\x11\x08"  # the container still says 64 x 48: sizes also change in mid-stream
    mjpeg = (whole / "mjpeg.mov").read_bytes().replace(size + struct.pack(">HH", 48, 64), size + b"\x23\x28\x23\x28")
    flac = bytearray((whole / "short.flac").read_bytes())
    flac[18:21] = (16 << 4 | flac[20] & 0x0F).to_bytes(3, "big")  # 16 Hz ...
    flac[21:26] = bytes([flac[21] | 0x0F, 255, 255, 255, 255])  # ... and 2 ** 36 samples: a million hours
    files = {
        "absurd.png": (png, "too_large"),
        "absurd.bmp": (bmp, "too_large"),
        "absurd.jpg": (jpeg, "too_large"),
        "absurd.gif": (gif, "too_large"),
        "absurd.mov": (mjpeg, "unreadable"),
        "absurd.flac": (flac, "too_large"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(bytes(data))
    return {name: code for name, (_, code) in files.items()}


READS = {
    "video": lambda path: read_video(path, [32], 4),
    "image": lambda path: read_image(path, [32]),
    "audio": lambda path: read_audio(path, [48_000, 16_000], 3600),
}


def test_whole_files_can_be_read(sound_files):
    """Without this, all the others could pass by reading nothing."""
    for path in sound_files.iterdir():
        READS[guess_kind(path.name)](str(path))


def test_absurd_headers_have_reasons_and_cost_no_memory(sound_files, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, code in absurd(tmp_path, sound_files).items():
        with pytest.raises(MediaError) as error:
            READS[guess_kind(name)](str(tmp_path / name))
        assert (name, error.value.code) == (name, code)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("sample", [np.nan, np.inf, 1e30])
def test_samples_beyond_all_measure_are_refused(tmp_path, sample):
    """A float WAV can hold any number; one that is none would end the run in the encoder."""
    samples = np.zeros(RATE, np.float32)
    samples[100] = sample
    soundfile.write(tmp_path / "odd.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(MediaError, match="invalid samples") as error:
        READS["audio"](str(tmp_path / "odd.wav"))
    assert error.value.code == "unreadable"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_file_is_frames_or_a_media_error_and_nothing_else(sound_files, tmp_path):
    """Any other exception would end a run of a week at its first bad file."""
    rng = random.Random(0)
    files = sorted(sound_files.iterdir())
    outcomes, reasons = collections.Counter(), set()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(600):
        path = rng.choice(files)
        damaged = tmp_path / f"damaged{rng.choice(files).suffix if rng.random() < 0.1 else path.suffix}"
        damaged.write_bytes(mutated(path.read_bytes(), rng))
        for read in READS.values():
            try:
                read(str(damaged))
                outcomes["read"] += 1
            except MediaError as error:
                outcomes[error.code] += 1
                reasons.add(error.reason)
    assert outcomes["read"] > 200
    assert outcomes["unreadable"] > 200
    for reason in reasons:
        assert reason.strip()
        assert len(reason.splitlines()) == 1
        assert " at 0x" not in reason, "the same file must give the same bytes in every run"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_run_over_300_damaged_files_accounts_for_each(python, sound_files, tmp_path):
    """The whole of it: real workers, real encoders; the counts add up, memory is bounded, and the run ends well."""
    folder = tmp_path / "files"
    folder.mkdir()
    codes = absurd(folder, sound_files)
    rng = random.Random(1)
    files = sorted(sound_files.iterdir())
    for number in range(20):
        path, other = rng.sample(files, 2)
        (folder / f"wrong-{number}{other.suffix}").write_bytes(path.read_bytes())
    for number in range(300 - 20 - len(codes)):
        path = files[number % len(files)]
        (folder / f"bad-{number}{path.suffix}").write_bytes(mutated(path.read_bytes(), rng))
    columns = [
        {"encoder": "clip:ViT-S-32/random", "layer": 1, "frames": [2], "batch": 8},
        {"encoder": "clap:HTSAT-tiny/random", "segments": [1], "batch": 4},
    ]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"columns": columns, "workers": 1}))
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"path": str(p)}) + "\n" for p in sorted(folder.iterdir())))
    store = tmp_path / "store"
    plan = python("featurize", "plan", tmp_path / "list.jsonl", "--store", store, "--shard-size", 50)
    assert plan.returncode == 0, plan.stderr
    code, peaks, output = watched(["featurize", "run", "--store", store, "--config", tmp_path / "config.yaml"])
    assert code == 0, output
    worker = max(peaks.values())
    print(output, f"peak of the largest process: {worker >> 20} MiB")
    assert (200 << 20) < worker < LIMIT, peaks

    storage = Storage(store)
    corpus = Corpus.load(storage)
    assert len(corpus) == 300
    keys = {Path(item.uri).name: item.key for item in corpus.items}
    for column in list_columns(storage):
        reader, stats = ColumnReader(column), column_stats(column, corpus)
        assert set(reader.keys()) | set(reader.failed) == {item.key for item in corpus.items}
        assert stats.usable + len(stats.failures) == 300
        assert stats.usable > 20
        assert all(failure.reason for failure in stats.failures)
        for name, expected in codes.items():
            if guess_kind(name) != ("audio" if column.spec.modality == "visual" else "image"):
                assert reader.failed[keys[name]].code in (expected, "absent")
    assert python("store", "verify", store).returncode == 0


def watched(words):
    """Run `python -m ...`; its exit code, the peak memory of each process below it in bytes, and what it said."""
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, words)], cwd=REPO, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    peaks = {}
    thread = threading.Thread(target=_watch, args=(process, peaks))
    thread.start()
    output, _ = process.communicate(timeout=600)
    thread.join()
    return process.returncode, peaks, output


def _watch(process, peaks):
    """The kernel keeps each process's high-water mark, so that a short peak between two looks counts too."""
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            for child in parent.children(recursive=True):
                status = Path(f"/proc/{child.pid}/status").read_text()
                peaks[child.pid] = int(status.split("VmHWM:")[1].split()[0]) << 10
        except (OSError, IndexError, psutil.NoSuchProcess):
            pass  # it has just ended
        time.sleep(0.2)
