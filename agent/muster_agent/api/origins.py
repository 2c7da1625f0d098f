"""Pages of other sites: which of them a browser lets use this service.

`*` is not to be had. Whether callers need keys is the proxy's to say, and can change while the service runs; where none
are needed, any page that somebody visits could read his threads and have his agents work. So origins are named. Those
that are get what their scripts need: every header, no cookies (keys come in headers), preflights without a key.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_EXPOSED = (
    *("location", "content-location", "x-pagination-total", "x-pagination-next"),
    *("x-request-id", "x-agent-run-id", "x-agent-thread-id"),
)
"""The headers of answers that LangGraph's and OpenAI's clients read."""


def let_in(app: FastAPI, allowed: Collection[str]) -> None:
    """Answer browsers that ask for pages of these origins; without any, a preflight is a 405 as ever."""
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
