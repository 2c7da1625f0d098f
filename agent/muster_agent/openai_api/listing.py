"""Lists in OpenAI's shape."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from muster_agent import failures

_USUAL = 20
_MOST = 100


def page_of(request: Request, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The part of a list that a request's query asks for; `items` are oldest first, and are told newest first.

    Raises:
        Failure: 400, the query is wrong.
    """
    limit, order = _limit(request), request.query_params.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise failures.bad_request("expected asc or desc", param="order")
    listed = list(items) if order == "asc" else list(items)[::-1]
    after = request.query_params.get("after")
    if after is not None:
        places = [place for place, item in enumerate(listed) if item["id"] == after]
        if not places:
            raise failures.bad_request("there is no such item", param="after")
        listed = listed[places[0] + 1 :]
    page = listed[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(listed) > len(page),
    }


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(_USUAL))
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= _MOST:
        raise failures.bad_request(f"expected a number from 1 to {_MOST}", param="limit")
    return int(text)
