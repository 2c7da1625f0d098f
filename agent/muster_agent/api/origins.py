"""Pages of other sites: which of them a browser lets use this service.

`*` is not to be had. Whether callers need keys is the proxy's to say, and can change while the service runs; where none
are needed, any page that somebody visits could read his threads and have his agents work. So origins are named. Those
that are get what their scripts need: every header, no cookies (keys come in headers), preflights without a key.
"""

from collections.abc import Callable, Collection
from typing import TypeAlias
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

_HARMLESS = {"GET", "HEAD", "OPTIONS"}
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_EXPOSED = (
    *("location", "content-location", "x-pagination-total", "x-pagination-next"),
    *("x-request-id", "x-agent-run-id", "x-agent-thread-id"),
)
"""The headers of answers that LangGraph's and OpenAI's clients read."""


Refuse: TypeAlias = Callable[[Request], Response]


class OwnPagesOnly:
    """Refuses what a browser sends for a page of another site and what would change something.

    A browser asks before it sends most of that, but not before a form or what looks like one; the page cannot read the
    answer, and an agent would have worked all the same.

    Args:
        app: The application inside.
        allowed: The origins that are let in.
        refuse: Makes the answer.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str], refuse: Refuse) -> None:
        self._app = app
        self._allowed = allowed
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["method"] not in _HARMLESS and self._is_foreign(scope):
            await self._refuse(Request(scope))(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_foreign(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        # The browser's own word for how the page's site is related to what it asked for, whatever proxies do to `Host`.
        is_other = headers.get("sec-fetch-site") in {"cross-site", "same-site"}
        return is_other and headers.get("origin") not in self._allowed


def let_in(app: FastAPI, allowed: Collection[str], refuse: Refuse) -> None:
    """Answer browsers that ask for pages of these origins, and no others; without any, a preflight is a 405 as ever."""
    app.add_middleware(OwnPagesOnly, allowed=allowed, refuse=refuse)
    if not allowed:
        return
    app.add_middleware(
        CORSMiddleware,
        allow_origins=allowed,
        allow_methods=_METHODS,
        allow_headers=("*",),
        expose_headers=_EXPOSED,
        allow_private_network=True,  # a public page (LangGraph's Studio) on the machine where the service runs
    )


def may_use(origin: str | None, host: str | None, allowed: Collection[str]) -> bool:
    """Whether a page of this origin may: it is listed, or the service's own. What is no browser names none."""
    if origin is None or origin in allowed:
        return True
    try:
        return urlsplit(origin).netloc == host
    except ValueError:  # no URL, such as `http://[`
        return False


def headers_for(request: Request, allowed: Collection[str]) -> dict[str, str]:
    """What lets a page read an answer that no middleware sees."""
    origin = request.headers.get("origin")
    return {"access-control-allow-origin": origin, "vary": "Origin"} if origin in allowed and origin else {}
