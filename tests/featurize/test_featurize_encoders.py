"""Features equal a plain reading of the same weights with the packages' own forward, within 1e-3 relative."""

import sys

import numpy as np
import open_clip
import pytest
import torch

from featurize.decode import ItemMedia
from featurize.encoders import build_encoder
from featurize.encoders.clap import fit
from featurize.media import read_audio, read_video
from featurize.settings import ClapSettings, ClipSettings
from store import MediaItem, UserError


def item(path, kind="video"):
    return MediaItem(key="k", uri=str(path), kind=kind, shard=0, position=0, bytes=None)


def features(encoder, path, kind="video"):
    units = encoder.prepare(item(path, kind), ItemMedia(item(path, kind), [encoder]))
    return encoder.collect(encoder.encode(units.rows), units.index)


def close(ours, plain, tolerance=1e-3):
    """Relative error of the whole array."""
    return np.linalg.norm(ours.astype(np.float64) - plain) <= tolerance * np.linalg.norm(plain)


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    """A whole CLIP as LAION publishes it: both towers, saved by open_clip's own model."""
    torch.manual_seed(5)
    model = open_clip.create_model("ViT-S-32", pretrained=None).eval()
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save({"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, path)
    return path, model


@pytest.mark.parametrize(("layer", "blocks"), [(-2, 11), (4, 4), (-1, 12)])
def test_clip_tokens_equal_a_plain_reading(media, clip_checkpoint, layer, blocks):
    """The layer is pinned: output_tokens=True of open_clip would give tokens after the final norm."""
    path, model = clip_checkpoint
    encoder = build_encoder(
        ClipSettings(encoder=f"clip:ViT-S-32/{path}", layer=layer, frames=(2, 4), stored="float32", batch=64)
    )
    ours = features(encoder, media / "red-loud.mp4")
    pixels = torch.from_numpy(read_video(str(media / "red-loud.mp4"), [224], 4).pixels[224]).permute(0, 3, 1, 2) / 255
    mean, std = (
        torch.tensor(x).view(1, 3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    visual = model.visual
    with torch.no_grad():
        x = visual.conv1((pixels - mean) / std).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
        x = visual.ln_pre(x)
        for block in visual.transformer.resblocks[:blocks]:
            x = block(x)
    plain = x.double().numpy()
    assert ours["temporal"].shape == (4, 384)
    assert close(ours["temporal"], plain[:, 0])
    assert close(ours["spatial.t4"], plain[:, 1:].mean(0))
    assert close(ours["spatial.t2"], plain[::2, 1:].mean(0))


def test_towers_of_timm_serve_too():
    """Many of open_clip's towers are timm's; SigLIP's have no class token, and say so."""
    tower = build_encoder(ClipSettings(encoder="clip:PE-Core-T-16-384/random"))
    assert tower.spec.features["temporal"].shape == (None, 192)
    assert tower.spec.features["spatial.t32"].shape == (576, 192)
    with pytest.raises(UserError, match="no class token; set pooling: mean"):
        build_encoder(ClipSettings(encoder="clip:ViT-B-16-SigLIP/random"))


def test_a_coarse_grid_read_from_a_fine_column_equals_its_own_pass(media):
    """One featurization at the finest grid serves every ablation."""
    settings = {"encoder": "clip:ViT-S-32/random", "layer": 2, "stored": "float32"}
    fine = build_encoder(ClipSettings(**settings, frames=(2, 4, 8)))
    coarse = build_encoder(ClipSettings(**settings, frames=(2,)))
    f = features(fine, media / "red-loud.mp4")
    c = features(coarse, media / "red-loud.mp4")
    np.testing.assert_allclose(f["temporal"][::4], c["temporal"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(f["spatial.t2"], c["spatial.t2"], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def clap_checkpoint(tmp_path_factory):
    """A checkpoint in LAION's form: `module.audio_branch.*` beside a text tower and a numpy scalar."""
    tower = build_encoder(ClapSettings(encoder="clap:HTSAT-tiny/random", seed=9)).tower
    state = {f"module.audio_branch.{n}": t for n, t in tower.state_dict().items()}
    path = tmp_path_factory.mktemp("clap") / "630k.pt"
    torch.save(
        {"epoch": 3, "best": np.float64(0.5), "state_dict": {**state, "module.text_branch.w": torch.zeros(2)}}, path
    )
    return path, tower


def test_clap_tokens_equal_the_packages_own_forward(media, clap_checkpoint):
    """The tower is built without its package's import; its numbers must be the package's all the same."""
    path, tower = clap_checkpoint
    encoder = build_encoder(ClapSettings(encoder=f"clap:HTSAT-tiny/{path}", segments=(1, 2), stored="float32"))
    ours = features(encoder, media / "red-loud.mp4")
    sound = read_audio(str(media / "red-loud.mp4"), [48_000], 60)[48_000][:]
    half = len(sound) // 2
    for name, pieces in (("audio.k1", [sound]), ("audio.k2", [sound[:half], sound[half:]])):
        rows = []
        for piece in pieces:  # repeat and pad, as laion_clap.training.data.get_audio_features does
            repeated = np.tile(piece, 480_000 // len(piece))
            rows.append(np.pad(repeated, (0, 480_000 - len(repeated))))
        with torch.no_grad():
            plain = tower({"waveform": torch.from_numpy(np.stack(rows))}, device="cpu")["embedding"]
        assert ours[name].shape == (len(pieces), 768)
        assert close(ours[name], plain.double().numpy())


def test_the_audio_tower_loads_without_its_packages_import():
    """`import laion_clap` asks a hub for three tokenizers, and hangs where there is none."""
    build_encoder(ClapSettings(encoder="clap:HTSAT-tiny/random"))
    assert "featurize_laion_clap_module.htsat" in sys.modules
    assert not any(name.split(".")[0] in ("laion_clap", "clap_module") for name in sys.modules)


def test_a_long_segment_gives_its_middle_whatever_the_time():
    """laion-clap takes a random stretch, so the same file gives other features each time."""
    samples = np.arange(10, dtype=np.float32)
    assert fit(samples, 0, 10, 4).tolist() == [3, 4, 5, 6]
    assert fit(samples, 2, 10, 4).tolist() == [4, 5, 6, 7]
    assert fit(samples, 0, 3, 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 0]


def test_of_a_long_sound_only_what_is_encoded_is_read():
    """Sounds are hours long and lie on disk; a segment's middle is all that the tower hears."""
    read = []

    class Hours:
        def __len__(self):
            return 10**9

        def __getitem__(self, part):
            read.append((part.start, part.stop))
            return np.zeros(part.stop - part.start, np.float32)

    assert len(fit(Hours(), 10**8, 2 * 10**8, 480_000)) == 480_000
    assert read == [(149_760_000, 150_240_000)]


def test_the_digest_follows_all_that_shapes_the_numbers():
    """Two columns of one name and other numbers would be mixed in silence."""
    base = {"encoder": "clip:ViT-S-32/random", "layer": 2, "frames": (2,)}
    changes = [
        {},
        {"seed": 1},
        {"layer": 3},
        {"frames": (2, 4)},
        {"pooling": "mean"},
        {"dtype": "bfloat16"},
        {"batch": 7},
    ]
    digests = [build_encoder(ClipSettings(**{**base, **change})).spec.fingerprint for change in changes]
    assert len(set(digests)) == len(changes)
    assert build_encoder(ClipSettings(**base)).spec.fingerprint == digests[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ClipSettings(encoder="clip:ViT-S-32/nonsense"), "no weights 'nonsense'; accepted: random"),
        (ClipSettings(encoder="clip:ViT-XXL/random"), "no architecture 'ViT-XXL'"),
        (ClipSettings(encoder="clip:RN50/random"), "not a vision transformer"),
        (ClipSettings(encoder="clip:ViT-S-32/random", layer=13), "field 'layer': 13; accepted: 1 to 12"),
        (ClipSettings(encoder="clip:ViT-S-32//nowhere/x.pt"), "no such checkpoint"),
        (ClapSettings(encoder="clap:HTSAT-huge/random"), "no architecture 'HTSAT-huge'; accepted: HTSAT-base"),
        (ClapSettings(encoder="clap:HTSAT-tiny/nonsense"), "no weights 'nonsense'"),
    ],
)
def test_encoders_that_cannot_be_had_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        build_encoder(settings)


def test_weights_of_another_architecture_are_refused(clap_checkpoint, clip_checkpoint):
    with pytest.raises(UserError, match="not the weights of this architecture"):
        build_encoder(ClapSettings(encoder=f"clap:HTSAT-base/{clap_checkpoint[0]}"))
    with pytest.raises(UserError, match="not the weights of this architecture"):
        build_encoder(ClipSettings(encoder=f"clip:ViT-B-32/{clip_checkpoint[0]}"))


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path):
    """A pickle can do anything; ours must not."""
    import os

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        build_encoder(ClipSettings(encoder=f"clip:ViT-S-32/{tmp_path / 'evil.pt'}"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.hub
def test_published_weights_load():
    build_encoder(ClipSettings(encoder="clip:ViT-B-32/openai"))
    build_encoder(ClapSettings(encoder="clap:HTSAT-tiny/630k-audioset-best"))
