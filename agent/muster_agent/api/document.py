"""What `/openapi.json` tells of the routes: their bodies, paths and queries, each name resolved."""

import re
from collections.abc import Callable, Sequence
from typing import Any, cast

from fastapi import FastAPI
from pydantic import BaseModel

_IN_PATH = re.compile(r"\{(\w+)(?::path)?\}")
_DETAIL = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
_REFERENCE = "#/components/schemas/{model}"


def operation(path: str, body: type[BaseModel] | None, query: Sequence[str]) -> dict[str, Any]:
    """What FastAPI cannot read from a handler that takes the request as it is."""
    told: dict[str, Any] = {
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": _text()}
                for name in _IN_PATH.findall(path)
            ),
            *({"name": name, "in": "query", "required": False, "schema": _text()} for name in query),
        ],
        "tags": [path.split("/")[1]],
    }
    if body is not None:
        # The definitions move to the document's own place for them: see `complete`.
        schema = body.model_json_schema(ref_template=_REFERENCE)
        told["requestBody"] = {"content": {"application/json": {"schema": schema}}, "required": True}
    if not path.startswith("/v1/"):
        content = {"application/json": {"schema": _DETAIL}}
        told["responses"] = {"default": {"description": "What is wrong.", "content": content}}
    return told


def _text() -> dict[str, Any]:
    return {"type": "string"}


def completing(app: FastAPI, made: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """FastAPI's document, with the definitions that bodies refer to where they refer to."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(made())
        return app.openapi_schema

    return document


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    definitions: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    operations = cast(
        "list[dict[str, Any]]", [each for path in document["paths"].values() for each in path.values()]
    )
    for each in operations:
        content = each.get("requestBody", {}).get("content", {}).get("application/json", {})
        definitions |= content.get("schema", {}).pop("$defs", {})
    return document
