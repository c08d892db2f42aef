"""BLIP: captions of frames, through transformers, as a column of texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessor

from featurize.encoders.base import Encoder, MediaCache, Units, weights_digest
from featurize.encoders.pretrained import load, load_model, shaping, source_of, vocabulary_digest
from featurize.settings import BlipSettings
from store import Arrays, ColumnSpec, Feature, MediaItem

PUBLISHED = {name: {"salesforce": f"Salesforce/blip-image-captioning-{name}"} for name in ("base", "large")}


class BlipEncoder(Encoder[BlipSettings]):
    """A greedy caption of each frame of the grid. Source: paper, section 4 (curation)."""

    def __init__(self, settings: BlipSettings) -> None:
        super().__init__(settings)
        source = source_of(settings, PUBLISHED)
        self.model = load_model(BlipForConditionalGeneration, source)
        self.tokenizer = load(AutoTokenizer, source)
        processor = load(BlipImageProcessor, source)
        self.mean, self.std = (np.float32(x).reshape(1, 3, 1, 1) for x in (processor.image_mean, processor.image_std))
        digest = weights_digest(self.model.state_dict())
        self.model.eval().requires_grad_(False).to(self.device, self.dtype)
        config = self.model.config
        self.size, self.frame_count = int(config.vision_config.image_size), settings.frames
        self.spec = ColumnSpec(
            name=settings.column,
            modality="visual",
            numerics={
                "version": settings.numerics,
                "architecture": settings.architecture,
                "weights": digest,
                "vocabulary": vocabulary_digest(self.tokenizer),
                "preprocessing": {
                    "resize": "stretch-bicubic",
                    "size": self.size,
                    "mean": list(processor.image_mean),
                    "std": list(processor.image_std),
                },
                "grid": "floor(i*n/T)",
                "frames": settings.frames,
                "model": [shaping(c) for c in (config.vision_config, config.text_config)],
                "generation": shaping(self.model.text_decoder.generation_config),
                "max_tokens": settings.max_tokens,
                "dtype": settings.dtype,
                "batch": settings.batch,
            },
            features={"caption": Feature(shape=(None,), dtype="text")},
        )

    def prepare(self, item: MediaItem, media: MediaCache) -> Units:
        """Frames as uint8 rows [U, size, size, 3]."""
        frames = media.frames(self.size, self.frame_count)
        return Units(frames.pixels[self.size], frames.index, frames.facts)

    @torch.inference_mode()
    def encode(self, rows: NDArray[Any]) -> list[str]:
        """Frames uint8 [b, size, size, 3] to captions [b]."""
        pixels = (rows.transpose(0, 3, 1, 2).astype(np.float32) / 255 - self.mean) / self.std
        tokens = self.model.generate(
            self.transfers.upload(pixels).to(self.dtype),
            max_new_tokens=self.settings.max_tokens,
            do_sample=False,
            num_beams=1,
        )
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def collect(self, rows: Sequence[str], index: NDArray[np.int64]) -> Arrays:
        """A caption for each place of the grid [F]; a still has one."""
        return {"caption": np.array(rows, np.str_)[index]}
