"""Captions of segments by a Whisper trained to describe sounds, through transformers, as a column of texts.

Published weights: MU-NLPC/whisper-{tiny,small,large-v2}-audio-captioning (CC BY-NC 4.0). They are plain
WhisperForConditionalGeneration; the decoder begins with Whisper's own prefix, then the name of a style. Their
repository's `model_class.py` adds only that prefix, so its code is not run here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, GenerationMixin, WhisperFeatureExtractor, WhisperForConditionalGeneration

from featurize.encoders.base import Encoder, MediaCache, Units, weights_digest
from featurize.encoders.pretrained import load, load_model, shaping, source_of, vocabulary_digest
from featurize.encoders.segments import by_count, middle, segments_of
from featurize.encoders.whisper import log_mel, preprocessing
from featurize.settings import AudioCaptionSettings
from store import Arrays, ColumnSpec, Feature, MediaItem, UserError

PUBLISHED = {
    f"whisper-{name}": {"mu-nlpc": f"MU-NLPC/whisper-{name}-audio-captioning"} for name in ("tiny", "small", "large-v2")
}
PREFIX = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")


class AudioCaptionEncoder(Encoder[AudioCaptionSettings]):
    """A greedy caption of each equal segment, for every K of the settings; of a segment over 30 s, its middle 30 s."""

    def __init__(self, settings: AudioCaptionSettings) -> None:
        super().__init__(settings)
        source = source_of(settings, PUBLISHED)
        self.model = load_model(WhisperForConditionalGeneration, source)
        self.extractor = load(WhisperFeatureExtractor, source)
        self.tokenizer = load(AutoTokenizer, source)
        self.rate = self.extractor.sampling_rate
        self.prompt = self._prompt()
        digest = weights_digest(self.model.state_dict())
        self.model.eval().requires_grad_(False).to(self.device, self.dtype)
        self.spec = ColumnSpec(
            name=settings.column,
            modality="audio",
            numerics={
                "version": settings.numerics,
                "architecture": settings.architecture,
                "weights": digest,
                "vocabulary": vocabulary_digest(self.tokenizer),
                "preprocessing": preprocessing(self.extractor),
                "segments": list(settings.segments),
                "prompt": list(self.prompt),
                "model": shaping(self.model.config),
                "generation": shaping(self.model.generation_config),
                "max_tokens": settings.max_tokens,
                "dtype": settings.dtype,
                "batch": settings.batch,
            },
            features={f"caption.k{k}": Feature(shape=(k,), dtype="text") for k in settings.segments},
        )

    def prepare(self, item: MediaItem, media: MediaCache) -> Units:
        """Segments as log-mel rows float32 [sum of K, mels, frames], in the order of the K."""
        sound, bounds = segments_of(media, self.rate, self.settings.max_seconds, self.settings.segments)
        cut = [middle(start, end, self.extractor.n_samples) for start, end in bounds]
        rows = np.stack([log_mel(self.extractor, sound[start:end]) for start, end in cut])
        return Units(rows, np.arange(len(rows)), sound.facts)

    @torch.inference_mode()
    def encode(self, rows: NDArray[Any]) -> list[str]:
        """Segments float32 [b, mels, frames] to captions [b]."""
        tokens = GenerationMixin.generate(  # Whisper's own generate would set another prefix
            self.model,
            self.transfers.upload(rows).to(self.dtype),
            attention_mask=torch.ones(len(rows), rows.shape[-1], dtype=torch.long, device=self.device),
            decoder_input_ids=torch.tensor([self.prompt], device=self.device).expand(len(rows), -1),
            max_new_tokens=self.settings.max_tokens,
            do_sample=False,
            num_beams=1,
        )
        texts = self.tokenizer.batch_decode(tokens[:, len(self.prompt) :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def collect(self, rows: Sequence[str], index: NDArray[np.int64]) -> Arrays:
        """caption.kX [X] for each X of the settings."""
        return by_count("caption", np.array(rows, np.str_)[index], self.settings.segments)

    def _prompt(self) -> list[int]:
        words = self.tokenizer.get_vocab()
        if any(word not in words for word in PREFIX):
            raise UserError(f"{self.settings.encoder}: its tokenizer lacks {', '.join(PREFIX)}; not Whisper's")
        style: list[int] = self.tokenizer(self.settings.style, add_special_tokens=False)["input_ids"]
        room = self.model.config.max_target_positions - len(PREFIX) - len(style)
        if self.settings.max_tokens > room:
            raise UserError(f"field 'max_tokens': {self.settings.max_tokens}; accepted: at most {room}")
        return [*(words[word] for word in PREFIX), *style]
