"""Asking the service as a client without opinions does."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from muster_agent.testing import CallTools, Hold, ModelCall, Reply, Say, ScriptedAgent

MISSING = "912a721f-f6fa-442a-aec1-359b2a50e026"
"""A UUID that nothing has."""


def asks(text: str) -> dict[str, Any]:
    """A run's input."""
    return {"messages": [{"role": "user", "content": text}]}


def run(text: str = "hi", assistant: str = "agent", **fields: Any) -> dict[str, Any]:
    """The body of a run."""
    return {"assistant_id": assistant, "input": asks(text), **fields}


def improvise(call: ModelCall) -> Reply:
    """A model that does what the user's words ask for: `calc` uses a tool, `slow` never answers."""
    role, text = call.messages[-1]
    if role == "tool":
        return Say("The answer is 4.")
    if "slow" in text:
        return Hold(Say("never"))
    return CallTools([("calculator", {"expression": "2+2"})]) if "calc" in text else Say(f"re: {text}")


class Caller:
    """Sends requests with one key.

    Args:
        http: The client.
        agent: The service.
        key: The key; None for none.
    """

    def __init__(self, http: httpx.AsyncClient, agent: ScriptedAgent, key: str | None = None) -> None:
        self._http = http
        self._agent = agent
        self._key = key

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        **request: Any,
    ) -> httpx.Response:
        """The response to a request; `body` is JSON."""
        mine = {} if self._key is None else {"x-api-key": self._key}
        given: dict[str, Any] = {"headers": {**mine, **(headers or {})}, **request}
        if body is not None:
            given["json"] = body
        return await self._http.request(method, f"{self._agent.url}{path}", **given)

    async def get(self, path: str) -> Any:
        """The JSON of a GET that succeeds."""
        return (await self.send("GET", path)).raise_for_status().json()

    async def post(self, path: str, body: object = None) -> Any:
        """The JSON of a POST that succeeds."""
        answer = await self.send("POST", path, {} if body is None else body)
        return answer.raise_for_status().json() if answer.content else None

    async def thread(self, **fields: Any) -> str:
        """A new thread."""
        made: str = (await self.post("/threads", fields))["thread_id"]
        return made


def keys(value: object) -> object:
    """The keys of an object, or of each object of a list."""
    if isinstance(value, list):
        every: Sequence[Any] = value
        return [set(each) for each in every]
    return set(value) if isinstance(value, dict) else type(value)
