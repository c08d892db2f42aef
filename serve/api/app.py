"""The application: paths, bodies within their limits, and clients that leave."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.api.answering import Answer, Answering
from serve.api.errors import HANDLERS, ApiError
from serve.api.keys import KeyCheck
from serve.api.replies import EventStream, completion
from serve.api.requests import ChatRequest, parse_chat
from serve.api.settings import ApiSettings
from serve.assistant import Assistant

T = TypeVar("T")


def make_app(assistant: Assistant, settings: ApiSettings, keys: Sequence[str] = ()) -> Starlette:
    """The application of a checkpoint, which it closes at its end.

    Args:
        assistant: which answers.
        settings: of the server.
        keys: any of them lets a request in; without any, all requests are let in.

    Raises:
        UserError: a store cannot be opened, or lacks a column of the checkpoint.
    """
    api = Api(Answering(assistant, settings), settings)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{model:path}", api.model),
        Route("/health", api.health),
        Route("/ready", api.ready),
        Route("/metrics", api.metrics),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(KeyCheck, keys)],
        exception_handlers=HANDLERS,
        lifespan=api.lifespan,
    )


class Api:
    """The endpoints."""

    def __init__(self, answering: Answering, settings: ApiSettings) -> None:
        self._answering, self._settings = answering, settings
        self._created = int(time.time())

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Close all when the server ends."""
        try:
            yield
        finally:
            await self._answering.close()

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, whole or as a stream."""
        body = await read_body(request, self._settings)
        chat = await asyncio.to_thread(parse_chat, body, self._settings)
        del body
        if not chat.stream:
            return JSONResponse(await while_connected(request, self._whole(chat)))
        answer = await while_connected(request, self._answering.begin(chat))
        options = chat.stream_options
        with_usage = options is not None and options.include_usage
        return EventStream(answer, self._settings.model, with_usage, self._settings.ping_seconds)

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
        """Whether a request would find a place."""
        if self._answering.is_full:
            raise ApiError(503, "all places are taken", code="queue_full")
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Counts and times."""
        return Response(self._answering.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _whole(self, chat: ChatRequest) -> dict[str, Any]:
        answer: Answer = await self._answering.begin(chat)
        try:
            return await completion(answer, self._settings.model)
        finally:
            answer.close()

    def _model(self) -> dict[str, Any]:
        return {"id": self._settings.model, "object": "model", "created": self._created, "owned_by": "avllm"}


async def read_body(request: Request, settings: ApiSettings) -> bytes:
    """A JSON body within the limits of its size and time.

    Raises:
        ApiError: it is too large, too slow, or not declared as JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "expected Content-Type: application/json", code="unsupported_media_type")
    most = settings.body_bytes
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > most:
        raise _too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise ApiError(408, "the body came too slowly", code="timeout", headers={"Connection": "close"}) from None
    return bytes(body)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled when the client leaves.

    Raises:
        ClientDisconnect: it has left.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes", code="body_too_large")
