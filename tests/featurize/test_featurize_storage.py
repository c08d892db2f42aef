"""`python -m featurize` where the store is on S3, where it was damaged, and where its disk is full."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from featurize.repair import repair
from store import (
    Candidate,
    ColumnReader,
    ColumnSpec,
    Corpus,
    Feature,
    Storage,
    UserError,
    create_column,
    list_columns,
)

REPO = Path(__file__).parents[2]
CONFIG = {"columns": [{"encoder": "clip:ViT-S-32/random", "layer": 1, "frames": [2], "batch": 5}], "workers": 1}
ENDS = ("tar", "json")


@pytest.fixture(scope="module")
def work(tmp_path_factory, media):
    """A configuration, and a list of eight files."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    paths = [str(path) for path in sorted(media.iterdir()) if path.suffix in (".mp4", ".png", ".jpg")]
    (folder / "list.csv").write_text("\n".join(["path", *paths]) + "\n")
    return folder


def plan(work, store):
    return ["featurize", "plan", work / "list.csv", "--store", store, "--shard-size", 1]


def run(work, store):
    return ["featurize", "run", "--store", store, "--config", work / "config.yaml"]


def files_of(url):
    """Every file of the store's columns, with its bytes."""
    storage = Storage(url)
    (column,) = list_columns(storage)
    folder = column.path("")[:-1]
    names = (name for name in storage.names(folder) if not name.startswith("index-"))  # which remote columns have
    return {name: storage.read(f"{folder}/{name}") for name in names}


@pytest.fixture(scope="module")
def whole(python, work):
    """A store on disk."""
    store = work / "whole"
    for command in (plan(work, store), run(work, store)):
        done = python(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return store


def wait_until(true, process):
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.05)


def test_a_store_on_s3_gets_the_same_bytes_also_after_a_kill(python, work, whole, s3, tmp_path):
    """The same commands with another URL; a second driver is refused, and after kill -9 the first's work is kept."""
    url = f"{s3}/featurize/store"
    done = python(*plan(work, url))
    assert done.returncode == 0, done.stderr
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    words = [sys.executable, "-m", *map(str, run(work, url))]
    driver = subprocess.Popen(words, env=env, cwd=REPO, stdout=subprocess.DEVNULL)
    storage = Storage(url)
    wait_until(lambda: storage.names(".lock") == ["00000002.json"], driver)  # the first one was of the plan
    driver.send_signal(signal.SIGSTOP)  # else it may be done before the second one has been refused
    refused = python(*plan(work, url))
    driver.send_signal(signal.SIGCONT)
    wait_until(lambda: any(column.shards() for column in list_columns(storage)), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(list_columns(storage)[0].shards()) < 6
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert f"another process is writing to this store: process {driver.pid} on" in refused.stderr
    done = python(*run(work, url))
    assert done.returncode == 0, done.stderr
    assert "0 finished already" not in done.stdout
    assert files_of(url) == files_of(whole)
    env = {"AVLLM_CACHE": str(tmp_path / "cache")}
    assert python("store", "verify", url, env=env).returncode == 0
    assert "0 shards to encode, 6 finished already" in python(*run(work, url)).stdout


def test_repair_encodes_only_what_is_damaged(python, work, whole):
    """A flipped byte, a lost tar and a cut sidecar come back byte for byte; no other file is touched."""
    (column,) = list_columns(Storage(whole))
    folder = Path(Storage(whole).path(column.path("")))
    before, times = files_of(whole), {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    flipped = bytearray(before["000001.tar"])
    flipped[700] ^= 1
    (folder / "000001.tar").write_bytes(flipped)
    (folder / "000003.tar").unlink()
    (folder / "000004.json").write_bytes(before["000004.json"][:50])
    (folder / "000005.json").unlink()  # not damage: not featurized yet, and no concern of a repair
    found = python("store", "verify", whole)
    assert found.returncode == 1
    assert found.stdout.count("damaged: clip") == 3
    harmed = files_of(whole)
    told = python("featurize", "repair", whole, "workers=1", "--dry-run")
    assert told.returncode == 1
    assert "3 damaged shards would be encoded again" in told.stdout
    assert files_of(whole) == harmed
    done = python("featurize", "repair", whole, "workers=1", "cpus=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all shards are sound now" in done.stdout
    assert list_columns(Storage(whole))[0].shards() == [0, 1, 2, 3, 4]
    (folder / "000005.json").write_bytes(before["000005.json"])
    assert files_of(whole) == before
    for path in folder.iterdir():
        assert (path.stat().st_mtime_ns == times[path.name]) == (
            path.name[:6] not in ("000001", "000003", "000004")
        ) or (path.name == "000005.json")


def test_a_repair_that_fails_says_so(python, work, whole):
    """A repair that cannot encode leaves the shard not there, which is sound, and exit status 1."""
    storage = Storage(whole)
    (column,) = list_columns(storage)
    good = {name: storage.read(column.path(name)) for name in ("000002.tar", "000002.json")}
    storage.write(column.path("000002.tar"), b"")
    done = python("featurize", "repair", whole, "cpus=1000")
    assert done.returncode == 1
    assert "a worker takes 1000 and 0" in done.stderr
    assert "shard 2: was not encoded again" in done.stdout
    assert list_columns(storage)[0].shards() == [0, 1, 3, 4, 5]
    for name, data in good.items():
        storage.write(column.path(name), data)
    assert len(ColumnReader(column)) == 6


LIMIT = """
import resource, sys
if any("forkserver" in word for word in sys.orig_argv):  # whose limits the workers inherit
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
"""


def test_a_disk_that_fills_under_the_workers_is_one_line(python, work, tmp_path):
    """The kernel refuses a worker's bytes in the middle of a shard: the run ends with one line, the store is sound."""
    (tmp_path / "sitecustomize.py").write_text(LIMIT)
    store = tmp_path / "store"
    assert python(*plan(work, store)).returncode == 0
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPO}"}
    done = python(*run(work, store), env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "000000.tar: cannot be written: File too large; make room" in done.stderr.splitlines()[-1]
    assert done.stderr.count("Traceback") == 0
    assert not [path for path in store.rglob("*") if path.name.startswith(".tmp-") or path.suffix == ".tar"]
    assert python("store", "verify", store).returncode == 0


@pytest.mark.parametrize("word", ["bogus=1", "gpus=many", "columns.0.batch=4", "gpus"])
def test_settings_of_a_repair_are_checked_before_anything_is_read(feature_store, word):
    """Else a typing error shows on the day of the damage; a column's own settings would make another column."""
    assert repair(str(feature_store), None, ["gpus=1"])
    with pytest.raises(UserError, match=word.partition("=")[0].partition(".")[0]):
        repair(str(feature_store / "no-such-store"), None, [word])


def test_a_damaged_shard_that_is_not_planned_starts_no_run(feature_store, tmp_path, monkeypatch):
    """It is withdrawn. A run that is told no shard would encode all that are missing, which is no repair."""
    shutil.copytree(feature_store, tmp_path / "store")
    storage = Storage(tmp_path / "store")
    spec = list_columns(storage)[0].spec.model_copy(update={"name": "clip-new"})
    column = create_column(storage, spec, CONFIG["columns"][0])
    with column.write_shard(7):
        pass
    monkeypatch.setattr("featurize.repair.subprocess.run", None)
    assert repair(storage.url, column.name, [])
    assert column.shards() == []


def test_an_imported_column_is_not_repaired_but_imported_again(tmp_path):
    """Its encoder is not here; the damaged shard must not be withdrawn for nothing."""
    storage, corpus = Storage(tmp_path / "store"), Corpus()
    corpus.append([Candidate("clip.mp4", "/nowhere/clip.mp4", "video")], shard_size=4)
    corpus.save(storage)
    spec = ColumnSpec(
        name="theirs", modality="visual", numerics={}, features={"temporal": Feature(shape=(None, 6), dtype="float32")}
    )
    column = create_column(storage, spec, {"imported": "webdataset"})
    with column.write_shard(0) as writer:
        writer.add("clip-mp4", {"temporal": np.zeros((2, 6), np.float32)}, {})
    storage.write(column.path("000000.tar"), b"")
    with pytest.raises(UserError, match=r"was imported; .* import it again"):
        repair(str(tmp_path / "store"), None, [])
    assert column.shards() == [0]
