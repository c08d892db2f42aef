"""Frozen encoders. A new family: settings in featurize/settings.py, a class here, an equality test."""

from typing import Any

from featurize.encoders.base import Encoder, MediaCache, Units
from featurize.settings import ClapSettings, EncoderSettings

__all__ = ["Encoder", "MediaCache", "Units", "build_encoder"]


def build_encoder(settings: EncoderSettings) -> Encoder[Any]:
    """Load an encoder; the packages of a family are imported only when it is asked for."""
    if isinstance(settings, ClapSettings):
        from featurize.encoders.clap import ClapEncoder

        return ClapEncoder(settings)
    from featurize.encoders.clip import ClipEncoder

    return ClipEncoder(settings)  # type: ignore[arg-type]
