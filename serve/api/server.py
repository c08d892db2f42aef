"""Start the server of a checkpoint."""

import functools
import logging
import socket
from collections.abc import Sequence

import uvicorn

from serve.api.app import make_app
from serve.api.connections import Connection
from serve.api.settings import ApiSettings
from serve.assistant import Assistant
from store.console import console

GRACE_SECONDS = 5  # for answers under way when the server is stopped


def make_server(assistant: Assistant, settings: ApiSettings, keys: Sequence[str]) -> uvicorn.Server:
    """The server of an assistant.

    Raises:
        UserError: a store cannot be opened, or lacks a column of the checkpoint.
    """
    config = uvicorn.Config(
        make_app(assistant, settings, keys),
        http=functools.partial(  # type: ignore[arg-type]  # called as a class is
            Connection, most=settings.connections, head_seconds=settings.head_seconds
        ),
        ws="none",
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def serve(settings: ApiSettings, keys: Sequence[str], listener: socket.socket) -> None:
    """Load the checkpoint and serve it on a socket until Ctrl-C.

    Raises:
        UserError: the checkpoint or a store cannot be used.
    """
    server = make_server(Assistant.load(settings.checkpoint, settings.vllm), settings, keys)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    console.print(f"serving {settings.checkpoint}: a page at {url}/", markup=False)
    console.print(f"and {settings.model!r} for programs at {url}/v1; try:", markup=False)
    console.print(_example(url, settings.model, bool(keys)), markup=False)
    server.run(sockets=[listener])


def _example(url: str, model: str, has_keys: bool) -> str:
    key = ' -H "Authorization: Bearer $KEY"' if has_keys else ""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Who are you?"}}]}}'
    return f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"
