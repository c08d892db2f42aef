"""The page's own files. They are read once, and served with headers that let nothing else run or load."""

import hashlib
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from serve.api.errors import ApiError

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def index(request: Request) -> Response:
    """The page."""
    return _response(request, "index.html")


def static(request: Request) -> Response:
    """One of its scripts, styles and pictures."""
    return _response(request, request.path_params["name"])


def _response(request: Request, name: str) -> Response:
    if name not in (files := _files()):
        raise ApiError(404, "the page has no such file")
    body, kind, tag = files[name]
    headers = {**HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=kind)


@cache
def _files() -> dict[str, tuple[bytes, str, str]]:
    """Content, media type and tag of each file, by name."""
    files = {}
    for file in (resources.files("serve.api.page") / "static").iterdir():
        kind = TYPES.get(f".{file.name.rpartition('.')[2]}")
        if kind:
            body = file.read_bytes()
            files[file.name] = body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return files
