"""Whom the contract's tests ask: an engine, itself or through the proxy."""

import json
from dataclasses import dataclass
from typing import Any, Literal

import httpx

CHAT = "/v1/chat/completions"
BATCH = "/v1/chat/completions/batch"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"

DONE = "[DONE]"

_HELLO = [{"role": "user", "content": "Say hello."}]

_ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": _HELLO, "max_tokens": 8, "temperature": 0},
    BATCH: {"messages": [_HELLO, _HELLO], "max_tokens": 8, "temperature": 0},
    COMPLETIONS: {"prompt": "Paris is", "max_tokens": 8, "temperature": 0},
    RESPONSES: {"input": "Say hello.", "max_output_tokens": 8, "temperature": 0},
    MESSAGES: {"messages": _HELLO, "max_tokens": 8, "temperature": 0},
    "/tokenize": {"prompt": "Paris is"},
    "/detokenize": {"tokens": [1]},
    "/v1/embeddings": {"input": "Paris"},
    "/v1/rerank": {"query": "Paris", "documents": ["France", "Peru"]},
    "/v1/score": {"text_1": "Paris", "text_2": ["France", "Peru"]},
}

GENERATING = [CHAT, COMPLETIONS, RESPONSES, MESSAGES]
ROUTES = [*GENERATING, BATCH, "/tokenize", "/detokenize"]


@dataclass(frozen=True)
class Event:
    """One event of a stream: its name, if it has one, and its data, which is text where it is no JSON."""

    name: str | None
    data: Any


@dataclass(frozen=True)
class Target:
    """An engine, as a client meets it.

    Attributes:
        kind: A fake that answers by heart, one that models an engine, or vLLM.
        is_proxied: Whether the proxy stands between.
        client: Of the engine, or of the proxy.
        engine: Of the engine in any case.
        model: That it serves.
        pooling: Whether it serves what pooling models serve.
    """

    kind: Literal["fake", "modelled", "vllm"]
    is_proxied: bool
    client: httpx.AsyncClient
    engine: httpx.AsyncClient
    model: str
    pooling: bool

    def body(self, path: str, **fields: Any) -> dict[str, Any]:
        """A good, short request, with these fields beside or instead."""
        return {"model": self.model, **_ASKED[path], **fields}

    async def post(self, path: str, **fields: Any) -> httpx.Response:
        """The answer to such a request."""
        return await self.client.post(path, json=self.body(path, **fields))

    async def ask(self, path: str, **fields: Any) -> dict[str, Any]:
        """The body of such an answer, which is a success."""
        answer = await self.post(path, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        whole: dict[str, Any] = answer.json()
        return whole

    async def events(self, path: str, **fields: Any) -> list[Event]:
        """The events of such an answer, streamed."""
        answer = await self.post(path, stream=True, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        *blocks, end = answer.text.split("\n\n")
        assert end == ""
        return [_event(block) for block in blocks]

    async def chunks(self, path: str, **fields: Any) -> list[dict[str, Any]]:
        """The data of a stream that ends with `[DONE]`, without that."""
        *events, done = await self.events(path, **fields)
        assert done == Event(None, DONE)
        assert {event.name for event in events} == {None}
        return [event.data for event in events]

    async def metric(self, name: str, **labels: str) -> float:
        """One of the engine's metrics, told by the engine itself."""
        lines = (await self.engine.get("/metrics")).text.splitlines()
        told = [line for line in lines if line.startswith(f"vllm:{name}{{")]
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        [line] = [line for line in told if all(each in line for each in wanted)]
        return float(line.rpartition(" ")[2])


def keys(told: dict[str, Any], required: str, optional: str = "") -> None:
    """Check that an object has these fields, given by name with spaces between, and no others."""
    assert {*required.split()} <= {*told} <= {*required.split(), *optional.split()}


def _event(block: str) -> Event:
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    data = fields["data"]
    return Event(fields.get("event"), data if data == DONE else json.loads(data))
