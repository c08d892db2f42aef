"""An OpenAI-style HTTP server on a trained checkpoint."""

from serve.api.settings import ApiSettings

__all__ = ["ApiSettings"]
