"""Whisper's tokens and the captions of BLIP and Whisper equal what the transformers package gives by itself."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    GenerationMixin,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from featurize.encoders import build_encoder
from featurize.media import read_audio, read_video
from featurize.prepare import ItemMedia
from featurize.settings import AudioCaptionSettings, BlipSettings, ClapSettings, ClipSettings, WhisperSettings
from featurize.shard_job import encode_shard
from store import ColumnReader, MediaItem, Storage, UserError, create_column
from trainer.features import Grid

PREFIX = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


def item(path, kind="video", position=0):
    return MediaItem(key=path.name.replace(".", "-"), uri=str(path), kind=kind, shard=0, position=position, bytes=None)


def features(encoder, path, kind="video"):
    units = encoder.prepare(item(path, kind), ItemMedia(item(path, kind), [encoder]))
    size = encoder.settings.batch
    encoded = [encoder.encode_padded(units.rows[i : i + size]) for i in range(0, len(units.rows), size)]
    return encoder.collect(list(itertools.chain(*encoded)), units.index)


@pytest.fixture(scope="module")
def long_sound(tmp_path_factory):
    """40 s of sound that never sounds the same twice."""
    import soundfile

    path = tmp_path_factory.mktemp("long") / "long.wav"
    seconds = np.arange(40 * 16_000) / 16_000
    soundfile.write(path, (0.4 * np.sin(2 * np.pi * (100 + 20 * seconds) * seconds)).astype(np.float32), 16_000)
    return path


# Whisper's tokens


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """Whisper tiny with a small decoder, as save_pretrained writes it."""
    torch.manual_seed(3)
    config = WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536, decoder_layers=1,
        vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder, model.model.encoder


def heard(tower, piece, blocks):
    """The mean over the states that hear a piece, by the package's own layers."""
    mel = WhisperFeatureExtractor()(piece, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        if blocks == len(tower.layers):
            states = tower(mel).last_hidden_state
        else:
            gelu = torch.nn.functional.gelu
            states = gelu(tower.conv2(gelu(tower.conv1(mel)))).permute(0, 2, 1) + tower.embed_positions.weight
            for block in tower.layers[:blocks]:
                states = block(states, None)
    return states[0, : math.ceil(len(piece) / 320)].mean(0).numpy()


@pytest.mark.parametrize(("layer", "blocks"), [(-1, 4), (-2, 3), (1, 1)])
def test_whisper_tokens_equal_the_packages_own_forward(media, whisper, layer, blocks):
    """The mean is over the states that hear the segment; over all 1500 a short one would be mostly silence."""
    folder, tower = whisper
    encoder = build_encoder(
        WhisperSettings(encoder=f"whisper:tiny/{folder}", layer=layer, segments=(1, 2), stored="float32", batch=3)
    )
    ours = features(encoder, media / "red-loud.mp4")
    sound = read_audio(str(media / "red-loud.mp4"), [16_000], 60)[16_000]
    count = len(sound)
    np.testing.assert_allclose(ours["audio.k1"][0], heard(tower, sound[0:count], blocks), rtol=1e-3, atol=1e-4)
    for row, (a, b) in enumerate([(0, count // 2), (count // 2, count)]):
        np.testing.assert_allclose(ours["audio.k2"][row], heard(tower, sound[a:b], blocks), rtol=1e-3, atol=1e-4)
    assert encoder.spec.features["audio.k2"].shape == (2, 384)


def test_of_a_long_segment_whisper_hears_the_middle(whisper, long_sound):
    """Whisper takes 30 s; of 40 s the middle ones are the same every time."""
    folder, tower = whisper
    encoder = build_encoder(WhisperSettings(encoder=f"whisper:tiny/{folder}", segments=(1,), stored="float32", batch=1))
    sound = read_audio(str(long_sound), [16_000], 60)[16_000]
    ours = features(encoder, long_sound, "audio")["audio.k1"][0]
    np.testing.assert_allclose(ours, heard(tower, sound[80_000:560_000], 4), rtol=1e-3, atol=1e-4)


def test_random_whispers_have_the_published_shapes():
    """The ablation's three sizes build without a hub."""
    widths = {}
    for name in ("tiny", "base", "small"):
        tower = build_encoder(WhisperSettings(encoder=f"whisper:{name}/random")).tower
        widths[name] = (tower.config.d_model, len(tower.layers), tower.config.num_mel_bins)
    assert widths == {"tiny": (384, 4, 80), "base": (512, 6, 80), "small": (768, 12, 80)}


# captions


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A small BLIP whose random weights say other things of other frames."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"word{n}" for n in range(94))]
    text = {
        "vocab_size": 100, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40, "initializer_range": 0.5,
        "bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 2, "sep_token_id": 3,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8, "initializer_range": 0.5,
    }  # fmt: skip
    torch.manual_seed(1)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).eval()
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder, model


def test_blips_captions_equal_plain_generate(media, blip):
    """Frame by frame with the package's own processor and generate; ours come from filled-up batches of three."""
    folder, model = blip
    encoder = build_encoder(BlipSettings(encoder=f"blip:small/{folder}", frames=8, max_tokens=7, batch=3))
    ours = features(encoder, media / "red-loud.mp4")["caption"]
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), BlipImageProcessor.from_pretrained(folder)
    frames = read_video(str(media / "red-loud.mp4"), [32], 8)
    plain = []
    for frame in frames.pixels[32][frames.index]:
        pixels = processor(torch.from_numpy(frame).permute(2, 0, 1), return_tensors="pt").pixel_values
        tokens = model.generate(pixels, max_new_tokens=7, do_sample=False, num_beams=1)
        plain.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    assert ours.tolist() == plain
    assert len(set(plain)) > 1
    assert all(plain)


@pytest.fixture(scope="module")
def audio_captioner(tmp_path_factory):
    """A small Whisper with a tokenizer of Whisper's class, as the published captioners are saved."""
    folder = tmp_path_factory.mktemp("audiocaption")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(["clotho > caption: rain falls on a roof and thunder rolls"], trainer)
    trained.save(str(folder / "bpe.json"))
    bpe = json.loads((folder / "bpe.json").read_text())["model"]
    vocab = {**bpe["vocab"], "<|endoftext|>": len(bpe["vocab"])}
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[tuple(m) for m in bpe["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": PREFIX})
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    torch.manual_seed(2)
    config = WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=64, vocab_size=len(tokenizer),
        pad_token_id=end, bos_token_id=end, eos_token_id=end, init_std=0.5,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids(PREFIX[0]),
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder, model


def test_audio_captions_equal_plain_generate(media, audio_captioner):
    """The decoder begins with Whisper's prefix and a style, and the caption is what comes after them."""
    folder, model = audio_captioner
    encoder = build_encoder(
        AudioCaptionSettings(encoder=f"audiocaption:small/{folder}", segments=(1, 4), max_tokens=6, batch=3)
    )
    ours = features(encoder, media / "red-loud.mp4")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = [*PREFIX, *tokenizer.tokenize("clotho > caption: ")]
    prompt = torch.tensor([tokenizer.convert_tokens_to_ids(words)])
    sound = read_audio(str(media / "red-loud.mp4"), [16_000], 60)[16_000]
    plain = []
    for n in range(4):
        piece = sound[n * len(sound) // 4 : (n + 1) * len(sound) // 4]
        mel = WhisperFeatureExtractor()(piece, sampling_rate=16_000, return_tensors="pt").input_features
        tokens = GenerationMixin.generate(model, mel, decoder_input_ids=prompt, max_new_tokens=6, do_sample=False)
        plain.append(tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True).strip())
    assert ours["caption.k4"].tolist() == plain
    assert ours["caption.k1"].shape == (1,)
    assert len(set(plain)) > 1


def test_captions_are_columns_of_a_store(media, blip, audio_captioner, tmp_path):
    """Curation reads captions as it reads any column: by key, in the grid's order, failures with their reasons."""
    encoders = [
        build_encoder(BlipSettings(encoder=f"blip:small/{blip[0]}", frames=4, max_tokens=5, batch=4)),
        build_encoder(AudioCaptionSettings(encoder=f"audiocaption:small/{audio_captioner[0]}", max_tokens=5, batch=4)),
    ]
    storage = Storage(tmp_path)
    items = [
        item(media / name, kind, n)
        for n, (name, kind) in enumerate([("red-loud.mp4", "video"), ("blue.png", "image"), ("low.wav", "audio")])
    ]
    columns = [create_column(storage, encoder.spec, {}) for encoder in encoders]
    encode_shard(items, encoders, columns, threads=1)
    seen, told = (ColumnReader(column) for column in columns)
    assert {key: seen.read(key)["caption"].shape for key in ("red-loud-mp4", "blue-png")} == {
        "red-loud-mp4": (4,),
        "blue-png": (1,),
    }
    assert seen.keys() == ["red-loud-mp4", "blue-png"]
    assert seen.failed["low-wav"].code == told.failed["blue-png"].code == "absent"
    with pytest.raises(UserError, match="does not hold temporal; it holds caption"):
        Grid(frames=4, segments=4).widths({"visual": seen.column.spec})
    expected = features(encoders[1], media / "low.wav", "audio")["caption.k4"]
    np.testing.assert_array_equal(told.read("low-wav")["caption.k4"], expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captions_fingerprints_follow_all_that_shapes_them(blip, audio_captioner, tmp_path, dtype):
    """Captions of other weights, words or lengths are another column; and every dtype runs."""
    frames, folder = np.zeros((2, 32, 32, 3), np.uint8), audio_captioner[0]
    seen = build_encoder(BlipSettings(encoder=f"blip:small/{blip[0]}", max_tokens=3, batch=2, dtype=dtype))
    told = build_encoder(
        AudioCaptionSettings(encoder=f"audiocaption:small/{folder}", max_tokens=3, batch=2, dtype=dtype)
    )
    assert all(len(e.encode(r)) == 2 for e, r in ((seen, frames), (told, np.zeros((2, 80, 3000), np.float32))))
    if dtype != "float32":
        return
    own = json.loads((folder / "generation_config.json").read_text())
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other/generation_config.json").write_text(json.dumps({**own, "suppress_tokens": [7, 8]}))
    base = {"encoder": f"audiocaption:small/{folder}", "max_tokens": 3, "batch": 2}
    changes = [{}, {"style": "audiocaps > caption: "}, {"max_tokens": 4}, {"batch": 3}, {"segments": (2,)},
               {"dtype": "bfloat16"}, {"encoder": f"audiocaption:small/{tmp_path / 'other'}"}]  # fmt: skip
    prints = [build_encoder(AudioCaptionSettings(**{**base, **change})).spec.fingerprint for change in changes]
    assert len(set(prints)) == len(changes)
    assert prints[0] == told.spec.fingerprint
    base = {"encoder": f"blip:small/{blip[0]}", "max_tokens": 3, "batch": 2}
    changes = [{}, {"frames": 4}, {"max_tokens": 4}, {"batch": 3}, {"dtype": "bfloat16"}]
    prints = [build_encoder(BlipSettings(**{**base, **change})).spec.fingerprint for change in changes]
    assert len(set(prints)) == len(changes)
    assert prints[0] == seen.spec.fingerprint


# names and weights


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (WhisperSettings(encoder="whisper:tniy/random"), "no architecture 'tniy'; accepted: tiny, base, small"),
        (WhisperSettings(encoder="whisper:tniy/openai"), "no architecture 'tniy'; accepted: tiny, base, small"),
        (
            WhisperSettings(encoder="whisper:tiny/opnai"),
            "no weights 'opnai'; accepted: random, a local folder, .*openai",
        ),
        (WhisperSettings(encoder="whisper:tiny//nowhere"), "/nowhere: no such folder"),
        (WhisperSettings(encoder="whisper:tiny/random", layer=5), "field 'layer': 5; accepted: 1 to 4"),
        (BlipSettings(encoder="blip:huge/salesforce"), "no architecture 'huge'; accepted: base, large"),
        (BlipSettings(encoder="blip:base/random"), "no weights 'random'; accepted: a local folder"),
        (AudioCaptionSettings(encoder="audiocaption:tiny/mu-nlpc"), "no architecture 'tiny'; accepted: whisper-tiny"),
        (WhisperSettings(encoder="whisper:tiny/openai"), "openai/whisper-tiny: no hub answers"),
        (
            ClipSettings(encoder="clip:ViT-L-14/openai"),
            "ViT-L-14/openai: no hub answers",
        ),
        (
            ClapSettings(encoder="clap:HTSAT-tiny/630k-audioset-best"),
            "best: no hub answers",
        ),
    ],
)
def test_names_that_cannot_be_had_are_one_line(settings, message, monkeypatch):
    """A misspelt name fails at once, with what there is; the last ones are a hub that cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message) as caught:
        build_encoder(settings)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_refused(whisper, blip, audio_captioner, tmp_path):
    """transformers draws missing weights at random and says so in a log; a column of them would be noise."""
    with pytest.raises(UserError, match="not the weights of this architecture: width, layers, heads are"):
        build_encoder(WhisperSettings(encoder=f"whisper:base/{whisper[0]}"))
    with pytest.raises(UserError, match="not the weights of BlipForConditionalGeneration"):
        build_encoder(BlipSettings(encoder=f"blip:small/{whisper[0]}"))
    with pytest.raises(UserError, match="max_tokens': 440; accepted: at most"):
        build_encoder(AudioCaptionSettings(encoder=f"audiocaption:small/{audio_captioner[0]}", max_tokens=440))
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((whisper[0] / "config.json").read_text())
    state = load_file(whisper[0] / "model.safetensors")
    left_out = next(name for name in state if name.endswith("encoder.layers.2.fc1.weight"))
    save_file({n: t for n, t in state.items() if n != left_out}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors differ, first encoder\.layers\.2\.fc1\.weight"):
        build_encoder(WhisperSettings(encoder=f"whisper:tiny/{tmp_path}"))


@pytest.mark.hub
def test_published_weights_load():
    for settings in (
        WhisperSettings(encoder="whisper:tiny/openai"),
        BlipSettings(encoder="blip:base/salesforce"),
        AudioCaptionSettings(encoder="audiocaption:whisper-tiny/mu-nlpc"),
    ):
        build_encoder(settings)
