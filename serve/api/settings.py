"""What a server needs to start, and what one request may cost it."""

import ipaddress
from typing import Literal, Self

from pydantic import Field, model_validator

from store import Settings


class ApiSettings(Settings):
    """Settings of `serve api`.

    Attributes:
        checkpoint: folder of a checkpoint.
        host: address to listen on; one that other machines can reach needs keys.
        port: to listen on.
        hosts: names by which clients reach the server (Host header); without any, a server on the loopback takes the
            loopback's names alone, and another server takes all.
        origins: of web pages that browsers let read answers, such as `https://app.example.org`.
        model: the name that requests give.
        stores: URLs of the stores whose items can be asked about, by label.
        vllm: URL of a vLLM server of this checkpoint; None generates here.
        body_bytes: largest body.
        held_bytes: of all bodies together; others get 429.
        body_seconds: longest time for a body to arrive.
        media_bytes: largest file in a request.
        media_pixels: of a still or of a clip's frame.
        media_frames: most frames of a clip.
        media_seconds: longest clip or sound.
        media_folders: whose files requests may name by `file:` URLs.
        fetch_schemes: of the URLs that are fetched; none fetches nothing.
        fetch_hosts: `HOST` or `HOST:PORT` that may be fetched from though their addresses are not public.
        fetch_seconds: longest fetching of a file, with redirects.
        decoders: how many files are decoded at once.
        decode_seconds: longest decoding of one file's frames, or of its sound.
        cache: folder of the features of sent files, which is this server's alone; None takes one of the user's cache.
        cache_bytes: of the features in that folder; those that were not asked about for longest are withdrawn.
        memory_bytes: features of sent files that are kept in memory.
        parts: most parts of all messages.
        characters: longest text of all messages.
        max_tokens: longest answer that can be asked for.
        default_tokens: longest answer where the request does not say.
        queue: most requests under way or waiting; others get 429.
        answer_seconds: longest time for an answer, from the request's place in the queue to its last piece.
        head_seconds: longest time for a request's headers, and for the next request of a connection.
        connections: most open ones; others are closed.
        ping_seconds: longest silence in a stream.
    """

    checkpoint: str
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    model: str = Field("avllm", min_length=1)
    stores: dict[str, str] = Field(default_factory=dict)
    vllm: str | None = None
    body_bytes: int = Field(48 << 20, ge=1 << 10)
    held_bytes: int = Field(256 << 20, ge=1 << 10)
    body_seconds: float = Field(60.0, gt=0)
    media_bytes: int = Field(32 << 20, ge=1)
    media_pixels: int = Field(36_000_000, ge=1)
    media_frames: int = Field(500_000, ge=1)
    media_seconds: float = Field(3600.0, gt=0)
    media_folders: tuple[str, ...] = ()
    fetch_schemes: tuple[Literal["https", "http"], ...] = ("https",)
    fetch_hosts: tuple[str, ...] = ()
    fetch_seconds: float = Field(30.0, gt=0)
    decoders: int = Field(4, ge=1)
    decode_seconds: float = Field(30.0, gt=0)
    cache: str | None = None
    cache_bytes: int = Field(8 << 30, ge=1 << 20)
    memory_bytes: int = Field(256 << 20, ge=0)
    parts: int = Field(256, ge=1)
    characters: int = Field(200_000, ge=1)
    max_tokens: int = Field(1024, ge=1)
    default_tokens: int = Field(256, ge=1)
    queue: int = Field(64, ge=1)
    answer_seconds: float = Field(600.0, gt=0)
    head_seconds: float = Field(20.0, gt=0)
    connections: int = Field(512, ge=1)
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
