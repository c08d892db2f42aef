"""CLAP: laion-clap's HTS-AT audio tower alone. One audio token per equal segment, for every K of the settings.

Only single modules are imported: `import laion_clap` loads text tokenizers from a hub and extends `sys.path`.
"""

import itertools
import json
import types
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.encoders.base import MediaCache, TokenEncoder, Units, download, load_state, load_strict, weights_digest
from featurize.encoders.fusion import fuse_each, fusion_mels
from featurize.encoders.modules import folder_of, module_of
from featurize.encoders.segments import by_count, middle, segments_of
from featurize.media import Sound
from featurize.settings import FUSED_CLAP, ClapSettings, is_path
from store import Arrays, ColumnSpec, Feature, MediaItem, UserError

PACKAGE = folder_of("laion_clap") / "clap_module"
htsat = module_of(PACKAGE, "htsat")
HUB = "lukewys/laion_clap"
PUBLISHED = {
    "HTSAT-tiny": ("630k-best", "630k-audioset-best", *FUSED_CLAP),
    "HTSAT-base": ("music_audioset_epoch_15_esc_90.14", "music_speech_epoch_15_esc_89.25"),
}


class ClapEncoder(TokenEncoder[ClapSettings]):
    """Segments through HTS-AT; the audio token is the mean of its last hidden state (`embedding`).

    A segment shorter than the tower's 10 s is repeated, then padded with silence, as laion-clap does. Of a longer one
    the middle 10 s are taken, where laion-clap takes a random stretch; with fusion weights, the whole and three
    stretches of it (`featurize.encoders.fusion`). Source: laion_clap/training/data.py.
    """

    def __init__(self, settings: ClapSettings) -> None:
        super().__init__(settings)
        self.fusion = fuses(settings)
        self.tower, self.config = load_tower(settings, self.fusion)
        digest = weights_digest(self.tower.state_dict())
        self.tower.eval().requires_grad_(False).to(self.device)
        if self.fusion:
            fuse_each(self.tower.patch_embed)
        self.rate = self.config["sample_rate"]
        width = self.tower.num_features
        self.spec = ColumnSpec(
            name=settings.column,
            modality="audio",
            numerics={
                "version": settings.numerics,
                "architecture": settings.architecture,
                "weights": digest,
                "layer": "embedding",
                "preprocessing": {
                    "rate": self.rate,
                    "short": "repeat-pad",
                    "long": "whole-and-middles-of-thirds" if self.fusion else "middle",
                },
                "segments": list(settings.segments),
                "dtype": settings.dtype,
                "batch": settings.batch,
            },
            features={f"audio.k{k}": Feature(shape=(k, width), dtype=settings.stored) for k in settings.segments},
        )

    def prepare(self, item: MediaItem, media: MediaCache) -> Units:
        """Segments as rows, in the order of the K.

        Rows are float32 [clip_samples]; with fusion weights `mel` float32 [4, frames, mels] and `longer` bool.
        """
        sound, bounds = segments_of(media, self.rate, self.settings.max_seconds, self.settings.segments)
        rows = self._fused(sound, bounds) if self.fusion else self._plain(sound, bounds)
        return Units(rows, np.arange(len(rows)), sound.facts)

    def _plain(self, sound: Sound, bounds: list[tuple[int, int]]) -> NDArray[Any]:
        length = self.config["clip_samples"]
        return np.stack([repeat_pad(sound[a:b], length) for a, b in (middle(*segment, length) for segment in bounds)])

    def _fused(self, sound: Sound, bounds: list[tuple[int, int]]) -> NDArray[Any]:
        pairs = [self._mels(sound, start, end) for start, end in bounds]
        rows = np.empty(len(pairs), [("mel", np.float32, pairs[0][0].shape), ("longer", np.bool_)])
        rows["mel"], rows["longer"] = [mel for mel, _ in pairs], [longer for _, longer in pairs]
        return rows

    def _mels(self, sound: Sound, start: int, end: int) -> tuple[NDArray[np.float32], bool]:
        length = self.config["clip_samples"]
        if end - start > length:
            return fusion_mels(sound, start, end, self.config)
        return fusion_mels(repeat_pad(sound[start:end], length), 0, length, self.config)

    @torch.inference_mode()
    def encode(self, rows: NDArray[Any]) -> torch.Tensor:
        """Segments [b] to embeddings float32 [b, D].

        The spectrogram is always computed in float32; the transformer in the dtype of the settings.
        """
        tower = self.tower
        if self.fusion:
            mel = self.transfers.upload(rows["mel"].copy())  # torch takes no strides of odd bytes, as one row has
            longer = self.transfers.upload(np.flatnonzero(rows["longer"]))
        else:
            mel = tower.logmel_extractor(tower.spectrogram_extractor(self.transfers.upload(rows)))
            longer = None
        image = tower.reshape_wav2img(tower.bn0(mel.transpose(1, 3)).transpose(1, 3))
        with (
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # laion-clap calls meshgrid in a deprecated way
            embedding = tower.forward_features(image, longer_idx=longer)["embedding"]
        return torch.as_tensor(embedding.float())

    def collect(self, rows: Sequence[torch.Tensor], index: NDArray[np.int64]) -> Arrays:
        """audio.kX [X, D] for each X of the settings."""
        return by_count("audio", self.store(torch.stack(list(rows))[index]), self.settings.segments)


def repeat_pad(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Extend a segment to `length` samples: whole repetitions of it, then silence."""
    repeated = np.tile(samples, length // len(samples))
    return np.pad(repeated, (0, length - len(repeated)))


def fuses(settings: ClapSettings) -> bool:
    """Whether the tower is the one with feature fusion.

    Raises:
        UserError: the setting and the published weights disagree.
    """
    published = settings.weights in FUSED_CLAP
    known = published or settings.weights in itertools.chain(*PUBLISHED.values())
    if known and settings.fusion not in (None, published):
        raise UserError(f"field 'fusion': {settings.weights} are weights {'with' if published else 'without'} fusion")
    return settings.fuses


def load_tower(settings: ClapSettings, fusion: bool) -> tuple[Any, dict[str, Any]]:
    """The HTS-AT tower alone, in float32 on the CPU, and its audio configuration; no text tower, no network.

    Raises:
        UserError: the architecture or its weights are unknown.
    """
    configs = {path.stem: path for path in sorted((PACKAGE / "model_configs").glob("HTSAT-*.json"))}
    if settings.architecture not in configs:
        raise UserError(f"field 'encoder': no architecture {settings.architecture!r}; accepted: {', '.join(configs)}")
    config = json.loads(configs[settings.architecture].read_text())["audio_cfg"]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(settings.seed)
        tower = htsat.create_htsat_model(types.SimpleNamespace(**config), fusion, "aff_2d" if fusion else "None")
    if settings.weights != "random":
        state = load_state(_checkpoint(settings))
        prefix = "audio_branch."
        audio = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if any(".fusion_model." in name for name in audio) != fusion:
            has = "without" if fusion else "with"
            raise UserError(f"field 'fusion': {settings.encoder} are weights {has} fusion; set fusion: {not fusion}")
        load_strict(tower, audio, settings.encoder)
    return tower, config


def _checkpoint(settings: ClapSettings) -> str:
    if is_path(settings.weights):
        return settings.weights
    names = PUBLISHED.get(settings.architecture, ())
    if settings.weights not in names:
        raise UserError(
            f"field 'encoder': {settings.architecture} has no weights {settings.weights!r}; "
            f"accepted: {', '.join(('random', 'the path of a LAION checkpoint', *names))}"
        )
    from huggingface_hub import hf_hub_download

    return download(settings.encoder, lambda: hf_hub_download(HUB, f"{settings.weights}.pt"))
