"""The medium of a request: an item of a store, or a file. No URL reaches a decoder."""

import asyncio
import binascii
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from serve.api.errors import ApiError
from serve.api.media.fetching import Fetcher
from serve.api.media.files import Incoming, SentFile, Spool
from serve.api.media.folders import open_allowed
from serve.api.media.types import ACCEPTED
from serve.api.requests import InputAudio, Link, Medium, StoreItem
from serve.api.settings import ApiSettings

BASE64_AT_ONCE = 1 << 20  # characters, a multiple of four: Python's decoder lets no other thread run meanwhile
READ_AT_ONCE = 1 << 20
HEAD = 200  # longest `data:TYPE;base64`
LONGEST_URL = 8192  # characters; `data:` is exempt, since it holds the file


@dataclass(frozen=True)
class Item:
    """An item of a store, by the store's label; `where` is the field of the request that names it."""

    store: str
    key: str
    where: str


class Receiver:
    """Receives the media of requests.

    Args:
        settings: of the server.
        spool: where files are put.
    """

    def __init__(self, settings: ApiSettings, spool: Spool) -> None:
        self._settings, self._spool = settings, spool
        self._fetcher = Fetcher(settings, spool)

    async def receive(self, part: Medium, where: str) -> Item | SentFile:
        """What a part holds. A file must be removed by whoever gets it.

        Args:
            part: of a message.
            where: the path of the part in the request.

        Raises:
            ApiError: the part's URL or its data cannot be used.
        """
        where = f"{where}.{part.type}"
        if isinstance(part, StoreItem):
            return self._item(part.store_item.store, part.store_item.key, f"{where}.store", f"{where}.key")
        if isinstance(part, InputAudio):
            return await self._decoded(part.input_audio.data, 0, part.input_audio.format, f"{where}.data")
        return await self._linked(part, f"{where}.url")

    async def close(self) -> None:
        """Close connections."""
        await self._fetcher.close()

    async def _linked(self, part: Link, where: str) -> Item | SentFile:
        scheme, colon, _ = part.url[:16].partition(":")
        scheme = scheme.lower() if colon else ""
        if scheme == "data":
            return await self._data(part, where)
        if len(part.url) > LONGEST_URL:
            raise ApiError(400, f"{where}: longer than {LONGEST_URL} characters", where, "url_not_allowed")
        if scheme == "store":
            return self._named_item(part.url, where)
        if scheme == "file" and self._settings.media_folders:
            return await self._copied(part, where)
        if scheme in self._settings.fetch_schemes:
            return await self._fetcher.fetch(part.url, ACCEPTED[part.type], where)
        files = ("file:",) if self._settings.media_folders else ()
        accepted = ", ".join([*(f"{scheme}:" for scheme in self._settings.fetch_schemes), *files])
        said = f"{where}: accepted: data: with base64, store://LABEL/KEY{accepted and f', {accepted}'}"
        raise ApiError(400, said, where, "url_not_allowed")

    async def _data(self, part: Link, where: str) -> SentFile:
        comma = part.url.find(",", 0, HEAD)
        declared, *options = part.url[len("data:") : max(0, comma)].lower().split(";")
        if comma < 0 or not options or options[-1].strip() != "base64":
            raise ApiError(400, f"{where}: expected data:TYPE;base64,DATA", where)
        known = ACCEPTED[part.type].declared
        if declared.strip() not in known:
            said = f"{where}: {declared[:60]!r} in {part.type}; accepted: {', '.join(known)}"
            raise ApiError(400, said, where, "wrong_type")
        return await self._decoded(part.url, comma + 1, known[declared.strip()], where)

    async def _decoded(self, data: str, start: int, extension: str, where: str) -> SentFile:
        with self._spool.receive(extension, where) as incoming:
            incoming.check_size((len(data) - start) // 4 * 3 - 2)  # three bytes in four characters; two may be padding
            await asyncio.to_thread(_decode, data, start, incoming, where)
            return incoming.finish()

    async def _copied(self, part: Link, where: str) -> SentFile:
        source, extension = await asyncio.to_thread(
            open_allowed, part.url, self._settings.media_folders, ACCEPTED[part.type], where
        )
        with source, self._spool.receive(extension, where) as incoming:
            while data := await asyncio.to_thread(source.read, READ_AT_ONCE):
                await asyncio.to_thread(incoming.write, data)
            return incoming.finish()

    def _item(self, label: str | None, key: str, where: str, where_key: str) -> Item:
        stores = self._settings.stores
        if label is None and len(stores) == 1:
            label = next(iter(stores))
        labels = ", ".join(sorted(stores)) or "none"
        if label is None:
            raise ApiError(400, f"{where}: name the store; this server has: {labels}", where)
        if label not in stores:
            raise ApiError(404, f"{where}: no such store; this server has: {labels}", where, "store_not_found")
        return Item(label, key, where_key)

    def _named_item(self, url: str, where: str) -> Item:
        try:
            label, path = urlsplit(url).netloc, urlsplit(url).path
        except ValueError:
            label, path = "", ""
        if not label or len(path) < 2:
            raise ApiError(400, f"{where}: expected store://LABEL/KEY", where)
        return self._item(label, unquote(path[1:]), where, where)


def _decode(data: str, start: int, incoming: Incoming, where: str) -> None:
    """Write the bytes of base64, from a place on."""
    try:
        for at in range(start, len(data), BASE64_AT_ONCE):
            decoded = binascii.a2b_base64(data[at : at + BASE64_AT_ONCE], strict_mode=True)
            if at + BASE64_AT_ONCE < len(data) and len(decoded) != BASE64_AT_ONCE // 4 * 3:
                raise ValueError  # padding before the end
            incoming.write(decoded)
    except ValueError:
        raise ApiError(400, f"{where}: not base64", where) from None
