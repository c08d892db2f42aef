"""Errors as OpenAI's clients read them: always `{"error": {"message", "type", "param", "code"}}`."""

import difflib
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
WORD = 60  # characters of a word of a request
PATHS = ("/v1/chat/completions", "/v1/models")  # for programs
PLAIN = {
    "missing": "is required",
    "extra_forbidden": "is not supported",
    "string_type": "expected a text",
    "string_too_short": "must not be empty",
    "list_type": "expected a list",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
}


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
    faults = error.errors(include_url=False, include_input=False)
    first = faults[0]
    path = ".".join(_as_sent(first["loc"]))[:SHOWN]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}"[:SHOWN], code="invalid_json")
    said = _in_words(first)
    unknown = [f for f in faults if f["type"] == "extra_forbidden" and f["loc"][:-1] == first["loc"][:-1]]
    if first["type"] == "missing" and unknown:
        said += f"; unknown is {str(unknown[0]['loc'][-1])[:WORD]!r}"
    return ApiError(400, f"{path}: {said}"[: 2 * SHOWN] if path else said, path or None, first["type"])


def _in_words(fault: Any) -> str:
    """What is wrong with a field and what it accepts, where pydantic says it in the words of its own workings."""
    kind, context, said = fault["type"], fault.get("ctx", {}), str(fault["msg"])
    match kind:
        case "union_tag_invalid":
            return f"{context['discriminator']} is {context['tag'][:WORD]!r}; accepted: {context['expected_tags']}"
        case "union_tag_not_found":
            return f"needs the field {context['discriminator']}"
        case "too_short" if context["min_length"] == 1:
            return "must not be empty"
        case "too_long":
            return f"accepted: at most {context['max_length']}" if context["max_length"] else "must be empty"
        case "less_than_equal":
            return f"accepted: at most {context['le']:g}"
        case "greater_than_equal":
            return f"accepted: at least {context['ge']:g}"
    plain = f"expected {said.removeprefix('Input should be ')}" if said.startswith("Input should be ") else said
    return PLAIN.get(kind) or plain.removeprefix("Value error, ")


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
    path = request.url.path[:SHOWN]
    said = f"{request.method} {path}: {HTTPStatus(error.status_code).phrase}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        near = difflib.get_close_matches(path, PATHS, n=1)
        said += f"; did you mean {near[0]}?" if near else f"; programs ask {' and '.join(PATHS)}"
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
