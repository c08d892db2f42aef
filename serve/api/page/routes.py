"""The paths of the page."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from serve.api.bodies import read_bytes
from serve.api.errors import ApiError, invalid, log
from serve.api.media.files import Spool
from serve.api.media.types import ACCEPTED
from serve.api.page import files
from serve.api.page.links import Links, local_media
from serve.api.page.previews import Previews
from serve.api.page.sketch import Source
from serve.api.page.stores import BrowsedStore, Wanted
from serve.api.settings import ApiSettings
from store import UserError
from trainer.checkpoint.info import CheckpointInfo

LOOKS = 2  # at stores, at once; others wait, and answers are not held up
MEDIA_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, max-age=3600",
}
R = TypeVar("R")


class Page:
    """The page of a server.

    Args:
        info: of the checkpoint.
        settings: of the server.
        spool: where sent files are put.
    """

    def __init__(self, info: CheckpointInfo, settings: ApiSettings, spool: Spool) -> None:
        self._info, self._settings = info, settings
        self._previews, self._links = Previews(info.grid, settings, spool), Links()
        self._stores = {label: BrowsedStore(label, url, info, self._links) for label, url in settings.stores.items()}
        self._lookers = ThreadPoolExecutor(LOOKS, "avllm browser")
        self.routes = [
            Route("/", files.index),
            Route("/static/{name}", files.static),
            Route("/media/{store}/{key}", self._media),
            Route("/page/about", self._about),
            Route("/page/preview", self._preview, methods=["POST"]),
            Route("/page/stores/{store}", self._store),
            Route("/page/stores/{store}/items", self._items),
            Route("/page/stores/{store}/items/{key}", self._item),
            Route("/page/stores/{store}/items/{key}/preview", self._item_preview),
        ]

    def close(self) -> None:
        """End the decoding process."""
        self._lookers.shutdown(cancel_futures=True)
        self._previews.close()

    async def _about(self, request: Request) -> Response:
        """What the page needs to know of the server."""
        settings = self._settings
        about: dict[str, Any] = {
            "model": settings.model,
            "senses": sorted(self._info.columns, reverse=True),
            "stores": sorted(settings.stores),
            "types": {part: dict(types.declared) for part, types in ACCEPTED.items()},
            "media_bytes": settings.media_bytes,
            "max_tokens": settings.max_tokens,
            "default_tokens": settings.default_tokens,
        }
        return JSONResponse(about)

    async def _preview(self, request: Request) -> Response:
        """The preview of a file that is the request's body."""
        types = ACCEPTED.get(request.query_params.get("part", ""))
        kind = request.headers.get("content-type", "").lower()
        if types is None or kind not in types.declared:
            raise ApiError(415, "this type of file is not accepted", code="unsupported_media_type")
        body = await read_bytes(request, self._settings.media_bytes, self._settings.body_seconds)
        return JSONResponse(await self._previews.of_file(body, types.declared[kind]))

    async def _store(self, request: Request) -> Response:
        return JSONResponse(await self._look(self._of(request).overview))

    async def _items(self, request: Request) -> Response:
        try:
            wanted = Wanted.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise invalid(error) from None
        store = self._of(request)
        return JSONResponse(await self._look(lambda: store.items(wanted)))

    async def _item(self, request: Request) -> Response:
        store, key = self._of(request), request.path_params["key"]
        return JSONResponse(await self._look(lambda: store.item(key)))

    async def _item_preview(self, request: Request) -> Response:
        """A preview of what the model gets of an item; with pictures and peaks if its file is still there."""
        store = self._of(request)
        item = await self._look(lambda: store.planned(request.path_params["key"]))
        known = await self._look(lambda: store.known(item))
        if local_media(item):
            source = Source(item.uri, item.kind, item.start, item.end, item.fps)
            seen = await self._previews.of_source(source)
            known |= {sense: seen[sense] for sense in ("sight", "sound") if known[sense] and seen[sense]}
        return JSONResponse(known)

    async def _media(self, request: Request) -> Response:
        """The file of an item, or a range of it, by a signed link."""
        label, key = self._links.check(request)
        store = self._stores[label]
        path = await self._look(lambda: local_media(store.planned(key)))
        if path is None or not path.is_file():
            raise ApiError(404, "the item's file is not on this machine any more", code="media_not_found")
        return FileResponse(path, headers=MEDIA_HEADERS)

    def _of(self, request: Request) -> BrowsedStore:
        if store := self._stores.get(request.path_params["store"]):
            return store
        raise ApiError(404, "this server has no such store", code="store_not_found")

    async def _look(self, look: Callable[[], R]) -> R:
        """What a look at a store gives, in a thread.

        Raises:
            ApiError: the store cannot be read; the log says why.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._lookers, look)
        except UserError as error:
            log.error("a store cannot be browsed: %s", error)
            raise ApiError(
                503, "the store cannot be read; the server's log says why", code="store_unreadable"
            ) from None
