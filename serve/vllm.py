"""The engine that asks a vLLM server, which holds the LLM's weights alone: prompts are sent as embeddings.

The server is started with `--enable-prompt-embeds` on the checkpoint's folder (docs/serving.md). It trusts whoever
sends embeddings, so only this process may reach it.
"""

import asyncio
import base64
import io
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import httpx

from serve.engine import EngineError, Limits, Piece, Reason, check_rows

if TYPE_CHECKING:
    import torch

VARIABLE = "VLLM_API_KEY"  # of the server's key; vLLM reads the same one
AWAY = (502, 503, 504)  # said by proxies in front of it, and by itself while it starts or stops
AT_ONCE = 64
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 600.0  # the longest wait for the next piece
REASONS: dict[str, Reason] = {"stop": "stop", "length": "length"}


class VLLM:
    """Generates on a vLLM server.

    Its API key, if it wants one, is in the variable VLLM_API_KEY.

    Args:
        url: of the server, without `/v1`.
        at_once: the most requests under way; others wait in turn.

    Raises:
        UserError: there is no vLLM server at the URL, or it refuses the key, or it does not serve exactly one model.
    """

    def __init__(self, url: str, at_once: int = AT_ONCE) -> None:
        self.at_once = at_once
        self._url = _root(url)
        self._model, self.context = served(url)
        self._loop = asyncio.new_event_loop()
        self._turns = asyncio.Semaphore(at_once)
        self._client = httpx.AsyncClient(
            base_url=self._url, headers=_headers(), limits=httpx.Limits(max_connections=at_once),
            timeout=httpx.Timeout(CONNECT_SECONDS, read=SILENT_SECONDS, pool=None),
        )  # fmt: skip
        self._thread = threading.Thread(target=self._loop.run_forever, name="avllm vllm client", daemon=True)
        self._thread.start()

    def submit(self, rows: "torch.Tensor", limits: Limits, deliver: Callable[[Piece], None]) -> Callable[[], None]:
        """See `Engine.submit`."""
        most = check_rows(rows, limits, self.context)
        request = {
            "model": self._model,
            "prompt_embeds": encoded(rows),
            "max_tokens": most,
            "temperature": limits.temperature,
            "top_p": limits.top_p,
            "seed": limits.seed,
            "stop": list(limits.stop),
            "top_k": 0,  # this and the next override what a generation_config.json beside the weights may ask for
            "repetition_penalty": 1.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        future = asyncio.run_coroutine_threadsafe(self._generate(request, deliver), self._loop)

        def cancel() -> None:
            future.cancel()

        return cancel

    def check(self) -> None:
        """See `Engine.check`."""
        model, context = served(self._url)
        if (model, context) != (self._model, self.context):
            raise EngineError(f"{self._url}: serves {model} with a context of {context}, no longer {self._model} "
                              f"with {self.context}")  # fmt: skip

    def close(self) -> None:
        """Cancel all answers and end the thread."""
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _generate(self, request: dict[str, Any], deliver: Callable[[Piece], None]) -> None:
        """Deliver the answer to a request. The server closes idle connections, so a lost one is tried again once."""
        tokens = 0
        try:
            async with self._turns:
                for attempt in (1, 2):
                    try:
                        async for piece in self._pieces(request):
                            tokens = piece.tokens
                            deliver(piece)
                        return
                    except httpx.RemoteProtocolError:
                        if tokens or attempt == 2:
                            raise
        except asyncio.CancelledError:
            deliver(Piece("", tokens, "cancelled"))
        except httpx.HTTPError as error:
            lost = EngineError(f"{self._url}: {str(error) or type(error).__name__}", is_away=True)
            deliver(Piece("", tokens, error=lost))
        except EngineError as error:  # before ValueError, which it is too
            deliver(Piece("", tokens, error=error))
        except (ValueError, KeyError, TypeError) as error:
            deliver(Piece("", tokens, error=EngineError(f"{self._url}: not an answer of vLLM: {error!r}")))
        except Exception as error:
            deliver(Piece("", tokens, error=error))

    async def _pieces(self, request: dict[str, Any]) -> AsyncIterator[Piece]:
        tokens, reason = 0, None
        async with self._client.stream("POST", "/v1/completions", json=request) as response:
            if response.status_code != 200:
                await response.aread()
                said = f"{self._url}: {response.status_code}: {_message(response)}"
                raise EngineError(said, response.status_code in AWAY)
            async for line in response.aiter_lines():
                data = line.removeprefix("data: ")
                if data == line or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise EngineError(f"{self._url}: {_said(event)}")
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
                for choice in event["choices"]:
                    reason = choice["finish_reason"] or reason
                    tokens += not event.get("usage")
                    yield Piece(choice["text"], tokens)
        if reason not in REASONS:
            raise EngineError(f"{self._url}: the answer ended without a reason ({reason})")
        yield Piece("", tokens, REASONS[reason])


def served(url: str) -> tuple[str, int]:
    """The name of the one model that a server has, and its context.

    Raises:
        EngineError: there is no vLLM server at the URL, or it refuses the key, or it does not serve exactly one model.
    """
    url = _root(url)
    try:
        response = httpx.get(f"{url}/v1/models", headers=_headers(), timeout=CONNECT_SECONDS)
        if response.status_code != 401:
            response.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineError(f"{url}: no vLLM server answers: {error}", is_away=True) from None
    if response.status_code == 401:
        raise EngineError(f"{url}: refuses the key; give the server's in the variable {VARIABLE}")
    try:
        (model,) = response.json()["data"]
        return model["id"], model["max_model_len"]
    except (ValueError, KeyError, TypeError):
        raise EngineError(f"{url}: not a vLLM server with one model (/v1/models)") from None


def _root(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _headers() -> dict[str, str]:
    key = os.environ.get(VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def encoded(rows: "torch.Tensor") -> str:
    """Rows as vLLM takes them: base64 of a saved tensor."""
    import torch  # the server is looked for before this is loaded

    buffer = io.BytesIO()
    torch.save(rows.detach().cpu().clone(), buffer)  # a view would be saved with all it is a view of
    return base64.b64encode(buffer.getvalue()).decode()


def _message(response: httpx.Response) -> str:
    try:
        return _said(response.json())
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def _said(reply: Any) -> str:
    """The message of an error, which vLLM writes as an object or as a text."""
    error = reply["error"]
    return str(error["message"] if isinstance(error, dict) else error)
