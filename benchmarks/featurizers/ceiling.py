"""The ceiling: the encoder alone, on rows already in memory.

python -m benchmarks.featurizers.ceiling CONFIG.yaml CLIPS
"""

from typing import Any

import numpy as np
import typer

from featurize.encoders import Encoder, build_encoder
from featurize.settings import ClapSettings, FeaturizeConfig
from store import load_settings
from store.console import run


def encode(config: str, clips: int) -> None:
    """Encode as many rows as so many clips have, in the batches of `featurize run`."""
    (settings,) = load_settings(FeaturizeConfig, config).columns
    encoder = build_encoder(settings)
    rows = _rows(encoder)
    of_clip = settings.segments[-1] if isinstance(settings, ClapSettings) else encoder.frame_count
    for start in range(0, clips * of_clip, len(rows)):
        encoder.encode(rows[: clips * of_clip - start])


def _rows(encoder: Encoder[Any]) -> "np.ndarray[Any, Any]":
    """A batch of random pixels, or of random samples of ten seconds."""
    rng, batch = np.random.default_rng(0), encoder.settings.batch
    if encoder.size:
        return rng.integers(256, size=(batch, encoder.size, encoder.size, 3), dtype=np.uint8)
    return rng.uniform(-1, 1, (batch, 10 * encoder.rate)).astype(np.float32)


if __name__ == "__main__":
    run(lambda: typer.run(encode))
