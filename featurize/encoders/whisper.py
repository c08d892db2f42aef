"""Whisper's encoder, through transformers. One audio token per equal segment, for every K of the settings."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder as Tower

from featurize.encoders.base import MediaCache, TokenEncoder, Units, weights_digest
from featurize.encoders.pretrained import load, load_model, source_of
from featurize.encoders.segments import by_count, middle, segments_of
from featurize.settings import WhisperSettings
from store import Arrays, ColumnSpec, Feature, MediaItem, UserError

ARCHITECTURES = {  # of the published configurations: width, layers, heads
    "tiny": (384, 4, 6),
    "base": (512, 6, 8),
    "small": (768, 12, 12),
}
PUBLISHED = {name: {"openai": f"openai/whisper-{name}"} for name in ARCHITECTURES}


class WhisperEncoder(TokenEncoder[WhisperSettings]):
    """Segments through Whisper's encoder; the audio token is the mean of the hidden states that cover the segment.

    The encoder always takes 30 s and gives a state per 20 ms. A shorter segment is padded with silence, whose states
    are left out of the mean; of a longer one the middle 30 s are taken.
    """

    def __init__(self, settings: WhisperSettings) -> None:
        super().__init__(settings)
        self.tower, self.extractor = load_tower(settings)
        digest = weights_digest(self.tower.state_dict())
        self.tower.eval().requires_grad_(False).to(self.device, self.dtype)
        self.rate = self.extractor.sampling_rate
        self.layer = self._layer(settings.layer)
        width = self.tower.config.d_model
        self.spec = ColumnSpec(
            name=settings.column,
            modality="audio",
            numerics={
                "version": settings.numerics,
                "architecture": settings.architecture,
                "weights": digest,
                "heads": self.tower.config.encoder_attention_heads,
                "layer": self.layer,
                "pooling": "mean of the states that hear the segment",
                "preprocessing": preprocessing(self.extractor),
                "segments": list(settings.segments),
                "dtype": settings.dtype,
                "batch": settings.batch,
            },
            features={f"audio.k{k}": Feature(shape=(k, width), dtype=settings.stored) for k in settings.segments},
        )

    def prepare(self, item: MediaItem, media: MediaCache) -> Units:
        """Segments as rows of `mel` float32 [mels, 3000] and `states` int64, in the order of the K."""
        sound, bounds = segments_of(media, self.rate, self.settings.max_seconds, self.settings.segments)
        cut = [middle(start, end, self.extractor.n_samples) for start, end in bounds]
        mels = [log_mel(self.extractor, sound[start:end]) for start, end in cut]
        rows = np.empty(len(mels), [("mel", np.float32, mels[0].shape), ("states", np.int64)])
        rows["mel"] = mels
        samples = self.extractor.n_samples // self.tower.config.max_source_positions  # that one state covers
        rows["states"] = [math.ceil((end - start) / samples) for start, end in cut]
        return Units(rows, np.arange(len(rows)), sound.facts)

    @torch.inference_mode()
    def encode(self, rows: NDArray[Any]) -> torch.Tensor:
        """Segments [b] to tokens float32 [b, D]."""
        mel = self.transfers.upload(rows["mel"]).to(self.dtype)
        outputs = self.tower(mel, output_hidden_states=True)
        last = self.layer == len(self.tower.layers)
        states = (outputs.last_hidden_state if last else outputs.hidden_states[self.layer]).float()
        counts = self.transfers.upload(rows["states"])[:, None]
        heard = torch.arange(states.shape[1], device=self.device)[None] < counts
        token = (states * heard[..., None]).sum(1) / counts
        return torch.as_tensor(token)

    def collect(self, rows: Sequence[torch.Tensor], index: NDArray[np.int64]) -> Arrays:
        """audio.kX [X, D] for each X of the settings."""
        return by_count("audio", self.store(torch.stack(list(rows))[index]), self.settings.segments)

    def _layer(self, layer: int) -> int:
        count = len(self.tower.layers)
        chosen = count + 1 + layer if layer < 0 else layer
        if not 1 <= chosen <= count:
            raise UserError(f"field 'layer': {layer}; accepted: 1 to {count}, or -1 to -{count}")
        return chosen


def log_mel(extractor: Any, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """A segment's log-mel spectrogram, float32 [mels, frames], padded with silence."""
    features = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="np")["input_features"]
    return np.asarray(features[0], np.float32)


def preprocessing(extractor: Any) -> dict[str, Any]:
    """How sound becomes a spectrogram, for a column's spec."""
    return {
        "rate": extractor.sampling_rate,
        "seconds": extractor.chunk_length,
        "mels": extractor.feature_size,
        "hop": extractor.hop_length,
        "window": extractor.n_fft,
        "short": "silence",
        "long": "middle",
    }


def load_tower(settings: WhisperSettings) -> tuple[Any, Any]:
    """The encoder alone, in float32 on the CPU, and the extractor of its spectrograms.

    Raises:
        UserError: the architecture or its weights are unknown.
    """
    name = settings.architecture
    if settings.weights == "random":
        if name not in ARCHITECTURES:
            raise UserError(f"field 'encoder': no architecture {name!r}; accepted: {', '.join(ARCHITECTURES)}")
        width, layers, heads = ARCHITECTURES[name]
        config = WhisperConfig(
            d_model=width, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * width
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return Tower(config), WhisperFeatureExtractor()  # type: ignore[no-untyped-call]
    source = source_of(settings, PUBLISHED, "random, ")
    tower = load_model(WhisperModel, source).encoder
    shape = (tower.config.d_model, tower.config.encoder_layers, tower.config.encoder_attention_heads)
    if ARCHITECTURES.get(name, shape) != shape:
        raise UserError(f"{settings.encoder}: not the weights of this architecture: width, layers, heads are {shape}")
    return tower, load(WhisperFeatureExtractor, source)
