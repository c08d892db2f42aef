"""Start the server of a checkpoint."""

import functools
import logging
import socket
from collections.abc import Sequence

import uvicorn

from serve.api.app import make_app
from serve.api.connections import Connection
from serve.api.keys import VARIABLE
from serve.api.settings import ApiSettings
from serve.assistant import Assistant
from store import UserError
from store.console import console

GRACE_SECONDS = 5  # for answers under way when the server is stopped


def check_exposure(settings: ApiSettings, keys: Sequence[str]) -> None:
    """Refuse to let other machines in without a key.

    Raises:
        UserError: they would be.
    """
    if not settings.is_loopback and not keys:
        raise UserError(
            f"--host {settings.host} lets other machines in; give --key-file FILE or the variable {VARIABLE}"
        )


def listen(settings: ApiSettings) -> socket.socket:
    """A socket on the host and port, which nobody else has.

    Raises:
        UserError: they cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(f"{settings.host}:{settings.port}: {error.strerror}") from None
    return listener


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


def serve(settings: ApiSettings, keys: Sequence[str]) -> None:
    """Load the checkpoint and serve it until Ctrl-C.

    Raises:
        UserError: the checkpoint or a store cannot be used, or the server would be open to other machines.
    """
    check_exposure(settings, keys)
    listener = listen(settings)
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
