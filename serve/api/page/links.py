"""Signed links to media of stores' items: players cannot send a key, so a link itself is a permission, for a while."""

import hashlib
import hmac
import secrets
import time
from pathlib import Path
from urllib.parse import quote, urlencode

from starlette.requests import Request

from featurize.sources.kinds import guess_kind
from serve.api.errors import ApiError
from store import MediaItem

SECONDS = 12 * 3600  # that a link holds


class Links:
    """Makes and checks links. Those of another server, or of this one's last start, are not valid."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def make(self, store: str, key: str) -> str:
        """A link to an item's file."""
        until = int(time.time()) + SECONDS
        words = urlencode({"until": until, "signature": self._signature(store, key, str(until))})
        return f"/media/{quote(store, safe='')}/{quote(key, safe='')}?{words}"

    def check(self, request: Request) -> tuple[str, str]:
        """The store and the key of a request's link.

        Raises:
            ApiError: the link is not valid, or no longer.
        """
        store, key = request.path_params["store"], request.path_params["key"]
        until, signature = (request.query_params.get(name, "") for name in ("until", "signature"))
        is_made_here = hmac.compare_digest(signature.encode(), self._signature(store, key, until).encode())
        if not is_made_here or int(until) < time.time():
            raise ApiError(403, "this link is not valid, or no longer; open the item again", code="invalid_link")
        return store, key

    def _signature(self, store: str, key: str, until: str) -> str:
        return hmac.new(self._secret, f"{store}\n{key}\n{until}".encode(), hashlib.sha256).hexdigest()


def local_media(item: MediaItem) -> Path | None:
    """The file or the folder of stills that an item was planned from, if it is still on this machine."""
    path = Path(item.uri)
    try:
        if path.is_absolute() and (path.is_file() if guess_kind(path.name) == item.kind else path.is_dir()):
            return path
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return None
    return None
