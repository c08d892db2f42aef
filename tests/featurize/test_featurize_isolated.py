"""Decoding in a child process: crashes, hangs and hunger there are records, and good files come out the same."""

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from featurize.encoders import build_encoder
from featurize.media import Isolated, MediaError, read_audio, read_video, sound
from featurize.prepare import decoded
from featurize.settings import ClapSettings, ClipSettings
from featurize.shard_job import encode_shard
from store import Candidate, Corpus, MediaItem, Storage, create_column

REPO = Path(__file__).parents[2]

CRASHING = """
import ctypes
from fsspec.implementations.local import LocalFileSystem


class CrashingFileSystem(LocalFileSystem):
    protocol = "crash"

    def info(self, path, **words):
        ctypes.string_at(0)
"""


@pytest.fixture
def crash_urls(tmp_path, monkeypatch):
    """`crash://` URLs, by an installed fsspec entry point: whoever reads one dies of SIGSEGV."""
    package = tmp_path / "installed"
    facts = package / "crashing-1.0.dist-info"
    facts.mkdir(parents=True)
    (package / "crashing.py").write_text(CRASHING)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: crashing\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[fsspec.specs]\ncrash = crashing.CrashingFileSystem\n")
    monkeypatch.setattr(sys, "path", [str(package), *sys.path])


@pytest.mark.parametrize(
    ("function", "words", "code", "reason"),
    [
        (ctypes.string_at, (0,), "unreadable", "the decoder crashed (SIGSEGV)"),
        (os.abort, (), "unreadable", "the decoder crashed (SIGABRT)"),
        (signal.raise_signal, (signal.SIGKILL,), "too_large", "the decoder was killed (SIGKILL)"),
        (bytearray, (1 << 40,), "too_large", "decoding takes more than 512 MiB of memory"),
        (time.sleep, (60,), "unreadable", "decoding took more than 5 s"),
    ],
)
def test_what_kills_a_child_is_a_reason_and_the_next_call_works(function, words, code, reason):
    """A real segmentation fault, abort, kill, allocation and hang."""
    with Isolated(memory=512 << 20, seconds=5) as isolated:
        with pytest.raises(MediaError, match="decod") as error:
            isolated(function, *words)
        assert error.value.code == code
        assert error.value.reason.startswith(reason)
        assert isolated(abs, -3) == 3


HANGING = """
import time
from types import SimpleNamespace

import featurize.prepare
from store import MediaItem

featurize.prepare.CALL_SECONDS = 2
items = [MediaItem(key=key, uri=f"/{key}.mp4", kind="video", shard=0, position=0, bytes=None) for key in "abc"]
hanging = SimpleNamespace(size=0, rate=0, prepare=lambda item, media: time.sleep(60 * (item.key == "b")))
for item, _ in featurize.prepare.decoded(items, [hanging], threads=2):
    print(item.key, flush=True)
"""


def test_a_hang_in_a_thread_ends_its_process():
    """No thread can be ended: the run takes the process for a lost worker, and in the end decodes with care."""
    words = [sys.executable, "-c", HANGING]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, timeout=50, check=False)
    told = "/b.mp4: decoding took more than 2 s; the worker ends, and a run tries its shard again\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "a\n", told)


INTERRUPTED = """
import time
from featurize.media import Isolated

if __name__ == "__main__":
    with Isolated() as isolated:
        assert isolated(abs, -3) == 3
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print(isolated(abs, -4), flush=True)
"""


def test_a_ctrl_c_in_a_terminal_is_not_for_the_decoder(tmp_path):
    """The terminal sends it to all of the group: the decoder's traceback would be written over a prompt."""
    (tmp_path / "script.py").write_text(INTERRUPTED)
    words = [sys.executable, tmp_path / "script.py"]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment, start_new_session=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        out, said = process.communicate(timeout=50)
    assert (process.returncode, out, said) == (0, "4\n", "")


def test_a_timeout_of_the_work_itself_is_no_hang():
    def prepare(item, media):
        raise TimeoutError("of the work")

    item = MediaItem(key="a", uri="", kind="video", shard=0, position=0, bytes=None)
    with pytest.raises(TimeoutError, match="of the work"):
        list(decoded([item], [SimpleNamespace(size=0, rate=0, prepare=prepare)], threads=1))


def test_a_child_that_is_told_to_end_is_no_fault_of_the_file():
    """A cluster that stops its jobs must not leave records about good files."""
    with Isolated() as isolated, pytest.raises(RuntimeError, match="exit code -15"):
        isolated(signal.raise_signal, signal.SIGTERM)


def test_bugs_come_out_as_they_are():
    with Isolated() as isolated, pytest.raises(ZeroDivisionError):
        isolated(divmod, 1, 0)


def test_a_child_gives_what_we_would_have_decoded(media, monkeypatch, tmp_path):
    """Also a sound too long for memory, which goes over as a file."""
    clip = str(media / "red-loud.mp4")
    with Isolated() as isolated:
        theirs, ours = isolated(read_video, clip, [32, 48], 8), read_video(clip, [32, 48], 8)
        assert (theirs.times, theirs.index.tolist()) == (ours.times, ours.index.tolist())
        for size in (32, 48):
            np.testing.assert_array_equal(theirs.pixels[size], ours.pixels[size])
        theirs, ours = isolated(read_audio, clip, [48_000, 16_000], 60), read_audio(clip, [48_000, 16_000], 60)
        assert theirs[48_000].rate == 48_000
        for rate, heard in ours.items():
            np.testing.assert_array_equal(theirs[rate][:], heard[:])
            np.testing.assert_array_equal(theirs[rate][1000:2000], heard[:][1000:2000])
        with pytest.raises(MediaError) as error:
            isolated(read_video, str(tmp_path / "gone.mp4"), [32], 4)
        assert (error.value.code, error.value.reason) == ("missing", f"no such file: {tmp_path / 'gone.mp4'}")


def test_a_crashing_file_is_a_record_and_the_rest_of_its_shard_has_the_usual_bytes(
    media, bad_media, tmp_path, crash_urls
):
    """A shard that lost its worker is encoded carefully: all but the culprit must come out as ever."""
    encoders = [
        build_encoder(ClipSettings(encoder="clip:ViT-S-32/random", layer=1, frames=(2,), batch=3)),
        build_encoder(ClapSettings(encoder="clap:HTSAT-tiny/random", segments=(1,))),
    ]
    good = [(p, "video") for p in ("red-loud.mp4", "silent.mp4")] + [("blue.png", "image"), ("low.wav", "audio")]
    candidates = [Candidate(name, str(media / name), kind) for name, kind in good]
    candidates.insert(1, Candidate("text.mp4", str(bad_media / "text.mp4"), "video"))
    storage, corpus = Storage(tmp_path / "store"), Corpus()
    corpus.append(candidates, shard_size=10)
    columns = [create_column(storage, encoder.spec, {}) for encoder in encoders]
    encode_shard(corpus.items, encoders, columns, 2)
    usual = _shas(tmp_path / "store")
    encode_shard(corpus.items, encoders, columns, 2, careful=True)
    assert _shas(tmp_path / "store") == usual
    assert len(usual) == 6

    worse = Corpus()
    worse.append([*candidates[:2], Candidate("evil.mp4", "crash:///evil.mp4", "video"), *candidates[2:]], shard_size=10)
    report = encode_shard(worse.items, encoders, columns, 2, careful=True)
    for failures in report.failures.values():
        found = {failure.key: failure for failure in failures}
        assert found["evil-mp4"].code == "unreadable"
        assert found["evil-mp4"].reason == "the decoder crashed (SIGSEGV)"
    tars = {name: sha for name, sha in usual.items() if name.endswith(".tar")}
    assert tars.items() <= _shas(tmp_path / "store").items()


def test_a_sound_beyond_memory_waits_on_disk_and_reads_the_same(monkeypatch):
    samples = np.arange(100_000, dtype=np.float32)
    monkeypatch.setattr(sound, "IN_MEMORY", 1000)
    kept = sound.Sound(48_000)
    for start in range(0, len(samples), 7777):
        kept.append(samples[start : start + 7777])
    assert kept._file._rolled
    assert len(kept) == len(samples)
    for a, b in ((0, 10), (99_990, 200_000), (5, 5), (50_000, 60_001), (70, 60)):
        np.testing.assert_array_equal(kept[a:b], samples[a:b])


def _shas(folder):
    files = sorted(p for p in (folder / "columns").rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
