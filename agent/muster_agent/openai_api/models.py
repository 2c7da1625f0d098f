"""`/v1/models`: each assistant is a model."""

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from muster_agent.agents.assistants import Assistant
from muster_agent.api.requests import Json, add, caller_of, service_of
from muster_agent.openai_api.reading import assistant_of


def add_models(app: FastAPI) -> None:
    """Add the routes."""
    add(app, "GET", "/v1/models", _list)
    add(app, "GET", "/v1/models/{model:path}", _get)  # names may have slashes


async def _list(request: Request) -> Response:
    await caller_of(request)
    cards = [_card(assistant, assistant.openai_model) for assistant in service_of(request).assistants]
    return Json({"object": "list", "data": cards}).response()


async def _get(request: Request) -> Response:
    await caller_of(request)
    name = request.path_params["model"]
    return Json(_card(assistant_of(request, name), name)).response()


def _card(assistant: Assistant, name: str) -> dict[str, Any]:
    created = int(assistant.made_at.timestamp())
    return {"id": name, "object": "model", "created": created, "owned_by": "muster"}
