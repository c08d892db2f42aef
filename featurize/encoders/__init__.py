"""Frozen encoders. A new family: settings in featurize/settings.py, a class here, an equality test."""

import importlib
from typing import Any

from featurize.encoders.base import Encoder, MediaCache, Units
from featurize.settings import (
    AudioCaptionSettings,
    BlipSettings,
    ClapSettings,
    ClipSettings,
    EncoderSettings,
    WhisperSettings,
)
from store import UserError

__all__ = ["Encoder", "MediaCache", "Units", "build_encoder"]

CLASSES: dict[type[EncoderSettings], tuple[str, str]] = {
    ClipSettings: ("clip", "ClipEncoder"),
    ClapSettings: ("clap", "ClapEncoder"),
    WhisperSettings: ("whisper", "WhisperEncoder"),
    BlipSettings: ("blip", "BlipEncoder"),
    AudioCaptionSettings: ("audiocaption", "AudioCaptionEncoder"),
}


def build_encoder(settings: EncoderSettings) -> Encoder[Any]:
    """Load an encoder; a family's packages are imported only when it is used.

    Raises:
        UserError: its package is not installed, or its architecture or weights are unknown.
    """
    module, name = CLASSES[type(settings)]
    try:
        family = importlib.import_module(f"featurize.encoders.{module}")
    except ImportError as error:
        raise UserError(f"{settings.encoder}: {error}; pip install 'avllm[featurize]'") from None
    encoder: Encoder[Any] = getattr(family, name)(settings)
    return encoder
