"""Headers: whose names the server answers to, and what browsers may do with its answers."""

from collections.abc import Collection

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.errors import ApiError
from serve.api.settings import ApiSettings

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-store",
}  # a response may have its own


def known_hosts(settings: ApiSettings) -> frozenset[str] | None:
    """The names under which a server answers; None if under any.

    A page of another site can make its own name lead to the loopback, and so get past browsers' rules about origins.
    """
    if settings.hosts:
        return frozenset(name.lower() for name in settings.hosts)
    if not settings.is_loopback:
        return None
    own = f"[{settings.host}]" if ":" in settings.host else settings.host
    return LOOPBACK | {own.lower()}


class HostCheck:
    """ASGI middleware that refuses requests to other names.

    Args:
        app: what is protected.
        names: without ports.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and not self._knows(scope):
            said = "the Host header names another server; the setting hosts lists the names that are accepted"
            await ApiError(403, said, code="unknown_host").response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        values = [value for name, value in scope["headers"] if name == b"host"]
        if len(values) != 1:
            return False
        name = values[0].decode("latin-1").lower()
        host, colon, port = name.rpartition(":")
        return (host if colon and port.isdecimal() else name) in self._names


class SecurityHeaders:
    """ASGI middleware that adds `SECURITY` to responses.

    Args:
        app: whose responses they are.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, secured)
