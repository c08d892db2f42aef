"""Frozen encoders. A new family: settings in featurize/settings.py, a class here, an equality test."""

import importlib
from collections.abc import Sequence
from typing import Any

from featurize.encoders.base import Encoder, MediaCache, Units
from featurize.hub import check_hub
from featurize.settings import (
    AudioCaptionSettings,
    BlipSettings,
    ClapSettings,
    ClipSettings,
    EncoderSettings,
    WhisperSettings,
)
from store import UserError

__all__ = ["Encoder", "MediaCache", "Units", "build_encoder", "build_encoders"]

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
    check_hub([settings])
    module, name = CLASSES[type(settings)]
    try:
        family = importlib.import_module(f"featurize.encoders.{module}")
    except ImportError as error:
        raise UserError(f"{settings.encoder}: {error}; pip install 'avllm[featurize]'") from None
    encoder: Encoder[Any] = getattr(family, name)(settings)
    return encoder


def build_encoders(columns: Sequence[EncoderSettings]) -> list[Encoder[Any]]:
    """Load the encoders of a configuration, in order.

    Raises:
        UserError: as `build_encoder`; names the field by its place in the configuration.
    """
    encoders = []
    for number, settings in enumerate(columns):
        try:
            encoders.append(build_encoder(settings))
        except UserError as error:
            raise UserError(str(error).replace("field '", f"field 'columns.{number}.", 1)) from None
    return encoders
