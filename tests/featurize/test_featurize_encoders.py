"""Features equal a plain reading of the same weights with the packages' own forward, within 1e-3 relative."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import soundfile
import torch
from transformers import ClapFeatureExtractor

from featurize.encoders import build_encoder
from featurize.encoders.clap import fuses, load_tower, repeat_pad
from featurize.encoders.fusion import fusion_mels
from featurize.encoders.segments import middle
from featurize.media import read_audio, read_video
from featurize.prepare import ItemMedia
from featurize.settings import ClapSettings, ClipSettings
from store import MediaItem, UserError

REPO = Path(__file__).parents[2]


def item(path, kind="video"):
    return MediaItem(key="k", uri=str(path), kind=kind, shard=0, position=0, bytes=None)


def features(encoder, path, kind="video"):
    units = encoder.prepare(item(path, kind), ItemMedia(item(path, kind), [encoder]))
    return encoder.encode_item(units)


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
    count = len(sound)
    for name, pieces in (("audio.k1", [sound[0:count]]), ("audio.k2", [sound[0:half], sound[half:count]])):
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
    assert "featurize_clap_module.htsat" in sys.modules
    assert not any(name.split(".")[0] in ("laion_clap", "clap_module") for name in sys.modules)


def test_the_towers_load_without_what_they_do_not_run():
    """`import open_clip` takes longer than torch itself, most of it for texts, training and timm; each worker would."""
    code = (
        "import sys; from featurize.encoders import build_encoder; from featurize.settings import *;"
        "build_encoder(ClipSettings(encoder='clip:ViT-S-32/random'));"
        "build_encoder(ClapSettings(encoder='clap:HTSAT-tiny/random'));"
        "print(*sorted({'open_clip', 'timm', 'transformers', 'torchvision', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["torch"]


def test_a_long_segment_gives_its_middle_whatever_the_time():
    """laion-clap takes a random stretch, so the same file gives other features each time."""
    assert middle(20, 30, 4) == (23, 27)
    assert middle(20, 23, 4) == (20, 23)
    assert repeat_pad(np.arange(4.0), 4).tolist() == [0, 1, 2, 3]
    assert repeat_pad(np.arange(3.0), 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 0]


@pytest.fixture(scope="module")
def fusion_checkpoint(tmp_path_factory):
    """LAION's fusion checkpoint in its own form, of the package's own tower, whose fusion has been used a little."""
    own = load_tower(ClapSettings(encoder="clap:HTSAT-tiny/random", seed=4), fusion=True)[0]
    torch.manual_seed(6)
    for name, buffer in own.named_buffers():
        if "fusion_model" in name and buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("fusion") / "630k-fusion.pt"
    torch.save({"state_dict": {f"module.audio_branch.{n}": t for n, t in own.state_dict().items()}}, path)
    return path, own.eval()


@pytest.mark.parametrize("seconds", [3.7, 10.0, 10.005, 12.0, 75.3])
def test_fusion_spectrograms_are_the_packages(seconds, monkeypatch):
    """As laion-clap's get_audio_features, which transformers ships too, but for its dice."""
    config = load_tower(ClapSettings(encoder="clap:HTSAT-tiny/random"), fusion=False)[1]
    sound = np.random.default_rng(1).standard_normal(int(seconds * 48_000)).astype(np.float32)
    if len(sound) > 480_000:
        ours, longer = fusion_mels(np.concatenate([sound[:9], sound]), 9, 9 + len(sound), config)
    else:
        ours, longer = fusion_mels(repeat_pad(sound, 480_000), 0, 480_000, config)
    monkeypatch.setattr("numpy.random.choice", lambda places: places[len(places) // 2])
    extractor = ClapFeatureExtractor(frequency_min=50, truncation="fusion", padding="repeatpad")
    plain, plain_longer = extractor._get_input_mel(sound.astype(np.float64), 480_000, "fusion", "repeatpad")
    assert (longer, ours.shape) == (plain_longer, (4, 1001, 64)) == (seconds > 10.005, (4, 1001, 64))
    np.testing.assert_allclose(ours, plain, atol=2e-2)  # in decibels


def test_fusion_tokens_equal_the_packages_own_forward(media, fusion_checkpoint, tmp_path):
    """Long and short segments in one batch; each row is fused by itself, where laion-clap gathers the long ones."""
    path, own = fusion_checkpoint
    write = np.random.default_rng(2).uniform(-0.5, 0.5, 23 * 48_000).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", write, 48_000)
    encoder = build_encoder(
        ClapSettings(encoder=f"clap:HTSAT-tiny/{path}", fusion=True, segments=(1, 4), stored="float32")
    )
    ours = features(encoder, tmp_path / "noise.wav", "audio")
    sound = read_audio(str(tmp_path / "noise.wav"), [48_000], 60)[48_000]
    count = len(sound)
    parts = [repeat_pad(sound[n * count // 4 : (n + 1) * count // 4], 480_000) for n in range(4)]
    quarters = [fusion_mels(part, 0, 480_000, encoder.config) for part in parts]
    rows = [fusion_mels(sound, 0, count, encoder.config), *quarters]
    assert [longer for _, longer in rows] == [True] + [False] * 4
    sample = {
        "mel_fusion": torch.from_numpy(np.stack([mel for mel, _ in rows])),
        "longer": torch.tensor([longer for _, longer in rows]),
    }
    with torch.no_grad():
        plain = own(sample, device="cpu")["embedding"].double().numpy()
    assert encoder.spec.name == "clap-htsat-tiny-fusion"
    assert close(ours["audio.k1"], plain[:1])
    assert close(ours["audio.k4"], plain[1:])
    assert not close(
        ours["audio.k1"],
        own.forward({**sample, "longer": torch.zeros(5, dtype=torch.bool)})["embedding"][:1].detach().numpy(),
    )


def test_weights_with_and_without_fusion_are_told_apart(fusion_checkpoint, clap_checkpoint):
    """Published names know; a file's tensors tell."""
    assert fuses(ClapSettings(encoder="clap:HTSAT-tiny/630k-audioset-fusion-best"))
    assert not fuses(ClapSettings(encoder="clap:HTSAT-tiny/630k-audioset-best"))
    with pytest.raises(UserError, match="field 'fusion': 630k-fusion-best are weights with fusion"):
        build_encoder(ClapSettings(encoder="clap:HTSAT-tiny/630k-fusion-best", fusion=False))
    with pytest.raises(UserError, match="weights with fusion; set fusion: True"):
        build_encoder(ClapSettings(encoder=f"clap:HTSAT-tiny/{fusion_checkpoint[0]}"))
    with pytest.raises(UserError, match="weights without fusion; set fusion: False"):
        build_encoder(ClapSettings(encoder=f"clap:HTSAT-tiny/{clap_checkpoint[0]}", fusion=True))
    with pytest.raises(UserError, match="HTSAT-base has no weights '630k-best'; accepted: random"):
        build_encoder(ClapSettings(encoder="clap:HTSAT-base/630k-best"))


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
