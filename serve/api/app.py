"""The application: paths, and clients that leave."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.api.answering import Answering
from serve.api.bodies import BodyBudget, read_body
from serve.api.errors import HANDLERS, ApiError
from serve.api.headers import HeadCheck, SecurityHeaders, known_hosts
from serve.api.keys import KeyCheck
from serve.api.memory import trim_often
from serve.api.page.routes import Page
from serve.api.replies import EventStream, close_begun, completion
from serve.api.requests import ChatRequest, parse_chat
from serve.api.settings import ApiSettings
from serve.assistant import Assistant

READ_SECONDS = 30.0  # in which the end of an answer must be read


def make_app(assistant: Assistant, settings: ApiSettings, keys: Sequence[str] = ()) -> Starlette:
    """The application of a checkpoint, which it closes at its end.

    Args:
        assistant: which answers.
        settings: of the server.
        keys: any of them lets a request in; without any, all requests are let in.

    Raises:
        UserError: a store cannot be opened, or lacks a column of the checkpoint.
    """
    answering = Answering(assistant, settings)
    page = Page(assistant.info, settings, answering.spool)
    api = Api(answering, settings, page)
    routes = [
        *page.routes,
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{model:path}", api.model),
        Route("/health", api.health),
        Route("/ready", api.ready),
        Route("/metrics", api.metrics),
    ]
    app = Starlette(
        routes=routes,
        middleware=_middleware(settings, keys),
        exception_handlers=HANDLERS,
        lifespan=api.lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would repeat whatever the Host header says
    return app


def _middleware(settings: ApiSettings, keys: Sequence[str]) -> list[Middleware]:
    """From the outermost to the innermost."""
    return [
        Middleware(SecurityHeaders),
        Middleware(HeadCheck, known_hosts(settings)),
        *([Middleware(CORSMiddleware, settings.origins, ["GET", "POST"], ["*"])] if settings.origins else []),
        Middleware(KeyCheck, keys),
        Middleware(BodyBudget, settings.held_bytes),
    ]


class Api:
    """The endpoints."""

    def __init__(self, answering: Answering, settings: ApiSettings, page: Page) -> None:
        self._answering, self._settings, self._page = answering, settings, page
        self._created = int(time.time())

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Give freed memory back while the server runs, and close all when it ends."""
        trimming = asyncio.create_task(trim_often())
        try:
            yield
        finally:
            trimming.cancel()
            self._page.close()
            await self._answering.close()

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, whole or as a stream."""
        settings = self._settings
        chat = await asyncio.to_thread(parse_chat, await read_body(request, settings), settings)
        if chat.stream:
            return await self._streamed(request, chat)
        whole = asyncio.create_task(self._whole(chat, request.state.forget_body))
        try:
            await wait_connected(request, whole)
            return JSONResponse(whole.result())
        finally:
            whole.cancel()
            await asyncio.gather(whole, return_exceptions=True)

    async def models(self, request: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The one model, by its name."""
        if request.path_params["model"] != self._settings.model:
            raise ApiError(404, "there is no such model", "model", "model_not_found")
        return JSONResponse(self._model())

    async def health(self, request: Request) -> Response:
        """Whether the server runs; needs no key."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether a request would find a place and an engine."""
        if self._answering.is_full:
            raise ApiError(503, "all places are taken", code="queue_full")
        await asyncio.to_thread(self._answering.check)
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Counts and times."""
        return Response(self._answering.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _whole(self, chat: ChatRequest, received: Callable[[], None]) -> dict[str, Any]:
        answer = await self._answering.begin(chat, received)
        try:
            return await completion(answer, self._settings.model)
        finally:
            answer.close()

    async def _streamed(self, request: Request, chat: ChatRequest) -> Response:
        """Stream an answer, once it has begun, so that errors have a status, or is slow to, so that proxies wait."""
        beginning = asyncio.create_task(self._answering.begin(chat, request.state.forget_body))
        try:
            await wait_connected(request, beginning, self._settings.ping_seconds)
        except BaseException:
            await close_begun(beginning)
            raise
        with_usage = chat.stream_options is not None and chat.stream_options.include_usage
        settings = self._settings
        seconds = settings.answer_seconds + READ_SECONDS
        return EventStream(beginning, settings.model, with_usage, settings.ping_seconds, seconds)

    def _model(self) -> dict[str, Any]:
        return {"id": self._settings.model, "object": "model", "created": self._created, "owned_by": "avllm"}


async def wait_connected(request: Request, task: "asyncio.Task[Any]", seconds: float | None = None) -> None:
    """Wait for a task, but not longer than `seconds`.

    Raises:
        ClientDisconnect: the client has left.
        Exception: whatever the task raised.
    """
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        elif gone.done():
            raise ClientDisconnect
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
