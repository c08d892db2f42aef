"""What a server needs to start, and what one request may cost it."""

import ipaddress
from typing import Self

from pydantic import Field, model_validator

from store import Settings


class ApiSettings(Settings):
    """Settings of `serve api`.

    Attributes:
        checkpoint: folder of a checkpoint.
        host: address to listen on; one that other machines can reach needs keys.
        port: to listen on.
        model: the name that requests give.
        stores: URLs of the stores whose items can be asked about, by label.
        vllm: URL of a vLLM server of this checkpoint; None generates here.
        body_bytes: largest body.
        held_bytes: of all bodies together; others get 429.
        body_seconds: longest time for a body to arrive.
        media_bytes: largest file in a request.
        decode_seconds: longest decoding of one file's frames, or of its sound.
        cache_bytes: features of sent files that are kept in memory.
        parts: most parts of all messages.
        characters: longest text of all messages.
        max_tokens: longest answer that can be asked for.
        default_tokens: longest answer where the request does not say.
        queue: most requests under way or waiting; others get 429.
        ping_seconds: longest silence in a stream.
    """

    checkpoint: str
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    model: str = Field("avllm", min_length=1)
    stores: dict[str, str] = Field(default_factory=dict)
    vllm: str | None = None
    body_bytes: int = Field(48 << 20, ge=1 << 10)
    held_bytes: int = Field(256 << 20, ge=1 << 10)
    body_seconds: float = Field(60.0, gt=0)
    media_bytes: int = Field(32 << 20, ge=1)
    decode_seconds: float = Field(30.0, gt=0)
    cache_bytes: int = Field(256 << 20, ge=0)
    parts: int = Field(256, ge=1)
    characters: int = Field(200_000, ge=1)
    max_tokens: int = Field(1024, ge=1)
    default_tokens: int = Field(256, ge=1)
    queue: int = Field(64, ge=1)
    ping_seconds: float = Field(10.0, gt=0)

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.default_tokens > self.max_tokens:
            raise ValueError(f"default_tokens {self.default_tokens} is above max_tokens {self.max_tokens}")
        if self.body_bytes > self.held_bytes:
            raise ValueError(f"body_bytes {self.body_bytes} is above held_bytes {self.held_bytes}")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
