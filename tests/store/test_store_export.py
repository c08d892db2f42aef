"""Columns taken elsewhere: zarr and HDF5 read back what the store holds."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

import store.exchange.export as exporting
from store import Candidate, ColumnReader, ColumnSpec, Corpus, DamagedError, Feature, Storage, UserError, create_column


@pytest.fixture
def toy(tmp_path, build_store):
    """The toy store on a local disk."""
    return build_store(tmp_path / "store")


def done(count):
    assert count


def opened(path, form):
    return zarr.open_group(path, mode="r") if form == "zarr" else h5py.File(path)


def texts(array):
    return [text.decode() if isinstance(text, bytes) else text for text in array[:]]


def compare(group, column):
    """Every array of every item equals what ColumnReader reads."""
    reader = ColumnReader(column)
    assert texts(group["keys"]) == reader.keys()
    assert texts(group["failed/keys"]) == list(reader.failed)
    assert texts(group["failed/codes"]) == [failure.code for failure in reader.failed.values()]
    assert texts(group["failed/reasons"]) == [failure.reason for failure in reader.failed.values()]
    for place, key in enumerate(reader.keys()):
        for name, array in reader.read(key).items():
            if None in column.spec.features[name].shape:
                begin, end = group[f"{name}/offsets"][place : place + 2]
                found = group[f"{name}/rows"][begin:end]
            else:
                found = group[name][place]
            assert found.dtype == array.dtype
            assert np.array_equal(found, array)
            assert found.shape == array.shape


@pytest.mark.parametrize("form", ["zarr", "h5"])
@pytest.mark.parametrize("shard_bytes", [1, 60, 1 << 20])
def test_an_export_reads_back_equal(toy, tmp_path, monkeypatch, form, shard_bytes):
    """Plain zarr and h5py see the same keys, arrays and failures, however many writes they came in."""
    monkeypatch.setattr(exporting, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(exporting, "CHUNK_BYTES", min(shard_bytes, 30))
    exporting.export([toy.column], tmp_path / f"out.{form}", form, advance=done)
    root = opened(tmp_path / f"out.{form}", form)
    group = root[toy.column.name]
    compare(group, toy.column)
    spec = group.attrs["spec"]
    assert ColumnSpec.model_validate(json.loads(spec) if form == "h5" else spec) == toy.spec


def test_objects_of_a_zarr_export_stay_few(tmp_path):
    """Many items share an object and each is a chunk of its own kind; else a folder of a million files results."""
    storage, corpus = Storage(tmp_path / "store"), Corpus()
    corpus.append((Candidate(f"v{n}", f"/v{n}", "video") for n in range(200)), 64)
    corpus.save(storage)
    spec = ColumnSpec(
        name="x",
        modality="visual",
        numerics={},
        features={
            "temporal": Feature(shape=(4, 1024), dtype="float16"),
            "spatial.t4": Feature(shape=(64, 1024), dtype="float16"),
        },
    )
    column = create_column(storage, spec, {})
    rng = np.random.default_rng(0)
    for shard, items in corpus.shards.items():
        with column.write_shard(shard) as writer:
            for item in items:
                arrays = {n: rng.random(f.shape, np.float32).astype(np.float16) for n, f in spec.features.items()}
                writer.add(item.key, arrays, {})
    exporting.export([column], tmp_path / "out.zarr", "zarr", advance=done)
    array = zarr.open_group(tmp_path / "out.zarr", mode="r")[column.name]["spatial.t4"]
    assert (array.chunks[0], array.shards[0]) == (2, 200)
    assert len(list((tmp_path / "out.zarr").rglob("c/*/0/0"))) == 2
    compare(zarr.open_group(tmp_path / "out.zarr", mode="r")[column.name], column)


@pytest.mark.parametrize("form", ["zarr", "h5"])
def test_an_export_appears_whole_or_not_at_all(toy, tmp_path, form):
    """A damaged column stops the export; what was there stays, and nothing half written is left."""
    out = tmp_path / "exports" / "out"
    exporting.export([toy.column], out, form, advance=done)
    with pytest.raises(UserError, match="--overwrite"):
        exporting.export([toy.column], out, form, advance=done)
    exporting.export([toy.column], out, form, overwrite=True, advance=done)
    tar = Path(toy.storage.path(toy.column.path("000001.tar")))
    content = bytearray(tar.read_bytes())
    content[toy.column.sidecar(1).items[0].arrays["temporal"].offset] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DamagedError):
        exporting.export([toy.column], out, form, overwrite=True, advance=done)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert opened(out, form)[toy.column.name]["keys"].shape == (5,)


def test_an_empty_column_is_exported(tmp_path, build_store):
    """A column without a usable item has arrays of no rows, in both forms."""
    empty = build_store(tmp_path / "store", items=0)
    for form in ("zarr", "h5"):
        exporting.export([empty.column], tmp_path / form, form, advance=done)
        group = opened(tmp_path / form, form)[empty.column.name]
        assert group["spatial.t4"].shape == (0, 3)
        assert group["temporal/rows"].shape == (0, 4)
        assert list(group["temporal/offsets"][:]) == [0]


@pytest.mark.parametrize("form", ["zarr", "h5"])
def test_the_command(toy, tmp_path, command, monkeypatch, form):
    """`python -m store export` is what users run; a missing package is one line that names the extra."""
    code, out, _ = command("export", form, toy.storage.url, tmp_path / "out")
    assert code == 0
    assert toy.column.name in out
    compare(opened(tmp_path / "out", form)[toy.column.name], toy.column)
    assert command("export", form, toy.storage.url, tmp_path / "none", "--column", "clap")[0] == 2
    monkeypatch.setitem(sys.modules, {"zarr": "zarr", "h5": "h5py"}[form], None)
    code, _, err = command("export", form, toy.storage.url, tmp_path / "none")
    assert code == 2
    assert "pip install 'avllm[export]'" in err
    assert not (tmp_path / "none").exists()
