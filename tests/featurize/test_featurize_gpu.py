"""Encoders on the device that they take: overlapping copies, results and batches changes no bit."""

import numpy as np
import pytest
import torch

from featurize.encoders import build_encoder
from featurize.prepare import decoded
from featurize.settings import ClapSettings, ClipSettings
from featurize.shard_job import encode_shard
from store import ColumnReader, MediaItem, Storage, create_column

CLIP = ClipSettings(encoder="clip:ViT-S-32/random", layer=2, frames=(2, 4), batch=3)
HALF = CLIP.model_copy(update={"dtype": "float16"})
CLAP = ClapSettings(encoder="clap:HTSAT-tiny/random", segments=(1, 2), batch=4)


def test_rows_survive_that_their_host_memory_is_used_again():
    """Pinned buffers take turns; a row is what it was when it was given, whatever came after."""
    transfers = build_encoder(CLIP).transfers
    rng = np.random.default_rng(0)
    given = [rng.integers(0, 256, (7, 50_000 + 1000 * n), np.uint8) for n in range(9)]
    there = [transfers.upload(rows.copy()) for rows in given]
    transfers.begin_batch()
    with transfers.results_of_earlier_batches():
        assert all(np.array_equal(tensor.cpu().numpy(), rows) for tensor, rows in zip(there, given, strict=True))


def test_a_shard_holds_what_each_of_its_items_gives_alone(media, tmp_path):
    """Batches cross items, results are fetched while the next batch runs: an item must not get its neighbour's rows."""
    items = [
        MediaItem(f"item-{n}", str(media / name), "video", 0, n, None)
        for n, name in enumerate(["red-loud.mp4", "blue-loud.mp4", "silent.mp4", "short.mp4"] * 2)
    ]
    encoders = [build_encoder(CLIP), build_encoder(CLAP)]
    columns = [create_column(Storage(tmp_path), encoder.spec, {}) for encoder in encoders]
    encode_shard(items, encoders, columns, 2)
    alone = {}
    for item, prepared in decoded(items[:4], encoders, 1):
        for encoder, units in zip(encoders, prepared, strict=True):
            if hasattr(units, "rows"):
                parts = np.array_split(
                    units.rows, range(encoder.settings.batch, len(units.rows), encoder.settings.batch)
                )
                rows = [row for part in parts for row in encoder.encode_padded(part)]
                alone[encoder.spec.name, item.uri] = encoder.collect(rows, units.index)
    assert len(alone) == 6
    for encoder, column in zip(encoders, columns, strict=True):
        reader = ColumnReader(column)
        for item in items:
            if (wanted := alone.get((encoder.spec.name, item.uri))) is None:
                assert item.key in reader.failed
                continue
            found = reader.read(item.key)
            assert found.keys() == wanted.keys()
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted), item.key


@pytest.mark.gpu
@pytest.mark.parametrize(("settings", "bound"), [(CLIP, 1e-4), (CLAP, 1e-3), (HALF, 1e-2)])
def test_tokens_of_a_gpu_are_those_of_float32_on_the_cpu(settings, bound, monkeypatch):
    """TensorFloat-32, which convolutions take by default, would drown the quiet bins of a spectrogram."""
    rng = np.random.default_rng(0)
    there = build_encoder(settings)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        here = build_encoder(settings.model_copy(update={"dtype": "float32"}))
    if there.size:
        rows = rng.integers(0, 256, (3, there.size, there.size, 3), np.uint8)
    else:
        rows = (0.1 * rng.standard_normal((2, 480_000))).astype(np.float32)
    found, exact = (encoder.encode_padded(rows).cpu() for encoder in (there, here))
    assert (found - exact).norm() <= bound * exact.norm()
