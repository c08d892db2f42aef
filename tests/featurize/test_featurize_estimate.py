"""An estimate is measured with the parts that a run uses, on items of all sizes."""

from dataclasses import replace
from pathlib import Path

import pytest

from featurize.encoders import build_encoder
from featurize.estimate import ColumnEstimate, Estimate, choose, measure
from featurize.settings import FeaturizeConfig
from featurize.shard_job import encode_shard
from store import MediaItem, Storage, create_column
from store.items import Items

CONFIG = FeaturizeConfig.model_validate(
    {"columns": [{"encoder": "clip:ViT-S-32/random", "layer": 1, "frames": [1, 2], "batch": 4}]}
)


def items_of(folder: Path) -> list[MediaItem]:
    kinds = {".mp4": "video", ".png": "image", ".jpg": "image"}
    files = [path for path in sorted(folder.iterdir()) if path.suffix in kinds]
    return [
        MediaItem(path.stem, str(path), kinds[path.suffix], 0, n, path.stat().st_size) for n, path in enumerate(files)
    ]


def test_the_bytes_foretold_are_the_bytes_written(media, bad_media, tmp_path):
    """With every item in the sample, the estimate's bytes and usable share are exactly the run's."""
    items = [item for item in items_of(media) + items_of(bad_media) if item.bytes]
    items = [replace(item, position=n) for n, item in enumerate(items)]
    found = measure(Items.of(items), CONFIG, len(items))
    encoder = build_encoder(CONFIG.columns[0])
    column = create_column(Storage(tmp_path), encoder.spec, {})
    encode_shard(items, [encoder], [column], 1)
    sidecar = column.sidecar(0)
    (told,) = found.columns
    assert told.name == column.name
    assert told.bytes * len(items) == pytest.approx(sidecar.tar_bytes)
    assert told.usable * len(items) == pytest.approx(len(sidecar.items))
    assert len(sidecar.failed) == found.failed == 3
    assert found.decode_seconds > 0 < told.seconds
    assert found.load_seconds > 0


def test_small_and_large_files_are_sampled_in_their_shares():
    """A sample of the first files of a folder would foretell a corpus of its own."""
    sizes = [10] * 50 + [1000] * 50
    items = [MediaItem(str(n), f"/{n}", "video", 0, n, size) for n, size in enumerate(sizes)]
    items.append(MediaItem("gone", "/gone", "video", 0, 100, None))
    chosen = choose(Items.of(items), 10)
    assert [item.bytes for item in chosen] == [10] * 5 + [1000] * 5
    assert len({item.key for item in chosen}) == 10
    assert len(choose(Items.of(items), 1000)) == 100


def test_on_a_gpu_decoding_and_encoding_run_side_by_side():
    """4 s with two cores at work: 8 core-seconds, for which a GPU that encodes in 5 s needs 1.6 cores."""
    columns = (ColumnEstimate("a", 1.0, 2.0, 10.0), ColumnEstimate("b", 1.0, 3.0, 10.0))
    found = Estimate(1, 0.5, 4.0, 8.0, columns, overlap=True)
    assert found.seconds == 5.0
    assert found.bound(2) == "encoding bounds this node: a GPU needs 1.6 cores for decoding, here it has 2"
    slow = replace(found, decode_seconds=6.0, decode_core_seconds=6.0)
    assert slow.seconds == 6.0
    assert slow.bound(1) == "decoding bounds this node: a GPU needs 1.2 cores for decoding, here it has 1"
    shared = replace(found, overlap=False)
    assert shared.seconds == 9.0
    assert shared.bound(2) == "encoding bounds this node: they share its cores, decoding takes 44% of the time"


def test_hours_gigabytes_and_cost_are_foretold_before_anything_starts(python, media, tmp_path):
    """And nothing is written."""
    (tmp_path / "config.yaml").write_text(CONFIG.model_copy(update={"workers": 2}).model_dump_json())
    store = tmp_path / "store"
    assert python("featurize", "plan", media, "--store", store).returncode == 0
    before = sorted(store.rglob("*"))
    words = ["featurize", "estimate", "--store", store, "--config", tmp_path / "config.yaml"]
    done = python(*words, "--sample", 4, "--price", 2.5)
    assert done.returncode == 0, done.stderr
    assert "from 4 of 9 items, 0 of them failed" in done.stdout
    assert "s in each worker, then decoding" in done.stdout
    assert "clip-vit-s-32." in done.stdout
    assert "with 2 workers, cost 0.0" in done.stdout
    assert "a shard of 4 items" in done.stdout
    assert "bounds this node" in done.stdout
    assert sorted(store.rglob("*")) == before


def test_files_that_an_estimate_does_not_count_are_told(python, media, tmp_path):
    """Hours of half the files, taken for those of all, are an estimate of something else."""
    (tmp_path / "config.yaml").write_text(CONFIG.model_dump_json())
    (tmp_path / "empty.png").touch()
    names = [media / "blue.png", tmp_path / "gone[1].png", tmp_path / "gone-2.png", tmp_path / "empty.png"]
    (tmp_path / "list.csv").write_text("\n".join(["path", *map(str, names)]))
    store = tmp_path / "store"
    assert python("featurize", "plan", tmp_path / "list.csv", "--store", store).returncode == 0
    done = python("featurize", "estimate", "--store", store, "--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    said = done.stdout.replace("\n", " ")
    assert f"not counted: 2 of 4 items, not found when last planned, first {tmp_path}/gone[1].png" in said
    assert f"not counted: 1 of 4 items, empty, first {tmp_path}/empty.png" in said
    assert "from 1 of 1 items" in said
