"""Errors as OpenAI's clients read them: always `{"error": {"message", "type", "param", "code"}}`."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ExceptionHandler

from serve.engine import EngineError

log = logging.getLogger("avllm.api")
GONE = 499  # never sent: nobody is left to read it
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
AWAY_SECONDS = 5  # after which a client may try again
SHOWN = 300  # characters of a message


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: of the response.
        message: for the client, without anything about this machine.
        param: the field at fault.
        code: to tell errors apart by.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as a response."""
        return JSONResponse(self.body, self.status, self.headers)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error; of one that is not its own the log has the rest."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineError):
        log.error("the engine failed: %s", error)
        return ENGINE_AWAY if error.is_away else ENGINE_FAILED
    log.error("a request failed", exc_info=error)
    return FAILED


def invalid(error: ValidationError) -> ApiError:
    """The first fault of a request, with the path of its field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(_as_sent(first["loc"]))[:SHOWN]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}"[:SHOWN], code="invalid_json")
    said = "is not supported" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{path}: {said}"[: 2 * SHOWN] if path else said, path or None, first["type"])


ENGINE_AWAY = ApiError(
    503, "the model's engine cannot be reached; try again", None, "engine_away", {"Retry-After": str(AWAY_SECONDS)}
)
ENGINE_FAILED = ApiError(502, "the model's engine failed to answer this request", code="engine_failed")
FAILED = ApiError(500, "the server failed to answer this request", code="internal_error")


def _as_sent(path: tuple[int | str, ...]) -> list[str]:
    """A path without the tags of unions, which pydantic puts after the positions in lists."""
    return [str(part) for place, part in enumerate(path) if not (place and isinstance(path[place - 1], int))]


def _refused(request: Request, error: Exception) -> Response:
    return as_api_error(error).response()


def _http(request: Request, error: Exception) -> Response:
    """What the router refuses: 404 and 405."""
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path}: {HTTPStatus(error.status_code).phrase}"[:SHOWN]
    return ApiError(error.status_code, said, headers=error.headers).response()


def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


def _failed(request: Request, error: Exception) -> Response:
    return FAILED.response()  # uvicorn logs the error


HANDLERS: dict[Any, ExceptionHandler] = {
    ApiError: _refused,
    EngineError: _refused,
    HTTPException: _http,
    ClientDisconnect: _gone,
    Exception: _failed,
}
