"""What the service is."""

from importlib.metadata import version

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from muster_agent.api import document
from muster_agent.api.requests import Json, add


def add_meta(app: FastAPI) -> None:
    """Add the routes, and the document of all routes."""
    releases = _releases()  # they are read from the disk, so before the first request

    async def info(_request: Request) -> Response:
        return releases.response()

    add(app, "GET", "/ok", _ok)
    add(app, "GET", "/info", info)
    app.openapi = document.completing(app, app.openapi)


async def _ok(_request: Request) -> Response:
    return Json({"ok": True}).response()


def _releases() -> Json:
    flags = {"assistants": True, "crons": False, "langsmith": False}
    told = {"version": version("muster"), "langgraph_py_version": version("langgraph"), "flags": flags}
    return Json({**told, "host": {"kind": "self-hosted"}})
