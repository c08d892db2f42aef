"""Drivers, workers and whole nodes are killed at random; the store ends as if nothing had happened.

`AVLLM_LONG=1 python -m pytest -s tests/featurize/test_featurize_chaos.py` is the long form.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from store import Corpus, Storage, column_stats, list_columns, verify_column

REPO = Path(__file__).parents[2]
KILLS = 100 if os.environ.get("AVLLM_LONG") else 3
CONFIG = {
    "columns": [
        {"encoder": "clip:ViT-S-32/random", "layer": 1, "frames": [2], "batch": 5},
        {"encoder": "clip:ViT-S-32/random", "layer": 2, "frames": [1, 2], "batch": 3},
    ],
    "workers": 2,
}


def files_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted((store / "columns").rglob("*")) if p.is_file()}


def finished(store: Path) -> int:
    return len(list(store.glob("columns/*/0*.json")))


class Chaos:
    """A cluster of three nodes (the head runs no worker), a driver on it, and whatever kills them."""

    def __init__(self, command: list[str], seed: int, free_port: Callable[[], int]) -> None:
        from ray.cluster_utils import Cluster

        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.command = command
        self.free_port = free_port
        head = {"num_cpus": 0, "include_dashboard": False, **self.ports()}
        self.cluster = self.patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.nodes = [self.add_node() for _ in range(2)]
        self.start()

    def ports(self) -> dict[str, int]:
        """A node's ports are given: it gives up if its agents take 15 s to say theirs, as on a busy machine they do."""
        agents = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port", "metrics_export_port")
        return {agent: self.free_port() for agent in agents}

    def add_node(self) -> Any:
        """A new node."""
        return self.patiently(lambda: self.cluster.add_node(wait=False, num_cpus=1, **self.ports()))

    @staticmethod
    def patiently(start: Callable[[], Any]) -> Any:
        """Start a node; on a busy machine Ray can give one up that takes more than 30 s."""
        for _ in range(4):
            with contextlib.suppress(Exception):
                return start()
        return start()

    def start(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(REPO), "RAY_ADDRESS": self.cluster.address}
        self.driver = subprocess.Popen(
            self.command, env=env, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def running(self) -> bool:
        """Whether the driver is still at work; it must not have failed."""
        status = self.driver.poll()
        assert not status, f"the driver ended with {status}: {self.driver.stderr.read()[-2000:]}"
        return status is None

    def kill(self) -> None:
        getattr(self, f"kill_{self.random.choice(['driver', 'worker', 'worker', 'node'])}")()

    def kill_driver(self) -> None:
        self.driver.send_signal(signal.SIGKILL)
        self.done["driver"] += 1
        self.driver.wait()
        self.start()

    def kill_worker(self) -> None:
        workers = [child for child in psutil.Process().children(recursive=True) if _is_worker(child)]
        if workers:
            self.random.choice(workers).kill()
            self.done["worker"] += 1
        else:  # none is up yet
            self.kill_driver()

    def kill_node(self) -> None:
        victim = self.nodes.pop(self.random.randrange(len(self.nodes)))
        self.cluster.remove_node(victim, allow_graceful=False)
        self.done["node"] += 1
        self.nodes.append(self.add_node())

    def close(self) -> None:
        self.driver.kill()
        self.driver.wait()
        self.cluster.shutdown()


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any("ray::Worker" in word for word in process.cmdline()[:1])
    except psutil.NoSuchProcess:  # it has just ended
        return False


@pytest.fixture
def corpus(tmp_path, media, bad_media) -> list[Path]:
    """Many good files, and bad ones among them."""
    folder = tmp_path / "many"
    folder.mkdir()
    files = [*sorted(media.iterdir()), *sorted(bad_media.iterdir())]
    for number in range(60 * KILLS):
        source = files[number % len(files)]
        shutil.copy(source, folder / f"{number:04d}-{source.name}")
    return folder


def test_random_kills_leave_the_store_of_an_undisturbed_run(only_cluster, python, corpus, tmp_path, free_port):
    """What is promised: byte for byte the same, nothing lost, nothing twice, whatever dies and when."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))

    def run(store: Path) -> list[str]:
        assert python("featurize", "plan", corpus, "--store", store, "--shard-size", 2).returncode == 0
        return ["featurize", "run", "--store", str(store), "--config", str(tmp_path / "config.yaml")]

    undisturbed = tmp_path / "undisturbed"
    done = python(*run(undisturbed), timeout=3600)
    assert done.returncode == 0, done.stderr
    store = tmp_path / "chaos"
    chaos = Chaos([sys.executable, "-m", *run(store)], KILLS, free_port)
    try:
        while sum(chaos.done.values()) < KILLS and chaos.running():
            _wait_for_progress(chaos, store)
            chaos.kill()
            print(f"{dict(chaos.done)}, {finished(store)} shard files", flush=True)
        while chaos.running():
            time.sleep(0.2)
    finally:
        chaos.close()
    assert sum(chaos.done.values()) == KILLS, f"the run was over after {chaos.done}"
    assert files_of(store) == files_of(undisturbed)
    plan = Corpus.load(Storage(store))
    for column in list_columns(Storage(store)):
        stats = column_stats(column, plan)
        assert stats.usable + len(stats.failures) == len(plan)
        assert all(checked.fault is None for checked in verify_column(column, plan))


def _wait_for_progress(chaos: Chaos, store: Path) -> None:
    """Now and then kill at once, while encoders are still loading; else after a shard more is there."""
    before = finished(store)
    hurry = chaos.random.random() < 0.2
    deadline = time.monotonic() + (chaos.random.uniform(0, 8) if hurry else 180)
    while chaos.running() and time.monotonic() < deadline and (hurry or finished(store) == before):
        time.sleep(0.02)
    time.sleep(chaos.random.uniform(0, 0.4))
