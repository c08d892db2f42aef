"""Who may ask: with keys, every path needs one but /health, the page's own files, and media by signed links."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.errors import ApiError

OPEN = frozenset({"/", "/health"})
OPEN_BELOW = ("/static/", "/media/")  # the page's files; media, whose links are signed
NO_KEY = ApiError(401, "no valid API key", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


class KeyCheck:
    """ASGI middleware that refuses requests without a key, before anything of their body is read.

    Args:
        app: what is protected.
        keys: any of these is accepted; without any, all requests are.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and self._digests and not _is_open(scope["path"]) and not self._knows(scope):
            await NO_KEY.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        """Whether the only Authorization header has a key. Digests make all comparisons take the same time."""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) != 1:
            return False
        scheme, _, key = values[0].partition(b" ")
        digest = hashlib.sha256(key).digest()
        known = [hmac.compare_digest(digest, other) for other in self._digests]
        return scheme.lower() == b"bearer" and any(known)


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)
