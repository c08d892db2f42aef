"""Bodies within their limits: of size, of time, and of what all requests hold together."""

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.errors import ApiError
from serve.api.settings import ApiSettings

RETRY_SECONDS = 5


class BodyBudget:
    """ASGI middleware that bounds the bytes of all bodies together.

    A body counts until the request calls `request.state.forget_body`, or has ended.

    Args:
        app: what reads the bodies.
        most: bytes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; reading its body fails while others hold too much."""
        own = 0

        async def counted() -> Message:
            nonlocal own
            message = await receive()
            size = len(message.get("body", b""))
            own += size
            self._held += size
            if size and self._held > self._most:
                raise ApiError(
                    429, "too many large requests; try again", None, "busy", {"Retry-After": str(RETRY_SECONDS)}
                )
            return message

        def forget() -> None:
            nonlocal own
            self._held -= own
            own = 0

        scope.setdefault("state", {})["forget_body"] = forget
        try:
            await self._app(scope, counted, send)
        finally:
            forget()


async def read_body(request: Request, settings: ApiSettings) -> bytearray:
    """A JSON body within the limits of its size and time.

    Raises:
        ApiError: it is too large, too slow, or not declared as JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "expected Content-Type: application/json", code="unsupported_media_type")
    return await read_bytes(request, settings.body_bytes, settings.body_seconds)


async def read_bytes(request: Request, most: int, seconds: float) -> bytearray:
    """A body of at most `most` bytes, within `seconds`.

    Raises:
        ApiError: it is too large or too slow.
    """
    too_large = ApiError(413, f"the body is larger than {most} bytes", code="body_too_large")
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, "the body came too slowly", code="timeout", headers={"Connection": "close"}) from None
    return body
