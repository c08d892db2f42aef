"""Workers as processes of this machine: what they are given, and what is left when they or the run die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from featurize.encoders import build_encoder
from featurize.local import Local
from featurize.pool import Pool
from featurize.settings import ClipSettings, FeaturizeConfig
from featurize.worker import WorkerLostError
from store import Corpus, Storage, UserError, list_columns

REPO = Path(__file__).parents[2]
CLIP = {"encoder": "clip:ViT-S-32/random", "layer": 1, "frames": [1, 2], "batch": 4}


@pytest.fixture(scope="module")
def planned(python, tmp_path_factory, media):
    """Give a function that plans a store of 20 clips, and the command that fills it."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "clips").mkdir()
    for number in range(20):
        (folder / "clips" / f"{number}.mp4").symlink_to(media / ("silent.mp4" if number % 2 else "red-loud.mp4"))
    (folder / "config.yaml").write_text(yaml.safe_dump({"columns": [CLIP]}))

    def plan(name, *words):
        done = python("featurize", "plan", folder / "clips", "--store", folder / name, *words)
        assert done.returncode == 0, done.stderr
        return folder / name, ["featurize", "run", "--store", folder / name, "--config", folder / "config.yaml"]

    return plan


@pytest.fixture(scope="module")
def filled(python, planned):
    """A store that was filled in one go, and the command that did it."""
    store, run = planned("filled")
    done = python(*run)
    assert done.returncode == 0, done.stderr
    return store, run


def tars(store):
    return {path.name: path.read_bytes() for path in sorted(store.glob("columns/*/*.tar"))}


def test_twenty_items_make_several_shards(filled):
    shards = Corpus.load(Storage(filled[0])).shards
    assert [len(items) for items in shards.values()] == [4] * 5


def test_a_finished_store_loads_nothing(python, filled):
    """Neither an encoder nor torch: what a column was made with is written in it."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *map(str, filled[1])],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "0 shards to encode, 5 finished already" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "featurize.settings" in imported
    assert not imported & {"torch", "av", "ray", "open_clip"}
    dry = python(*filled[1], "--dry-run")
    assert "0 of 5 shards to encode" in dry.stdout


def test_other_weights_under_the_same_name_are_another_column(python, planned, tmp_path):
    """A column is not taken for finished because a file has the name that the weights had."""
    store, run = planned("weights")
    weights = tmp_path / "weights.pt"

    def save(seed):
        tower = build_encoder(ClipSettings(**{**CLIP, "seed": seed})).tower
        torch.save({f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}, weights)

    words = [*run, f"columns.0.encoder=clip:ViT-S-32/{weights}"]
    save(1)
    assert "5 shards to encode" in python(*words).stdout
    assert "0 shards to encode" in python(*words).stdout
    save(2)
    assert "5 shards to encode, 0 finished already" in python(*words).stdout
    first, second = list_columns(Storage(store))
    assert first.build["weights_sha256"] != second.build["weights_sha256"]
    pinned = python(*words, f"columns.0.weights_sha256={'f' * 64}")
    assert pinned.returncode == 2
    assert "field 'weights_sha256'" in pinned.stderr


def _start(run):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, run)], cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def _workers(driver):
    """The processes that encode: they have a thread that watches the run."""
    return [child for child in psutil.Process(driver.pid).children(recursive=True) if child.num_threads() > 1]


def _wait(until, seconds=120):
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lost_worker_is_replaced(planned, filled):
    """Its shard goes to another worker; the bytes are those of a run where nobody died."""
    store, run = planned("lost")
    driver = _start(run)
    _wait(lambda: tars(store))
    _workers(driver)[0].kill()
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    assert tars(store) == tars(filled[0])


def test_workers_do_not_outlive_the_run(python, planned, filled):
    """kill -9 of the run leaves no process behind that would still write; the next one goes on."""
    store, run = planned("killed")
    driver = _start(run)
    _wait(lambda: tars(store))
    left = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive
    done = python(*run)
    assert done.returncode == 0, done.stderr
    assert tars(store) == tars(filled[0])


def test_a_run_stops_at_the_thirtieth_loss_in_a_row():
    """So many are not one file's fault."""
    started = []

    class Losing:
        def start(self):
            started.append(None)
            return len(started)

        def call(self, worker, method, *words):
            return worker

        def wait(self, references, seconds):
            return references[0]

        def result(self, reference):
            raise WorkerLostError("a worker ended with exit code 1")

    pool = Pool(Losing(), FeaturizeConfig(columns=[CLIP], workers=1))
    with pytest.raises(UserError, match="30 workers in a row were lost; the last: a worker ended with exit code 1"):
        pool.columns(1)
    assert len(started) == 30


@pytest.mark.parametrize(
    ("gpus", "shares"),
    [
        (1, ["4", "5", "6", "7"]),
        (2, ["4,5", "6,7"]),
        (0.5, ["4", "4", "5", "5", "6", "6", "7", "7"]),
        (0.7, ["4", "5", "6", "7"]),
    ],
)
def test_each_worker_has_gpus_of_its_own(monkeypatch, gpus, shares):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16))
    config = FeaturizeConfig(columns=[CLIP], gpus=gpus)
    local = Local("/nowhere", config)
    assert local.resources() == (16, 4.0)
    assert Pool(local, config)._fitting() == len(shares)
    assert [local._share(place) for place in range(len(shares))] == shares
