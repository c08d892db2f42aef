"""A column's fingerprint: pinned, the same everywhere, and another for whatever shapes the numbers."""

import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import featurize.encoders.clip as clip
from featurize.encoders import build_encoder
from featurize.settings import ClapSettings, ClipSettings, FeaturizeConfig, WhisperSettings
from store import canonical_json, load_settings

REPO = Path(__file__).parents[2]
FAMILIES = {
    "clip": (
        {"encoder": "clip:ViT-S-32/random", "layer": 2, "frames": (2,)},
        [{"layer": 3}, {"frames": (2, 4)}, {"pooling": "mean"}],
    ),
    "clap": (
        {"encoder": "clap:HTSAT-tiny/random"},
        [{"segments": (2,)}, {"fusion": True}],
    ),
    "clap-fusion": ({"encoder": "clap:HTSAT-tiny/random", "fusion": True}, []),
    "whisper": (
        {"encoder": "whisper:tiny/random"},
        [{"segments": (2,)}, {"layer": -2}, {"encoder": "whisper:base/random"}],
    ),
}
CLASSES = {"clip": ClipSettings, "clap": ClapSettings, "clap-fusion": ClapSettings, "whisper": WhisperSettings}
OTHER = ("clip", "whisper")  # built in another process
PINNED = {
    "clip": "da2a03b4effb3310",
    "clap": "4b145c769f8daabe",
    "clap-fusion": "9a9273759097cd3d",
    "whisper": "fd6139d9e56a5354",
}


@functools.cache
def build(family, **changes):
    return build_encoder(CLASSES[family](**{**FAMILIES[family][0], **changes}))


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """Free the encoders at the end: they take gigabytes."""
    yield
    build.cache_clear()


@pytest.mark.parametrize("family", ["clip", "clap", "whisper"])
def test_a_fingerprint_follows_all_that_shapes_the_numbers(family):
    """Two columns of one name and other numbers would be mixed in silence."""
    shared = [{"seed": 1}, {"dtype": "bfloat16"}, {"batch": 3}, {"stored": "float32"}]
    changes = [{}, *shared, *FAMILIES[family][1]]
    assert len({build(family, **change).spec.fingerprint for change in changes}) == len(changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fingerprint_is_pinned(family):
    """A column made yesterday is found today. A change here needs a higher `numerics`; the digest of weights is
    left out, since those of the tests come from torch's generator."""
    encoder = build(family)
    spec = encoder.spec.model_dump(mode="json")
    assert spec["name"] == encoder.settings.column  # what is said of a column before its encoder is loaded
    assert set(encoder.settings.arrays) == spec["features"].keys() - {"temporal"}
    assert len(spec["numerics"].pop("weights")) == 64
    assert hashlib.sha256(canonical_json(spec)).hexdigest()[:16] == PINNED[family]


def test_another_process_gives_the_same_fingerprints():
    """Ray's workers on other nodes must name the same columns, weights and all."""
    env = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONHASHSEED": "7"}
    code = (
        "import json, sys; sys.path.insert(0, 'tests/featurize'); import test_featurize_specs as t;"
        "print(json.dumps({family: t.build(family).spec.fingerprint for family in t.OTHER}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {family: build(family).spec.fingerprint for family in OTHER}


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_runs_and_stays_near(family):
    """On any device, CPUs too; near, but not what float32 gives."""
    full, low = build(family), build(family, dtype="bfloat16")
    rng = np.random.default_rng(0)
    rows = {
        "clip": lambda: rng.integers(0, 256, (2, 224, 224, 3), np.uint8),
        "clap": lambda: rng.uniform(-0.5, 0.5, (2, 480_000)).astype(np.float32),
        "clap-fusion": lambda: _rows(rng.uniform(-60, 0, (4, 1001, 64)), "longer", [True, False]),
        "whisper": lambda: _rows(rng.uniform(-1, 1, (80, 3000)), "states", [100, 50]),
    }[family]()
    exact, near = full.encode(rows).numpy(), low.encode(rows).numpy()
    assert near.dtype == np.float32
    assert np.isfinite(near).all()
    assert 0 < np.linalg.norm(near - exact) < 0.05 * np.linalg.norm(exact)


def _rows(mel, name, values):
    rows = np.empty(2, [("mel", np.float32, mel.shape), (name, type(values[0]))])
    rows["mel"], rows[name] = mel, values
    return rows


@pytest.mark.parametrize("path", sorted((REPO / "featurize/configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path):
    """A configuration that nobody loads is wrong within a month."""
    assert load_settings(FeaturizeConfig, path).columns


def test_the_ablations_cover_the_papers_tables():
    """T, K and every encoder of the paper's ablations, in one pass."""
    columns = load_settings(FeaturizeConfig, REPO / "featurize/configs/ablations.yaml").columns
    names = {column.encoder.split("/")[0] for column in columns}
    assert names == {
        "clip:ViT-B-16", "clip:ViT-L-14", "clip:ViT-H-14", "clap:HTSAT-tiny",
        "whisper:tiny", "whisper:base", "whisper:small",
    }  # fmt: skip
    assert {column.frames for column in columns if isinstance(column, ClipSettings)} == {(4, 8, 16, 32, 64)}
    assert {column.segments for column in columns if not isinstance(column, ClipSettings)} == {(1, 2, 4, 8, 16)}
    for column in columns:
        if isinstance(column, ClipSettings):
            assert column.weights in clip.pretrained.list_pretrained_tags_by_model(column.architecture)
