"""Fetch files by URL, from public hosts, and from others only if the setting `fetch_hosts` names them.

A name is resolved once for each request, and the address that was checked is the one that is dialled. The certificate
is checked against the name. Each redirect is checked as the first URL is.
"""

import asyncio
import posixpath
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager

import httpx

from serve.api.errors import ApiError
from serve.api.media.addresses import is_public
from serve.api.media.files import SentFile, Spool
from serve.api.media.types import Types
from serve.api.settings import ApiSettings

REDIRECTS = 3
ADDRESSES = 4  # of a host that are tried
AT_ONCE = 16  # connections, and names that are being resolved
UNTYPED = ("", "application/octet-stream", "binary/octet-stream")
PORTS = {"http": 80, "https": 443}
HEADERS = {"User-Agent": "avllm", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}


class Fetcher:
    """Fetches.

    Args:
        settings: of the server.
        spool: where files are put.
    """

    def __init__(self, settings: ApiSettings, spool: Spool) -> None:
        self._settings, self._spool = settings, spool
        self._resolvers = ThreadPoolExecutor(AT_ONCE, "avllm resolver")
        # no connection is used twice: a kept connection may have been checked for another name
        self._client = httpx.AsyncClient(
            headers=HEADERS, trust_env=False, follow_redirects=False, timeout=None, verify=httpx.create_ssl_context(),
            limits=httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0),
        )  # fmt: skip

    async def fetch(self, url: str, types: Types, where: str) -> SentFile:
        """Fetch a file.

        Args:
            url: of the file.
            types: that are accepted.
            where: the field of the request.

        Raises:
            ApiError: the URL is not allowed or cannot be fetched, or gives another type, or too much.
        """
        try:
            async with asyncio.timeout(self._settings.fetch_seconds):
                return await self._fetch(url, types, where)
        except TimeoutError:
            said = f"{where}: not fetched within {self._settings.fetch_seconds:g} s"
            raise ApiError(400, said, where, "fetch_failed") from None
        except (httpx.HTTPError, httpx.StreamError):
            raise ApiError(400, f"{where}: the URL's server does not answer", where, "fetch_failed") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        self._resolvers.shutdown(wait=False)

    async def _fetch(self, url: str, types: Types, where: str) -> SentFile:
        target = _parsed(url, where)
        for _ in range(1 + REDIRECTS):
            found = await self._hop(target, types, where)
            if isinstance(found, SentFile):
                return found
            target = found
        raise ApiError(400, f"{where}: more than {REDIRECTS} redirects", where, "fetch_failed")

    async def _hop(self, url: httpx.URL, types: Types, where: str) -> SentFile | httpx.URL:
        """The file of a URL, or where it redirects to."""
        with ExitStack() as on_failure:
            async with self._asked(url, where) as response:
                if response.has_redirect_location:
                    return _joined(url, response.headers["location"], where)
                sent = await self._received(response, url, types, where)
                on_failure.callback(sent.remove)  # closing the connection may be cancelled
            on_failure.pop_all()
        return sent

    @asynccontextmanager
    async def _asked(self, url: httpx.URL, where: str) -> AsyncIterator[httpx.Response]:
        """The response of a URL's host, at the first of its addresses that answers."""
        host = url.raw_host.decode()
        extensions = {"sni_hostname": host.strip("[]")}
        headers = {"Host": url.netloc.decode()}
        for address in (addresses := await self._addresses(url, where)):
            request = self._client.build_request(
                "GET", url.copy_with(host=address), headers=headers, extensions=extensions
            )
            try:
                response = await self._client.send(request, stream=True)
            except httpx.ConnectError:
                if address == addresses[-1]:
                    raise
                continue
            try:
                yield response
            finally:
                await response.aclose()
            return

    async def _addresses(self, url: httpx.URL, where: str) -> list[str]:
        """The addresses of a URL's host, all of which are public, unless the settings name it."""
        refused = ApiError(400, f"{where}: this URL is not allowed", where, "url_not_allowed")
        port = url.port or PORTS.get(url.scheme)
        if url.scheme not in self._settings.fetch_schemes or url.userinfo or not url.host or not port:
            raise refused
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._resolvers, _resolve, url.raw_host.decode().strip("[]"), port)
        except (OSError, UnicodeError):  # as for a private host: nobody learns which names are known here
            raise refused from None
        known = {url.host.lower(), f"{url.host.lower()}:{port}"} & set(self._settings.fetch_hosts)
        if not known and not all(map(is_public, found)):
            raise refused
        return found[:ADDRESSES]

    async def _received(self, response: httpx.Response, url: httpx.URL, types: Types, where: str) -> SentFile:
        if response.status_code != 200:
            raise ApiError(400, f"{where}: the URL answers {response.status_code}", where, "fetch_failed")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(400, f"{where}: the URL gives a compressed answer", where, "fetch_failed")
        with self._spool.receive(_extension(response, url, types, where), where) as incoming:
            declared = response.headers.get("content-length", "")
            incoming.check_size(int(declared) if declared.isdecimal() else 0)
            async for chunk in response.aiter_raw():
                incoming.write(chunk)
            return incoming.finish()


def _parsed(url: str, where: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise ApiError(400, f"{where}: not a URL", where, "url_not_allowed") from None


def _joined(url: httpx.URL, location: str, where: str) -> httpx.URL:
    try:
        return url.join(location)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise ApiError(400, f"{where}: it redirects to no URL", where, "fetch_failed") from None


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _extension(response: httpx.Response, url: httpx.URL, types: Types, where: str) -> str:
    """As what a file is read: by its declared type, or by the URL's ending if the type says nothing."""
    declared = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    ending = posixpath.splitext(url.path)[1].removeprefix(".").lower()
    found = types.endings.get(ending) if declared in UNTYPED else types.declared.get(declared)
    if found is None:
        accepted = ", ".join(types.declared)
        raise ApiError(400, f"{where}: the URL gives {declared[:60]!r}; accepted: {accepted}", where, "wrong_type")
    return found
