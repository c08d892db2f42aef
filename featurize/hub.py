"""Encoders that come from a model hub."""

from collections.abc import Iterable
from pathlib import Path

from featurize.settings import EncoderSettings
from store.hub import use_cache_without_hub


def check_hub(encoders: Iterable[EncoderSettings]) -> None:
    """Look only into the cache for published weights if no hub answers."""
    if any(settings.weights != "random" and not Path(settings.weights).exists() for settings in encoders):
        use_cache_without_hub()
