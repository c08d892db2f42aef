"""Whether a model hub answers: Hugging Face's packages ask one that does not for a minute before they say so."""

import os
import socket
import sys
from urllib.parse import urlsplit
from urllib.request import getproxies

OFFLINE = "HF_HUB_OFFLINE"
SECONDS = 3.0  # of a connection


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
    """Whether the hub accepts a connection; behind a proxy, which may answer for it, it is taken to."""
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if {url.scheme, "all"} & getproxies().keys():
        return True
    return connects(hub_host(), url.port or (443 if url.scheme == "https" else 80))


def is_offline() -> bool:
    """Whether only what is cached can be had."""
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def use_cache_without_hub() -> None:
    """Where no hub answers, let its packages take what their cache has, here and in processes that start later."""
    if os.environ.get(OFFLINE) or hub_answers():
        return
    os.environ[OFFLINE] = "1"
    if constants := sys.modules.get("huggingface_hub.constants"):  # it has read the variable already
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
