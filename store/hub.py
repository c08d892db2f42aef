"""Whether a model hub answers: Hugging Face's libraries ask one that does not for half a minute before they say so."""

import os
import socket
from urllib.parse import urlsplit

SECONDS = 3.0


def connects(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((host, port), SECONDS).close()
    except OSError:
        return False
    return True


def hub_host() -> str:
    """The host of the hub that the environment names."""
    return urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""


def hub_answers() -> bool:
    """Whether the hub can be reached; not where HF_HUB_OFFLINE asks for the cache alone."""
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = url.port or (443 if url.scheme == "https" else 80)
    return os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0") and connects(url.hostname or "", port)


def use_cache_without_hub() -> None:
    """Where no hub answers, let its libraries take what their cache has; before they are imported."""
    if not hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"
