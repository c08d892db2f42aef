"""The medium of a request: an item of a store, or a file's bytes. Nothing is fetched, and no URL reaches a decoder."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from serve.api.errors import ApiError
from serve.api.requests import InputAudio, Medium, StoreItem
from serve.api.settings import ApiSettings

EXTENSIONS: Mapping[str, Mapping[str, str]] = {
    "image_url": {
        "image/png": "png", "image/jpeg": "jpg", "image/jpg": "jpg", "image/webp": "webp", "image/gif": "png",
        "image/bmp": "bmp", "image/tiff": "tif", "image/avif": "avif",
    },
    "video_url": {
        "video/mp4": "mp4", "video/x-m4v": "m4v", "video/quicktime": "mov", "video/webm": "webm",
        "video/x-matroska": "mkv", "video/x-msvideo": "avi", "video/mpeg": "mpg", "video/mp2t": "ts",
        "video/x-flv": "flv", "video/x-ms-wmv": "wmv", "video/3gpp": "3gp", "video/ogg": "ogv", "image/gif": "gif",
    },
    "audio_url": {
        "audio/wav": "wav", "audio/x-wav": "wav", "audio/wave": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3",
        "audio/flac": "flac", "audio/x-flac": "flac", "audio/ogg": "ogg", "audio/opus": "opus", "audio/mp4": "m4a",
        "audio/x-m4a": "m4a", "audio/aac": "aac", "audio/webm": "weba", "audio/aiff": "aiff", "audio/x-aiff": "aiff",
    },
}  # fmt: skip  # of the part's type, by declared media type: it decides between still, clip and sound


@dataclass(frozen=True)
class Item:
    """An item of a store, by the store's label."""

    store: str
    key: str


@dataclass(frozen=True)
class Upload:
    """A sent file.

    Attributes:
        data: its bytes.
        extension: tells stills, clips and sounds apart; decoders look at the bytes.
        name: SHA-256 of the bytes, and the extension.
    """

    data: bytes
    extension: str
    name: str


def medium_of(part: Medium, where: str, settings: ApiSettings) -> Item | Upload:
    """What a part holds. Decodes base64, so it belongs in a thread.

    Args:
        part: of a message.
        where: the path of the part in the request.
        settings: of the server.

    Raises:
        ApiError: the part's URL or its data cannot be used.
    """
    where = f"{where}.{part.type}"
    if isinstance(part, StoreItem):
        return _item(part.store_item.store, part.store_item.key, f"{where}.store", settings)
    if isinstance(part, InputAudio):
        return _upload(part.input_audio.data, part.input_audio.format, f"{where}.data", settings)
    scheme = part.url.partition(":")[0].lower()
    if scheme == "store":
        return _named_item(part.url, f"{where}.url", settings)
    if scheme == "data":
        return _data(part.url, part.type, f"{where}.url", settings)
    raise ApiError(
        400, f"{where}.url: accepted: data: with base64, and store://LABEL/KEY", f"{where}.url",
        "unsupported_url",
    )  # fmt: skip


def _item(label: str | None, key: str, where: str, settings: ApiSettings) -> Item:
    if label is None and len(settings.stores) == 1:
        label = next(iter(settings.stores))
    if label is None:
        raise ApiError(400, f"{where}: name the store; this server has: {_labels(settings)}", where)
    if label not in settings.stores:
        raise ApiError(404, f"{where}: no such store; this server has: {_labels(settings)}", where, "store_not_found")
    return Item(label, key)


def _named_item(url: str, where: str, settings: ApiSettings) -> Item:
    try:
        label, path = urlsplit(url).netloc, urlsplit(url).path
    except ValueError:
        raise ApiError(400, f"{where}: expected store://LABEL/KEY", where) from None
    if not label or len(path) < 2:
        raise ApiError(400, f"{where}: expected store://LABEL/KEY", where)
    return _item(label, unquote(path[1:]), where, settings)


def _labels(settings: ApiSettings) -> str:
    return ", ".join(sorted(settings.stores)) or "none"


def _data(url: str, kind: str, where: str, settings: ApiSettings) -> Upload:
    head, comma, data = url.partition(",")
    declared, *options = head[len("data:") :].lower().split(";")
    if not comma or not options or options[-1].strip() != "base64":
        raise ApiError(400, f"{where}: expected data:TYPE;base64,DATA", where)
    known = EXTENSIONS[kind]
    if declared.strip() not in known:
        raise ApiError(400, f"{where}: {declared[:60]!r} in {kind}; accepted: {', '.join(known)}", where)
    return _upload(data, known[declared.strip()], where, settings)


def _upload(data: str, extension: str, where: str, settings: ApiSettings) -> Upload:
    if len(data) // 4 * 3 > settings.media_bytes + 2:
        raise ApiError(413, f"{where}: the file is larger than {settings.media_bytes} bytes", where, "too_large")
    try:
        content = base64.b64decode(data.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ApiError(400, f"{where}: not base64", where) from None
    if not content:
        raise ApiError(400, f"{where}: the file has 0 bytes", where)
    return Upload(content, extension, f"{hashlib.sha256(content).hexdigest()}.{extension}")
