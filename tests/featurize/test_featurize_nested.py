"""One pass at the finest grid serves every ablation: what is read for T or K is what its own pass would have given."""

import av
import numpy as np
import pytest
import soundfile

from featurize.encoders import build_encoder
from featurize.settings import ClapSettings, ClipSettings, WhisperSettings
from featurize.shard_job import encode_shard
from store import ColumnReader, MediaItem, Storage, create_column
from trainer.features import Grid

FRAMES, SEGMENTS = (4, 8, 16, 32, 64), (1, 2, 4, 8, 16)


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """90 frames, no two alike; 64 does not divide 90."""
    path = tmp_path_factory.mktemp("moving") / "moving.mp4"
    ramp = np.add.outer(np.arange(64), np.arange(64))
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        for n in range(90):
            pixels = np.stack([(ramp + 3 * n) % 256, (2 * ramp) % 256, np.full((64, 64), 2 * n)], -1).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
    return path


@pytest.fixture
def encode(tmp_path):
    """Encode files as one shard of a store of its own, and read the column as training does."""

    def run(name, paths, *settings):
        items = [
            MediaItem(key=path.stem, uri=str(path), kind=kind, shard=0, position=n, bytes=None)
            for n, (path, kind) in enumerate(paths)
        ]
        encoders = [build_encoder(one) for one in settings]
        columns = [create_column(Storage(tmp_path / name), encoder.spec, {}) for encoder in encoders]
        encode_shard(items, encoders, columns, threads=1)
        return [ColumnReader(column) for column in columns]

    return run


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "float16")])
def test_a_coarse_grid_read_from_a_fine_column_is_its_own_pass(encode, moving, media, dtype, stored):
    """Temporal tokens bit for bit, though they were encoded in other batches beside other frames; also beside a
    second encoder whose grid does not nest in the first's."""
    paths = [(moving, "video"), (media / "short.mp4", "video"), (media / "blue.png", "image"),
             (media / "red-loud.mp4", "video")]  # fmt: skip
    shared = {"encoder": "clip:ViT-S-32/random", "layer": 2, "dtype": dtype, "stored": stored, "batch": 7}
    (fine,) = encode("fine", paths, ClipSettings(**shared, frames=FRAMES))
    coarse, other = encode(
        "coarse", paths, ClipSettings(**shared, frames=(8,)), ClipSettings(**shared, frames=(6,), pooling="mean")
    )
    grid = Grid(frames=8, segments=1)
    for path, _ in paths:
        ours, own = grid.select(fine.read(path.stem)), grid.select(coarse.read(path.stem))
        assert ours["temporal"].dtype == stored
        assert len(ours["temporal"]) == (1 if path.suffix == ".png" else 8)
        np.testing.assert_array_equal(ours["temporal"], own["temporal"])
        np.testing.assert_allclose(ours["spatial"], own["spatial"], rtol=1e-3, atol=1e-5)
    assert len(np.unique(fine.read("moving")["temporal"], axis=0)) == 64
    (alone,) = encode("alone", paths[:1], ClipSettings(**shared, frames=(6,), pooling="mean"))
    np.testing.assert_array_equal(alone.read("moving")["temporal"], other.read("moving")["temporal"])


@pytest.mark.parametrize(
    "settings",
    [
        ClapSettings(encoder="clap:HTSAT-tiny/random", segments=SEGMENTS),
        ClapSettings(encoder="clap:HTSAT-tiny/random", segments=SEGMENTS, fusion=True, dtype="float32"),
        WhisperSettings(encoder="whisper:tiny/random", segments=(1, 2, 4), dtype="float32"),
    ],
    ids=["clap", "clap-fusion", "whisper"],
)
def test_a_coarse_cut_read_from_a_fine_column_is_its_own_pass(encode, tmp_path, settings):
    """The 4 segments of a column of 31 are those of a column of 4, bit for bit."""
    path = tmp_path / "noise.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 22 * 16_000).astype(np.float32), 16_000)
    (fine,) = encode("fine", [(path, "audio")], settings)
    (coarse,) = encode("coarse", [(path, "audio")], settings.model_copy(update={"segments": (4,)}))
    grid = Grid(frames=1, segments=4)
    ours, own = grid.select(fine.read("noise"))["audio"], grid.select(coarse.read("noise"))["audio"]
    assert len(np.unique(own, axis=0)) == 4
    np.testing.assert_array_equal(ours, own)


def test_an_encoder_sees_batches_of_one_size_only(media, monkeypatch, tmp_path):
    """A library's kernels, and with them the rounding, follow the batch's size; a last one of 3 would differ."""
    encoder = build_encoder(ClipSettings(encoder="clip:ViT-S-32/random", layer=1, frames=(4,), batch=5))
    sizes, encode = [], encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda rows: (sizes.append(len(rows)), encode(rows))[1])
    item = MediaItem(key="k", uri=str(media / "red-loud.mp4"), kind="video", shard=0, position=0, bytes=None)
    encode_shard([item], [encoder], [create_column(Storage(tmp_path), encoder.spec, {})], threads=1)
    assert sizes == [5]


def test_tokens_too_large_for_their_dtype_are_a_record(media, monkeypatch, tmp_path):
    """One odd file must not end a run of a million; nor may infinities reach the projectors."""
    encoder = build_encoder(ClipSettings(encoder="clip:ViT-S-32/random", layer=1, frames=(2,), batch=4))
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda rows: encode(rows) * 1e9)
    item = MediaItem(key="blue", uri=str(media / "blue.png"), kind="image", shard=0, position=0, bytes=None)
    column = create_column(Storage(tmp_path), encoder.spec, {})
    report = encode_shard([item], [encoder], [column], threads=1)
    (failure,) = report.failures[column.name]
    assert (failure.key, failure.code) == ("blue", "unreadable")
    assert "stored: float32" in failure.reason
    assert column.sidecar(0).items == ()
