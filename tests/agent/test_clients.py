"""The ways to the proxy."""

import asyncio

import pytest

from muster_agent.clients import connect
from muster_agent.settings import AgentSettings
from muster_agent.testing import Hold, Say, ScriptedModel
from muster_observability import server

pytestmark = pytest.mark.anyio

MANY = 130
"""More calls at once than HTTP clients make by themselves."""


async def test_no_queue_in_front_of_the_proxys() -> None:
    """Every call is the proxy's to schedule: as many as there are reach it at once, and the answers come back."""
    release = asyncio.Event()
    model = ScriptedModel(lambda _call: Hold(Say("Here."), release=release))
    listener = server.bind(0, "--port")
    async with server.serving(model, listener):
        clients = await asyncio.to_thread(connect, AgentSettings(proxy=server.url_of(listener), model="m"))
        try:
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(clients.model.ainvoke("hi")) for _ in range(MANY)]
                for _ in range(MANY):
                    await model.received()
                release.set()
            assert {str(call.result().text) for call in calls} == {"Here."}
        finally:
            await clients.aclose()
