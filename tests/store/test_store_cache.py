"""The cache of remote shards: fetched once, bounded, never another shard's bytes."""

import mmap
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import store.cache
from store import ColumnReader, DamagedError, UserError
from store.cache import cached

ROOT = Path(__file__).parents[2]


@pytest.fixture
def remote(s3, build_store):
    """Six shards of one item each on S3."""
    return build_store(f"{s3}/{os.urandom(8).hex()}/store", items=6, shard_size=1)


def get(remote, shard):
    sidecar = remote.column.sidecar(shard)
    return Path(cached(remote.column, shard, sidecar.tar_bytes, sidecar.tar_xxh3))


def copies(cache):
    return {path.name for path in (cache / "shards").iterdir() if path.suffix != ".lock"}


def lose(remote, shard):
    """Remove the tar from the remote store: who still gets it has it from the cache."""
    remote.storage.remove(remote.column.path(f"{shard:06d}.tar"))


def test_a_shard_is_fetched_once_and_is_the_one_that_was_written(remote, cache):
    """The second reader needs no network; the copy is named by its bytes, so stores share it and never confuse it."""
    path = get(remote, 0)
    assert path.read_bytes() == remote.storage.read(remote.column.path("000000.tar"))
    assert copies(cache) == {f"{remote.column.sidecar(0).tar_xxh3}.tar"}
    lose(remote, 0)
    assert get(remote, 0) == path
    assert np.array_equal(ColumnReader(remote.column).read("clip-0")["spatial.t4"], remote.arrays(0)["spatial.t4"])
    lose(remote, 1)
    with pytest.raises(DamagedError, match=r"000001\.tar: no such file"):
        get(remote, 1)


def test_a_shard_that_was_written_again_is_another_copy(remote, cache):
    """A column mended with --retry must not be read from a copy of what it was."""
    before = get(remote, 0).read_bytes()
    remote.column.withdraw(5)  # it holds the same item
    remote.fill(remote.column, 0, ["clip-5"])
    assert get(remote, 0).read_bytes() != before
    assert ColumnReader(remote.column).read("clip-5")["temporal"].shape == (1, 4)
    assert len(copies(cache)) == 2


def test_what_arrives_damaged_is_not_kept(remote, cache):
    """Else a copy would stay wrong when the store has long been repaired."""
    name = remote.column.path("000000.tar")
    good = remote.storage.read(name)
    for bad in (good[:-1], good[:700] + b"?" + good[701:]):
        remote.storage.write(name, bad)
        with pytest.raises(DamagedError, match=r"000000\.tar: differs from its sidecar"):
            get(remote, 0)
        assert copies(cache) == set()
    remote.storage.write(name, good)
    get(remote, 0)


def test_a_copy_that_was_cut_is_fetched_again(remote):
    path = get(remote, 0)
    good = path.read_bytes()
    path.write_bytes(good[:100])
    assert get(remote, 0).read_bytes() == good


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def test_the_bound_holds_and_the_least_recently_used_goes_first(remote, cache, monkeypatch):
    """A store of terabytes must not fill a node's disk, and what is in use must not be fetched again and again."""
    size = remote.column.sidecar(0).tar_bytes
    monkeypatch.setenv("AVLLM_CACHE_GB", str(3.5 * size / 1e9))
    paths = [get(remote, shard) for shard in range(3)]
    for path, seconds in zip(paths, (30, 20, 40), strict=True):
        age(path, seconds)
    get(remote, 0)  # used again
    for shard, gone in ((3, 2), (4, 1)):
        age(get(remote, shard), 10)
        assert not paths[gone].exists()
        assert len(copies(cache)) == 3
    assert paths[0].exists()


def test_a_shard_in_use_outlives_its_copy(remote, monkeypatch):
    """A mapped shard stays readable when its copy is removed, and what was just handed out is not removed at all."""
    size = remote.column.sidecar(0).tar_bytes
    monkeypatch.setenv("AVLLM_CACHE_GB", str(1.5 * size / 1e9))
    first = get(remote, 0)
    second = get(remote, 1)
    assert first.exists()  # handed out a moment ago: its caller may not have opened it yet
    with open(first, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    good = bytes(mapped)
    for path in (first, second):
        age(path, 60)
    get(remote, 2)
    assert not first.exists()
    assert not second.exists()
    assert bytes(mapped) == good
    reader = ColumnReader(remote.column)
    for number in (0, 1, 2, 4, 5):
        for path in (first.parent).glob("*.tar"):
            age(path, 60)
        assert np.array_equal(reader.read(f"clip-{number}")["temporal"], remote.arrays(number)["temporal"])
    for number in (0, 1, 2, 4, 5):
        assert np.array_equal(reader.read(f"clip-{number}")["temporal"], remote.arrays(number)["temporal"])


def test_half_a_copy_of_a_killed_process_is_cleared(remote, cache, monkeypatch):
    size = remote.column.sidecar(0).tar_bytes
    monkeypatch.setenv("AVLLM_CACHE_GB", str(1.5 * size / 1e9))
    (cache / "shards").mkdir(parents=True)
    half = cache / "shards" / "feed.part"
    half.write_bytes(b"x" * size)
    get(remote, 0)
    assert copies(cache) == {f"{remote.column.sidecar(0).tar_xxh3}.tar"}


READER = """
import pathlib, sys, time
from store import ColumnReader, Storage, open_column

url, start = sys.argv[1:]
column = open_column(Storage(url), "toy-l-14")
fetch = column.storage.fetch

def slowly(name, path):
    print(name, flush=True)
    time.sleep(0.5)
    fetch(name, path)

column.storage.fetch = slowly
reader = ColumnReader(column)
while not pathlib.Path(start).exists():
    time.sleep(0.01)
for key in ("clip-0", "clip-1"):
    reader.read(key)
"""


def test_many_processes_fetch_a_shard_once(remote, tmp_path):
    """The loader workers of a node start on the same shards; else each would download them all."""
    words = [sys.executable, "-c", READER, remote.storage.url, str(tmp_path / "start")]
    workers = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    time.sleep(3)
    (tmp_path / "start").touch()
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sorted("".join(said).split()) == [remote.column.path(f"00000{n}.tar") for n in (0, 1)]


def test_many_threads_under_a_tight_bound_read_right(remote, monkeypatch):
    """Threads that push each other's copies out still read what was written."""
    monkeypatch.setattr(store.cache, "HANDED_OUT", 0.5)
    monkeypatch.setenv("AVLLM_CACHE_GB", str(1.5 * remote.column.sidecar(0).tar_bytes / 1e9))
    wrong = []

    def read(seed):
        for number in np.random.default_rng(seed).permutation([0, 1, 2, 4, 5]):
            found = ColumnReader(remote.column).read(f"clip-{number}")["spatial.t4"]
            if not np.array_equal(found, remote.arrays(number)["spatial.t4"]):
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_process_reads_on(remote):
    """A loader that forks inherits a reader; the parent's connections are of no use to the child."""
    remote.storage.read("corpus.parquet")
    child = os.fork()
    if not child:
        try:
            data = remote.storage.read("corpus.parquet")
            same = np.array_equal(ColumnReader(remote.column).read("clip-4")["temporal"], remote.arrays(4)["temporal"])
            os._exit(0 if data and same else 1)
        except BaseException:
            os._exit(2)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


@pytest.mark.parametrize("value", ["much", "0.000001", "inf"])
def test_a_bound_that_cannot_hold_is_one_line(remote, monkeypatch, value):
    monkeypatch.setenv("AVLLM_CACHE_GB", value)
    with pytest.raises(UserError, match=re.escape(f"AVLLM_CACHE_GB={'1e-06' if value[0] == '0' else value}: ")):
        get(remote, 0)


def test_a_folder_that_cannot_be_written_is_one_line(remote, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AVLLM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        UserError, match=r"shards: the cache cannot be written: Not a directory; make room, or set AVLLM_CACHE"
    ):
        get(remote, 0)
