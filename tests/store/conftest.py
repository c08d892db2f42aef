"""A small real store: a plan of one shard, one column, arrays with fixed numbers."""

import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from store import Candidate, Column, ColumnSpec, Corpus, Failure, Feature, Storage, UserError, create_column
from store.__main__ import app

SPEC = ColumnSpec(
    name="toy-l-14",
    modality="visual",
    numerics={"weights": "abc", "layer": -2, "grid": [4, 8], "scale": 0.5},
    features={
        "temporal": Feature(shape=(None, 4), dtype="float16"),
        "spatial.t4": Feature(shape=(3,), dtype="float32"),
    },
)
LOST = Failure(key="clip-3", code="unreadable", reason="moov atom not found")


def arrays(number: int) -> dict[str, np.ndarray]:
    """The arrays of item `number`; their lengths differ from item to item, and item 2 has no frame at all."""
    rng = np.random.default_rng(number)
    frames = (3, 1, 0, 2, 5, 1)[number]
    return {
        "temporal": rng.standard_normal((frames, 4)).astype(np.float16),
        "spatial.t4": rng.standard_normal(3).astype(np.float32),
    }


def fill(column: Column, shard: int, keys: list[str]) -> None:
    """Write a shard of the items `clip-<number>`; clip-3 fails."""
    with column.write_shard(shard) as writer:
        for key in keys:
            if key == LOST.key:
                writer.fail(LOST)
            else:
                writer.add(key, arrays(int(key[5:])), {"seconds": 1.5, "key": key})


def build(url: Any, items: int = 6, shard_size: int = 4) -> SimpleNamespace:
    """Plan and write a whole store at `url`."""
    storage, corpus = Storage(url), Corpus()
    corpus.append((Candidate(f"clip-{n}", f"/media/clip-{n}.mp4", "video", n) for n in range(items)), shard_size)
    corpus.save(storage)
    column = create_column(storage, SPEC, {"weights": "x.pt"})
    for shard, members in corpus.shards.items():
        fill(column, shard, [item.key for item in members])
    return SimpleNamespace(
        storage=storage, corpus=corpus, column=column, spec=SPEC, arrays=arrays, fill=fill, lost=LOST
    )


@pytest.fixture
def build_store() -> Callable[..., SimpleNamespace]:
    return build


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of copies of remote shards, this test's own."""
    monkeypatch.setenv("AVLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["disk", "memory", "s3"])
def root(request, tmp_path) -> str:
    """Where a store may lie: what is promised holds for all of them."""
    if request.param == "disk":
        return str(tmp_path / "store")
    base = "memory://" if request.param == "memory" else request.getfixturevalue("s3") + "/"
    return f"{base}{uuid.uuid4().hex}/store"


@pytest.fixture
def toy(root) -> SimpleNamespace:
    """Six items in shards of four; clip-3 failed, clip-2 has an empty array."""
    return build(root)


@pytest.fixture
def disk(tmp_path) -> SimpleNamespace:
    """The same on a local disk."""
    return build(tmp_path / "store")


@pytest.fixture
def command() -> Callable[..., tuple[int, str, str]]:
    """Run `python -m store ...` in this process: exit status, output, and the line of an error of the user's."""

    def run(*words: Any) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, [str(word) for word in words])
        if isinstance(done.exception, UserError):
            return 2, done.output, str(done.exception)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output, ""

    return run
