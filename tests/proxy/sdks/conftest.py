"""Proxies as the clients of these tests meet them: one that works, one that asks for keys, one that is full."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from muster_batching import RequestClass
from muster_proxy.keys import KeySettings, digest_of
from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.asking import post, until_waiting
from tests.proxy.conftest import Proxied

KEY = "sk-muster-a-key-for-tests"

WORDS = ["Hello", " there,", " how", " are", " you?"]
"""What `Reply()` says, event by event."""


@dataclass
class Full:
    """A proxy with one slot, which is taken, and one place to wait, which is taken too.

    Attributes:
        url: Where it listens.
        release: Lets the engine answer.
    """

    url: str
    release: asyncio.Event


@pytest.fixture
async def proxy_url(proxied: Proxied, engine: FakeVllm) -> AsyncIterator[str]:
    """A proxy in front of `engine`."""
    async with proxied(engine.url) as client:
        yield str(client.base_url)


@pytest.fixture
async def keyed_url(proxied: Proxied, engine: FakeVllm) -> AsyncIterator[str]:
    """A proxy in front of `engine` that asks for `KEY`."""
    key = KeySettings(digest=digest_of(KEY), tenant="ada", request_class=RequestClass.INTERACTIVE)
    async with proxied(engine.url, keys=[key]) as client:
        yield str(client.base_url)


@pytest.fixture
async def full(proxied: Proxied) -> AsyncIterator[Full]:
    """A proxy in front of an engine of its own that turns away what comes."""
    release = asyncio.Event()
    async with FakeVllm() as engine, proxied(engine.url, limit=1, max_waiting=1) as client:
        engine.script(Reply(release=release))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_ask(client))
            await engine.arrived.acquire()
            tasks.create_task(_ask(client))
            await until_waiting(client, 1)
            with contextlib.ExitStack() as at_end:
                at_end.callback(release.set)
                yield Full(str(client.base_url), release)


async def _ask(client: httpx.AsyncClient) -> None:
    assert (await post(client)).is_success
