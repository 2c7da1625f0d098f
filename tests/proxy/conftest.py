"""A proxy that listens, in front of fake engines, all in the test's own event loop."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from muster_observability import server
from muster_proxy.app import create_app
from muster_proxy.protocol import HttpServer
from muster_proxy.settings import ProxySettings, UpstreamSettings
from muster_proxy.testing import FakeVllm

_OF_UPSTREAMS = ("limit", "tool_mode", "cache_salt", "priorities", "fetch_media", "api_key")

Proxied = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
async def engine() -> AsyncIterator[FakeVllm]:
    """A fake engine."""
    async with FakeVllm() as fake:
        yield fake


@contextlib.asynccontextmanager
async def _proxied(*urls: str, is_ready: bool = True, **fields: Any) -> AsyncGenerator[httpx.AsyncClient]:
    described = {name: fields.pop(name) for name in _OF_UPSTREAMS if name in fields}
    door = fields.pop("door", None)
    settings = ProxySettings(upstreams=[UpstreamSettings(url=url, **described) for url in urls], **fields)
    with server.bind(0, "") as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with (
            server.serving(create_app(settings, door), listener, server.Manner(HttpServer())),
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client,
        ):
            while is_ready and not (await client.get("/health/ready")).is_success:
                await asyncio.sleep(0)
            yield client


@pytest.fixture(scope="session")
def proxied() -> Proxied:
    """Starts a proxy in front of the given URLs; the block has a client of it once it is ready."""
    return _proxied


@pytest.fixture
def unused_port() -> int:
    """A port that nothing listens on now."""
    with server.bind(0, "") as listener:
        port: int = listener.getsockname()[1]
        return port
