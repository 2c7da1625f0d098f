"""Clients that do not give up: each has one run on one thread, and asks again after every break until it has ended."""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Any

import aiohttp

from tests.benchmarks.agents.events import Event, events
from tests.benchmarks.agents.scripted_model import Asked

_AGAIN_S = 0.05
_STREAMED = {"stream_mode": ["messages-tuple", "updates"], "stream_resumable": True}

Broken = (aiohttp.ClientError, ConnectionError, TimeoutError)


class RefusedError(Exception):
    """The service answered with an error."""


class Conversation:
    """One run on one thread.

    Args:
        session: Keeps connections.
        urls: Roots of the services; it asks any of them, each time.
        number: Its number; the line that its run writes.
        steps: Of its run.
    """

    def __init__(
        self, session: aiohttp.ClientSession, urls: Sequence[str], number: int, steps: int = 3
    ) -> None:
        self.number = number
        self.thread_id = f"00000000-0000-4000-8000-{number:012d}"
        self.run_id: str | None = None
        self.heard: list[Event] = []
        self.breaks = 0
        self.is_over = False
        self._session = session
        self._urls = urls
        self._steps = steps
        self._random = random.Random(number)  # noqa: S311 - no secret

    def __repr__(self) -> str:
        return (
            f"<Conversation {self.number}: run {self.run_id}, {len(self.heard)} events, {self.breaks} breaks>"
        )

    @property
    def is_streamed(self) -> bool:
        """Whether it hears its run out; the others wait for its result."""
        return self.number % 2 == 0

    async def held(self) -> None:
        """Make the thread and the run, and stay with it until it has ended.

        Raises:
            RefusedError: The service answered with an error.
        """
        await self._until_done(self._make_thread)
        await self._until_done(self._hear if self.is_streamed else self._wait)
        self.is_over = True

    async def _until_done(self, attempt: Any) -> None:
        while True:
            try:
                if await attempt():
                    return
                self.breaks += 1
            except aiohttp.ClientConnectorError:  # nobody is there
                await asyncio.sleep(_AGAIN_S)
            except Broken:
                self.breaks += 1

    async def _make_thread(self) -> bool:
        body = {"thread_id": self.thread_id, "if_exists": "do_nothing"}
        async with self._ask("POST", "/threads", json=body) as answer:
            await _checked(answer)
            return True

    async def _hear(self) -> bool:
        """Hear what is still to be heard. Returns whether the run has ended."""
        at = self._order("stream", **_STREAMED) if self.run_id is None else self._come_back()
        async with at as answer:
            await _checked(answer)
            self._know_run(answer)
            async for event in events(answer.content.iter_any()):
                self.heard.append(event)
        return bool(self.heard) and self.heard[-1].name == "end"

    async def _wait(self) -> bool:
        """Wait for the run's result. Returns whether it has come."""
        if self.run_id is None:
            async with self._order("wait") as answer:
                await _checked(answer)
                self._know_run(answer)
                return bool(await answer.json())
        async with self._ask("GET", f"/threads/{self.thread_id}/runs/{self.run_id}/join") as answer:
            await _checked(answer)
            return bool(await answer.json())

    def _order(self, way: str, **more: Any) -> Any:
        """Make the run; a second try finds the first one's."""
        asked = Asked(self._steps, line=str(self.number))
        body = {"assistant_id": "agent", "input": {"messages": [asked.message()]}, **more}
        headers = {"idempotency-key": f"order-{self.number}"}
        return self._ask("POST", f"/threads/{self.thread_id}/runs/{way}", json=body, headers=headers)

    def _come_back(self) -> Any:
        last = str(self.heard[-1].number) if self.heard else "0"
        where = f"/threads/{self.thread_id}/runs/{self.run_id}/stream"
        return self._ask("GET", where, headers={"last-event-id": last})

    def _know_run(self, answer: aiohttp.ClientResponse) -> None:
        self.run_id = answer.headers["content-location"].rpartition("/")[2]

    async def runs(self) -> list[dict[str, Any]]:
        """The runs of its thread."""
        return await self._read(f"/threads/{self.thread_id}/runs")

    async def history(self) -> list[dict[str, Any]]:
        """The checkpoints of its thread, newest first."""
        return await self._read(f"/threads/{self.thread_id}/history?limit=1000")

    async def messages(self) -> list[dict[str, Any]]:
        """What is said on its thread."""
        state: Any = await self._read(f"/threads/{self.thread_id}/state")
        return list(state["values"].get("messages", ()))

    async def replay(self) -> list[Event]:
        """Everything that the run has said, from the log."""
        where = f"/threads/{self.thread_id}/runs/{self.run_id}/stream"
        async with self._ask("GET", where, headers={"last-event-id": "0"}) as answer:
            await _checked(answer)
            return [event async for event in events(answer.content.iter_any())]

    async def _read(self, path: str) -> Any:
        async with self._ask("GET", path) as answer:
            await _checked(answer)
            return await answer.json()

    def _ask(self, method: str, path: str, **given: Any) -> Any:
        return self._session.request(method, f"{self._random.choice(self._urls)}{path}", **given)


async def _checked(answer: aiohttp.ClientResponse) -> None:
    if answer.status != 200:
        words = ""
        with contextlib.suppress(*Broken):
            words = (await answer.text())[:300]
        raise RefusedError(f"{answer.method} {answer.url.path}: {answer.status} {words}")
