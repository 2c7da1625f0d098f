"""Who calls: the proxy knows the keys, so it is asked whose a key is.

Threads belong to the tenant of the key. A proxy without keys has one tenant, without a name. A server that is no Muster
proxy cannot be asked; there every key is a tenant of its own, named by a digest.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import httpx2

from muster_agent import failures
from muster_agent.hosts import is_own

_KNOWN_S = 60.0
_REFUSED_S = 5.0
_MOST_KNOWN = 10_000
_MOST_KEY_CHARACTERS = 4096
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        tenant: Whose threads it sees; empty where the proxy has no keys.
        key: What it sent, which goes with the model calls it causes.
    """

    tenant: str
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Known:
    tenant: str | None  # None: the key was refused
    until_s: float
    is_secret: bool = False  # whether not everybody is this tenant


class Callers:
    """Tells callers by their keys; what the proxy said counts for a minute.

    Args:
        proxy: Its root URL.
        http: Asks it.
        own_key: The service's own key: who sends none acts for its tenant, with its key. None where it has none.
        hosts: The names by which the service may be asked for without a key that is good (`hosts`).
    """

    def __init__(
        self, proxy: str, http: httpx2.AsyncClient, own_key: str | None = None, hosts: Collection[str] = ()
    ) -> None:
        self._own_key = own_key
        self._hosts = hosts
        self._url = f"{proxy}/v1/muster/key"
        self._http = http
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Callers {len(self._known)} known>"

    async def identify(self, headers: Mapping[str, str]) -> Caller:
        """Tell who sent a request with these headers.

        Raises:
            Failure: 401, the key is nobody's; 403, nobody has to show a key and `Host` has a name that anybody may own;
                503, the proxy cannot be asked.
        """
        key = key_in(headers)
        if key is not None and not _can_be_asked_about(key):
            raise failures.wrong_key()
        shown = key or self._own_key
        digest = hashlib.sha256((shown or "").encode(errors="surrogateescape")).digest()
        known = self._known.get(digest)
        if known is None or known.until_s < time.monotonic():
            known = await self._ask(shown, digest)
        if known.tenant is None:
            raise failures.wrong_key()
        if not (key and known.is_secret) and not is_own(headers.get("host"), self._hosts):
            raise failures.unknown_name()
        return Caller(known.tenant, key)

    async def _ask(self, key: str | None, digest: bytes) -> _Known:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        try:
            answer = await self._http.get(self._url, headers=headers, timeout=_TIMEOUT_S)
        except httpx2.HTTPError as error:
            raise failures.proxy_unavailable() from error
        known = _understood(answer, key, digest)
        self._known[digest] = known
        self._known.move_to_end(digest)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return known


def key_in(headers: Mapping[str, str]) -> str | None:
    """The key of a request: OpenAI's clients send it as bearer, LangGraph's as `x-api-key`."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and bearer.strip():
        return bearer.strip()
    return headers.get("x-api-key") or None


def _can_be_asked_about(key: str) -> bool:
    """Whether a key fits into a header of our own: what does not is no key of the proxy's."""
    return len(key) <= _MOST_KEY_CHARACTERS and key.isascii() and key.isprintable()


def _understood(answer: httpx2.Response, key: str | None, digest: bytes) -> _Known:
    now_s = time.monotonic()
    match answer.status_code:
        case HTTPStatus.OK:
            tenant = _tenant(answer)
            return _Known(tenant, now_s + _KNOWN_S, is_secret=bool(tenant))
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return _Known(None, now_s + _REFUSED_S)
        case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:  # not a Muster proxy
            return _Known("" if key is None else f"key-{digest.hex()[:32]}", now_s + _KNOWN_S)
        case _:
            raise failures.proxy_unavailable()


def _tenant(answer: httpx2.Response) -> str:
    try:
        told: object = answer.json()
    except ValueError:
        raise failures.unreadable_answer() from None
    tenant: object = cast("dict[str, object]", told).get("tenant") if isinstance(told, dict) else None
    if not isinstance(tenant, str):
        raise failures.unreadable_answer()
    return tenant
