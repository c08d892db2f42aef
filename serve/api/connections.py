"""HTTP/1.1 connections: errors are objects here too, and nobody holds a connection without asking."""

import asyncio
import json
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.api.errors import ApiError
from serve.api.keys import NO_KEY

KEY_THEN_BLANK = re.compile(rb"\nauthorization:[^\n]*[ \t]\r?\n", re.IGNORECASE)  # h11 would drop it: another key
LINGER_SECONDS = 5.0  # in which a client may go on sending a body that was refused, so that it reads the refusal


class Connection(H11Protocol):
    """A connection.

    Args:
        most: open connections; this one is closed at once if there are more.
        head_seconds: longest time for the headers of a request.
        words: uvicorn's own arguments.
    """

    def __init__(self, *, most: int, head_seconds: float, **words: Any) -> None:
        super().__init__(**words)
        self._most, self._head_seconds = most, head_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.close()
        self._close_after(self._head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read, and stop waiting once a request's headers are there."""
        if self._is_refused:
            return
        if self.conn.their_state is h11.IDLE and KEY_THEN_BLANK.search(data):
            self._refuse(NO_KEY)
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE and self.conn.our_state is h11.SEND_RESPONSE:
            self._unset_timer()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of a body that nobody reads."""
        super().on_response_complete()
        self._close_after(self._head_seconds if self.conn.their_state is h11.IDLE else LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP request, or whose headers are too long."""
        self._refuse(ApiError(400, msg, code="invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        """Send an error, and read nothing more."""
        self._is_refused = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = {"Content-Type": "application/json", "Connection": "close", **(error.headers or {})}
            for event in (
                h11.Response(status_code=error.status, headers=list(headers.items())),
                h11.Data(data=json.dumps(error.body).encode()),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self._close_after(LINGER_SECONDS)

    def _close_after(self, seconds: float) -> None:
        self._unset_timer()
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _unset_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
