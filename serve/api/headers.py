"""Headers: whose names the server answers to, and what browsers may do with its answers."""

from collections.abc import Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.errors import ApiError
from serve.api.settings import ApiSettings

VERSIONS = ("1.0", "1.1")
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


class HeadCheck:
    """ASGI middleware that refuses requests to other names, and those that a proxy may read in another way.

    Args:
        app: what is protected.
        names: of this server, without ports; None takes any.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (refused := self._refusal(scope)):
            await refused.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        close = {"Connection": "close"}
        if scope["http_version"] not in VERSIONS:
            return ApiError(400, f"expected HTTP {' or '.join(VERSIONS)}", code="invalid_http", headers=close)
        if "content-length" in headers and "transfer-encoding" in headers:
            return ApiError(400, "Content-Length and Transfer-Encoding: give one", code="invalid_http", headers=close)
        if self._names is not None and _name_of(headers.getlist("host")) not in self._names:
            said = "the Host header names another server; the setting hosts lists the names that are accepted"
            return ApiError(403, said, code="unknown_host")
        return None


def _name_of(hosts: Sequence[str]) -> str:
    """The name in the only Host header, without its port; empty if there are several headers, or none."""
    name = hosts[0].lower() if len(hosts) == 1 else ""
    host, colon, port = name.rpartition(":")
    return host if colon and port.isdecimal() else name


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
