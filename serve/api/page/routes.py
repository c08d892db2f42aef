"""The paths of the page."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.api.bodies import read_bytes
from serve.api.errors import ApiError
from serve.api.media import EXTENSIONS
from serve.api.page import files
from serve.api.page.previews import Previews
from serve.api.settings import ApiSettings
from trainer.checkpoint.folder import CheckpointInfo


class Page:
    """The page of a server.

    Args:
        info: of the checkpoint.
        settings: of the server.
    """

    def __init__(self, info: CheckpointInfo, settings: ApiSettings) -> None:
        self._info, self._settings = info, settings
        self._previews = Previews(info.grid, settings)
        self.routes = [
            Route("/", files.index),
            Route("/static/{name}", files.static),
            Route("/page/about", self._about),
            Route("/page/preview", self._preview, methods=["POST"]),
        ]

    def close(self) -> None:
        """End the decoding process."""
        self._previews.close()

    async def _about(self, request: Request) -> Response:
        """What the page needs to know of the server."""
        settings = self._settings
        about: dict[str, Any] = {
            "model": settings.model,
            "senses": sorted(self._info.columns, reverse=True),
            "stores": sorted(settings.stores),
            "types": {part: dict(types) for part, types in EXTENSIONS.items()},
            "media_bytes": settings.media_bytes,
            "max_tokens": settings.max_tokens,
            "default_tokens": settings.default_tokens,
        }
        return JSONResponse(about)

    async def _preview(self, request: Request) -> Response:
        """The preview of a file that is the request's body."""
        kind = request.headers.get("content-type", "").lower()
        extension = EXTENSIONS.get(request.query_params.get("part", ""), {}).get(kind)
        if extension is None:
            raise ApiError(415, "this type of file is not accepted", code="unsupported_media_type")
        body = await read_bytes(request, self._settings.media_bytes, self._settings.body_seconds)
        return JSONResponse(await self._previews.of_file(body, extension))
