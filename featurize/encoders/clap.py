"""CLAP: laion-clap's HTS-AT audio tower alone. One audio token for each even segment, for every K asked for.

`import laion_clap` loads text tokenizers from a hub and puts its own folder on the module path, so its audio tower is
imported here as a module of its own, from the installed package's files.
"""

import importlib
import importlib.util
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.encoders.base import Encoder, MediaCache, Units, is_path, load_state, load_strict, weights_digest
from featurize.grid import segment_bounds
from featurize.media import MediaError, Sound
from featurize.settings import ClapSettings
from store import Arrays, ColumnSpec, Feature, MediaItem, UserError

NUMERICS_VERSION = 1  # raised whenever the same settings give other numbers
HUB = "lukewys/laion_clap"
PUBLISHED = ("630k-best", "630k-audioset-best", "music_audioset_epoch_15_esc_90.14", "music_speech_epoch_15_esc_89.25")


class ClapEncoder(Encoder[ClapSettings]):
    """Segments through HTS-AT; the audio token is the mean of its last hidden state (`embedding`).

    A segment shorter than the tower's 10 s is repeated, then padded with silence, as laion-clap does. Of a longer one
    the middle 10 s are taken, where laion-clap takes a random stretch. Source: laion_clap/training/data.py.
    """

    def __init__(self, settings: ClapSettings) -> None:
        super().__init__(settings)
        self.tower, self.config = load_tower(settings)
        digest = weights_digest(self.tower.state_dict())
        self.tower.eval().requires_grad_(False).to(self.device)
        self.rate = self.config["sample_rate"]
        width = self.tower.num_features
        self.spec = ColumnSpec(
            name=f"clap-{settings.architecture.lower()}",
            modality="audio",
            numerics={
                "version": NUMERICS_VERSION,
                "architecture": settings.architecture,
                "weights": digest,
                "layer": "embedding",
                "preprocessing": {"rate": self.rate, "short": "repeat-pad", "long": "middle"},
                "segments": list(settings.segments),
                "dtype": settings.dtype,
                "batch": settings.batch,
            },
            features={f"audio.k{k}": Feature(shape=(k, width), dtype=settings.stored) for k in settings.segments},
        )

    def prepare(self, item: MediaItem, media: MediaCache) -> Units:
        """Segments as rows float32 [sum of K, clip_samples], those of the first K first."""
        sound = media.sound(self.rate, self.settings.max_seconds)
        if len(sound) < max(self.settings.segments):
            raise MediaError("unreadable", f"{len(sound)} samples of sound are too few for segments")
        bounds = [pair for count in self.settings.segments for pair in segment_bounds(len(sound), count)]
        rows = np.stack([fit(sound, start, stop, self.config["clip_samples"]) for start, stop in bounds])
        seconds = round(len(sound) / self.rate, 6)
        return Units(rows, np.arange(len(rows)), {"seconds": seconds})

    @torch.inference_mode()
    def encode(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Segments float32 [b, clip_samples] to embeddings float32 [b, D].

        The spectrogram is always computed in float32; the transformer in the dtype of the settings.
        """
        tower = self.tower
        mel = tower.logmel_extractor(tower.spectrogram_extractor(torch.from_numpy(rows).to(self.device)))
        image = tower.reshape_wav2img(tower.bn0(mel.transpose(1, 3)).transpose(1, 3))
        with (
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # laion-clap calls meshgrid as it once was called
            embedding = tower.forward_features(image)["embedding"]
        return np.asarray(embedding.float().cpu().numpy())

    def collect(self, rows: NDArray[np.float32], index: NDArray[np.int64]) -> Arrays:
        """audio.kX [X, D] for each X of the settings."""
        arrays: Arrays = {}
        start = 0
        for count in self.settings.segments:
            arrays[f"audio.k{count}"] = self.store(rows[index[start : start + count]])
            start += count
        return arrays


def fit(sound: Sound, start: int, stop: int, length: int) -> NDArray[np.float32]:
    """Make a segment `length` samples long: its middle, or its repetitions and then silence."""
    if stop - start >= length:
        start += (stop - start - length) // 2
        return sound[start : start + length]
    samples = sound[start:stop]
    repeated = np.tile(samples, length // len(samples))
    return np.pad(repeated, (0, length - len(repeated)))


def load_tower(settings: ClapSettings) -> tuple[Any, dict[str, Any]]:
    """The HTS-AT tower alone, in float32 on the CPU, and its audio configuration; no text tower, no network.

    Raises:
        UserError: the architecture or its weights are unknown.
    """
    folder = _package_folder()
    configs = {path.stem: path for path in sorted((folder / "model_configs").glob("HTSAT-*.json"))}
    if settings.architecture not in configs:
        raise UserError(f"field 'encoder': no architecture {settings.architecture!r}; accepted: {', '.join(configs)}")
    config = json.loads(configs[settings.architecture].read_text())["audio_cfg"]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(settings.seed)
        tower = _htsat(folder).create_htsat_model(types.SimpleNamespace(**config))
    if settings.weights != "random":
        state = load_state(_checkpoint(settings))
        prefix = "audio_branch."
        audio = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        load_strict(tower, audio, settings.encoder)
    return tower, config


def _checkpoint(settings: ClapSettings) -> str:
    if is_path(settings.weights):
        return settings.weights
    if settings.weights not in PUBLISHED:
        raise UserError(
            f"field 'encoder': no weights {settings.weights!r}; "
            f"accepted: random, the path of a LAION checkpoint, {', '.join(PUBLISHED)}"
        )
    from huggingface_hub import hf_hub_download

    return str(hf_hub_download(HUB, f"{settings.weights}.pt"))


def _package_folder() -> Path:
    spec = importlib.util.find_spec("laion_clap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("laion-clap is not installed; pip install 'avllm[featurize]'")
    return Path(spec.submodule_search_locations[0]) / "clap_module"


def _htsat(folder: Path) -> Any:
    name = "featurize_laion_clap_module"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return importlib.import_module(f"{name}.htsat")
