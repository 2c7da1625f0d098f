"""Requests to a proxy, and what its metrics tell."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx

MESSAGES = [{"role": "user", "content": "Hello"}]

CLASSES = ("interactive", "standard", "batch")


def body(**fields: Any) -> dict[str, Any]:
    """A good request, with these fields beside or instead."""
    return {"model": "fake-model", "messages": MESSAGES, **fields}


async def post(
    client: httpx.AsyncClient, headers: Mapping[str, str] | None = None, **fields: Any
) -> httpx.Response:
    """Send a chat completion request."""
    return await client.post("/v1/chat/completions", json=body(**fields), headers=headers)


@contextlib.asynccontextmanager
async def open_stream(client: httpx.AsyncClient, **fields: Any) -> AsyncGenerator[httpx.Response]:
    """A stream whose head has come."""
    async with client.stream("POST", "/v1/chat/completions", json=body(stream=True, **fields)) as answer:
        yield answer


async def metric(client: httpx.AsyncClient, name: str) -> float:
    """The value of a metric of the proxy, labels included in the name."""
    lines = (await client.get("/metrics")).text.splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).rpartition(" ")[2])


async def waiting(client: httpx.AsyncClient) -> float:
    """How many requests wait, of all classes."""
    return sum([await metric(client, f'muster_waiting{{class="{each}"}}') for each in CLASSES])


async def limit(client: httpx.AsyncClient) -> float:
    """The slots of the first upstream."""
    return await metric(client, 'muster_limit{upstream="upstream-1"}')


async def until_waiting(client: httpx.AsyncClient, count: int) -> None:
    """Wait until so many requests wait."""
    while await waiting(client) != count:
        await asyncio.sleep(0)
