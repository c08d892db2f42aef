"""Answers as OpenAI's clients read them, whole or as server-sent events."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.api.answering import Answer
from serve.api.errors import as_api_error, log

PING = ": ping\n\n"
DONE = "data: [DONE]\n\n"


class Trimmed:
    """The text of an answer without the blanks around it, piece by piece: those at its end are held back for ever."""

    def __init__(self) -> None:
        self._held = ""
        self._is_begun = False

    def add(self, text: str) -> str:
        """Add a piece; return what is certain not to be blanks at the end."""
        text = self._held + (text if self._is_begun else text.lstrip())
        certain = text.rstrip()
        self._held = text[len(certain) :]
        self._is_begun = self._is_begun or bool(certain)
        return certain


def usage(answer: Answer) -> dict[str, int]:
    """What an answer took."""
    prompt, generated = answer.prompt_tokens, answer.last.tokens
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


async def completion(answer: Answer, model: str) -> dict[str, Any]:
    """A whole answer, once it has ended.

    Raises:
        Exception: whatever generation raised.
    """
    text = "".join([piece.text async for piece in answer.pieces() if piece]).strip()
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": answer.last.reason, "logprobs": None}
    return {**_head("chat.completion", model), "choices": [choice], "usage": usage(answer)}


class EventStream(StreamingResponse):
    """An answer as a stream of events; the answer is closed when the stream ends or its client leaves.

    Args:
        beginning: gives the answer, perhaps only after a file has been encoded.
        model: its name.
        with_usage: end with a chunk of usage.
        silence: seconds after which a comment keeps proxies from closing the connection.
        seconds: in which the client must have read it all.
    """

    def __init__(
        self, beginning: "asyncio.Task[Answer]", model: str, with_usage: bool, silence: float, seconds: float
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_events(beginning, model, with_usage, silence), 200, headers, "text/event-stream")
        self._beginning, self._seconds = beginning, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.error("a client did not read its answer in time")
        finally:
            await close_begun(self._beginning)


async def close_begun(beginning: "asyncio.Task[Answer]") -> None:
    """Close an answer, whether it has begun or not."""
    beginning.cancel()
    for answer in await asyncio.gather(beginning, return_exceptions=True):
        if isinstance(answer, Answer):
            answer.close()


async def _events(
    beginning: "asyncio.Task[Answer]", model: str, with_usage: bool, silence: float
) -> AsyncIterator[str]:
    """Yield the events of an answer; an error is the last one."""
    head = _head("chat.completion.chunk", model) | ({"usage": None} if with_usage else {})
    text = Trimmed()
    yield _event(head | _delta({"role": "assistant", "content": ""}))
    try:
        while not (await asyncio.wait({beginning}, timeout=silence))[0]:
            yield PING
        answer = beginning.result()
        async for piece in answer.pieces(silence):
            if piece is None:
                yield PING
            elif fresh := text.add(piece.text):
                yield _event(head | _delta({"content": fresh}))
    except Exception as error:
        yield _event(as_api_error(error).body)
        return
    yield _event(head | _delta({}, answer.last.reason))
    if with_usage:
        yield _event(head | {"choices": [], "usage": usage(answer)})
    yield DONE


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def _delta(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
