"""Whether a model hub answers; where none does, its packages are told to look in their cache alone."""

import os
import socket
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from featurize.settings import EncoderSettings

OFFLINE = "HF_HUB_OFFLINE"
SECONDS = 3.0  # of a connection


@cache
def hub_answers() -> bool:
    """Whether the hub accepts a connection; behind a proxy, which may answer for it, it is taken to."""
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if {url.scheme, "all"} & getproxies().keys():
        return True
    try:
        socket.create_connection(
            (url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), SECONDS
        ).close()
    except OSError:
        return False
    return True


def is_offline() -> bool:
    """Whether only what is cached can be had."""
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def check_hub(encoders: Iterable[EncoderSettings]) -> None:
    """Ask the hub only if it answers: where it does not, its packages would retry for most of a minute.

    What this sets is passed on to processes that are started later.
    """
    if not os.environ.get(OFFLINE) and any(map(_is_published, encoders)) and not hub_answers():
        os.environ[OFFLINE] = "1"
        if constants := sys.modules.get("huggingface_hub.constants"):  # it has read the variable already
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def _is_published(settings: EncoderSettings) -> bool:
    return settings.weights != "random" and not Path(settings.weights).exists()
