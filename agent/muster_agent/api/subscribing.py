"""What clients of LangGraph's second protocol want to hear, and hearing it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from pydantic import Field

from muster_agent.api.requests import Body
from muster_agent.runs.thread_events import Heard
from muster_agent.service import Service
from muster_agent.streams.subscriptions import Subscription
from muster_agent.streams.tape import Tape, place_of

if TYPE_CHECKING:
    from muster_agent.streams.tape import ThreadEvent


class SubscriptionBody(Body):
    """What a client wants to hear."""

    channels: list[str] = Field(min_length=1, max_length=100)
    namespaces: list[list[str]] | None = Field(default=None, max_length=1000)
    depth: int | None = Field(default=None, ge=0)
    since: int | None = Field(default=None, ge=0, lt=2**53)


async def subscribed(
    service: Service, tenant: str, thread_id: str, body: SubscriptionBody
) -> AsyncGenerator["ThreadEvent"]:
    """The events of a thread that somebody wants, behind the last one that he has, those to come included."""
    wanted = Subscription(frozenset(body.channels), body.namespaces or (), body.depth)
    tape = Tape()
    known = Heard.until(place_of(body.since or 0))
    async with aclosing(service.thread_events.follow(tenant, thread_id, known)) as heard:
        async for said in heard:
            for event in tape.play(said):
                if event.seq > (body.since or 0) and wanted.wants(event.method, event.namespace):
                    yield event
