"""The HTTP client of the fetch tool: one GET, every hop of it checked before it is dialled.

It stands on httpcore2, the layer under httpx2: this has no cookies, no credentials, no proxies, no redirects
and no second URL parser that would have to be switched off. What a hop goes through, in this order:

1. The host is on the allow-list, does not look internal unless listed itself, and the port is permitted.
2. The name is resolved once, in a worker thread. One answer that may not be dialled refuses them all: a name
   with a public and a private address is an attack or a mistake.
3. A connection of its own is opened to the addresses of step 2. Nothing is resolved again, and no connection
   outlives its hop, so none is used for an address that a later hop would not pass.

An attacker who can time answers still learns a little, and a name that does not exist reads differently from
one that exists and is private.
"""

import ssl
import zlib
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from ipaddress import ip_address
from socket import SOCK_STREAM, getaddrinfo
from typing import Final

import anyio
import httpcore2
from anyio import to_thread

from muster_agent.tools.complaints import ToolComplaint
from muster_agent.tools.fetch.addresses import IPAddress, IPNetwork, may_be_dialled
from muster_agent.tools.fetch.complaints import PageError, RefusedError, unreachable
from muster_agent.tools.fetch.dialler import PinnedDialler
from muster_agent.tools.fetch.hosts import Claim, allow_list, literal, looks_internal
from muster_agent.tools.fetch.settings import FetchSettings
from muster_agent.tools.fetch.urls import PageUrl, redirected

Resolve = Callable[[str, int], Sequence[IPAddress]]
"""Finds the addresses of a name; called in a worker thread; raises `OSError` where there are none."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_DIALLED: Final = 4
"""Addresses that are tried; all are checked."""
_MOST_RESOLVING: Final = 8
"""Names that are resolved at a time: a dead resolver must not hold the threads that other tools run in."""
_HEADERS: Final = (
    (b"User-Agent", b"muster-agent"),
    (
        b"Accept",
        b"text/html, application/xhtml+xml, text/*;q=0.9, application/json;q=0.9, application/xml;q=0.8",
    ),
    (b"Accept-Encoding", b"gzip"),
    (b"Connection", b"close"),
)
_FAILURES: Final = (
    OSError,
    TimeoutError,
    zlib.error,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
)


@dataclass(frozen=True, slots=True)
class Page:
    """What a server answered.

    Args:
        url: Where it was found in the end.
        content_type: The header of this name, in lower case.
        body: Decompressed.
        is_cut: Whether there was more of it than may be read.
    """

    url: PageUrl
    content_type: str
    body: bytes
    is_cut: bool


@dataclass(frozen=True, slots=True)
class _Redirect:
    locations: list[bytes]


def system_addresses(host: str, port: int) -> Sequence[IPAddress]:
    """Ask the system's resolver; blocks."""
    return [ip_address(answer[4][0]) for answer in getaddrinfo(host, port, type=SOCK_STREAM)]


class PageClient:
    """Fetches pages.

    Args:
        settings: The bounds.
        tls: How certificates are checked.
        resolve: The resolver.
    """

    def __init__(self, settings: FetchSettings, tls: ssl.SSLContext, resolve: Resolve) -> None:
        self._settings = settings
        self._allowed = allow_list(settings.allow)
        self._tls = tls
        self._resolve = resolve
        self._resolving = anyio.CapacityLimiter(_MOST_RESOLVING)

    async def fetch(self, url: PageUrl) -> Page:
        """Fetch a page; cancelled, it closes its connection.

        Raises:
            RefusedError: It, or where it redirects, may not be fetched.
            PageError: There is no page, or none in time.
            ToolComplaint: Its host is not on the allow-list.
        """
        if self._allowed.claim(url.host) is Claim.NONE:
            raise ToolComplaint(f"{url.host} is not among the sites that may be fetched.")
        try:
            with anyio.fail_after(self._settings.timeout_s):
                return await self._follow(url)
        except _FAILURES as error:
            raise unreachable() from error

    async def _follow(self, url: PageUrl) -> Page:
        for _ in range(self._settings.most_redirects + 1):
            answer = await self._hop(url)
            if isinstance(answer, Page):
                return answer
            url = redirected(url, answer.locations)
        raise PageError("The page redirects too often.")

    async def _hop(self, url: PageUrl) -> Page | _Redirect:
        addresses = await self._addresses(url, self._admit(url))
        host = url.host.strip("[]")
        async with (
            httpcore2.AsyncConnectionPool(
                ssl_context=self._tls,
                max_connections=1,
                network_backend=PinnedDialler(host, url.port, addresses, self._settings.timeout_s),
            ) as connections,
            connections.stream(
                "GET",
                httpcore2.URL(scheme=url.scheme, host=host, port=url.port, target=url.target),
                headers=[(b"Host", url.authority.encode()), *_HEADERS],
            ) as response,
        ):
            return await self._answer(url, response)

    def _admit(self, url: PageUrl) -> Sequence[IPNetwork]:
        """Check host and port; returns the networks into which the host may lead besides the public ones."""
        claim = self._allowed.claim(url.host)
        if claim is Claim.NONE:
            raise RefusedError("a redirect to a host that is not on the allow-list")
        if looks_internal(url.host) and claim is not Claim.EXACT:
            raise RefusedError("an internal name")
        if url.port not in self._settings.ports:
            raise RefusedError("a port that is not permitted")
        return () if claim is Claim.ANY else self._settings.allow_networks

    async def _addresses(self, url: PageUrl, permitted: Sequence[IPNetwork]) -> Sequence[IPAddress]:
        own = literal(url.host)
        addresses = (own,) if own is not None else await self._resolved(url)
        if not all(may_be_dialled(address, permitted) for address in addresses):
            raise RefusedError("an address that is not public")
        if not addresses:
            raise unreachable()
        return list(dict.fromkeys(addresses))[:_MOST_DIALLED]

    async def _resolved(self, url: PageUrl) -> Sequence[IPAddress]:
        """Resolve a name. One that is not listed itself is resolved as absolute, with a dot at its end.

        Without the dot, a pod's resolver would try its cluster's domains first: `db.team` under `*` would
        find the service `db` of the namespace `team`.
        """
        is_exact = self._allowed.claim(url.host) is Claim.EXACT
        name = url.host if is_exact else f"{url.host}."
        return await to_thread.run_sync(
            self._resolve, name, url.port, abandon_on_cancel=True, limiter=self._resolving
        )

    async def _answer(self, url: PageUrl, response: httpcore2.Response) -> Page | _Redirect:
        locations = _values(response, b"location")
        if response.status in _REDIRECTS and locations:
            return _Redirect(locations)
        if response.status != 200:  # noqa: PLR2004 - OK
            raise PageError(f"The page answered with HTTP status {response.status}.")
        body, is_cut = await _body(response, self._settings.most_bytes)
        content_type = b"".join(_values(response, b"content-type")[:1]).decode("latin-1").lower()
        return Page(url, content_type, body, is_cut)


async def _body(response: httpcore2.Response, most_bytes: int) -> tuple[bytes, bool]:
    """Read up to `most_bytes`, and whether there was more.

    Raises:
        PageError: It is compressed in a way that was not asked for. Stacked compressions are among them,
            which is where small answers grow beyond every bound.
    """
    encoding = b",".join(_values(response, b"content-encoding")).strip().lower()
    if encoding not in {b"", b"identity", b"gzip", b"x-gzip"}:
        raise unreachable()
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding.endswith(b"gzip") else None
    body = bytearray()
    received = 0
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            received += len(chunk)
            body += inflate.decompress(chunk, most_bytes + 1 - len(body)) if inflate else chunk
            if max(received, len(body)) > most_bytes:
                return bytes(body[:most_bytes]), True
    if inflate and received and not inflate.eof:
        raise unreachable()  # it broke off within what the server believed to be a whole answer
    return bytes(body), False


def _values(response: httpcore2.Response, name: bytes) -> list[bytes]:
    return [value for key, value in response.headers if key.lower() == name]
