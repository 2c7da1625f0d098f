"""Fakes for tests of the agent, and of what talks to it: real servers on the loopback interface.

`ScriptedModel` stands where the proxy stands. It plays a script, one reply a model call, and remembers what
it was asked and which calls were broken off. `scripted_agent` runs the real application in front of one.
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from muster_agent.agents.declarations import AgentsFile
from muster_agent.app import create_app
from muster_agent.disconnects import until_disconnect
from muster_agent.settings import AgentSettings
from muster_observability import server

MODEL = "scripted-model"
"""The model that a `ScriptedModel` lists."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The usage of one model call."""

    prompt: int = 10
    completion: int = 5


@dataclass(frozen=True, slots=True)
class Say:
    """The model answers `text`; streamed, a word a chunk. A finish reason of None: the answer breaks off."""

    text: str
    finish_reason: str | None = "stop"
    tokens: Tokens = Tokens()


@dataclass(frozen=True, slots=True)
class CallTools:
    """The model asks for tools.

    Args:
        calls: Name and arguments of each; a string stands for arguments that are no JSON object.
        text: What it writes beside.
        tokens: The call's usage.
        finish_reason: Why it ended.
        ids: The calls' identifiers; None for different ones. One that is None is left out.
    """

    calls: Sequence[tuple[str, dict[str, object] | str]]
    text: str = ""
    tokens: Tokens = Tokens()
    finish_reason: str | None = "tool_calls"
    ids: Sequence[str | None] | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """The proxy answers with an error; `error` is the JSON object's `error`."""

    status: int
    error: object
    headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Fail:
    """A stream says `text`, then an error event."""

    text: str
    error: dict[str, object]


@dataclass(frozen=True, slots=True)
class Break:
    """The connection dies; a stream has said `text` before."""

    text: str = ""


@dataclass(frozen=True, slots=True)
class Garble:
    """The answer is a 200 with this body."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Hold:
    """The model is silent until `release` is set, and then plays `then`; a stream has said `said` before."""

    then: "Reply"
    said: str = ""
    release: asyncio.Event = field(default_factory=asyncio.Event)


Reply = Say | CallTools | Refuse | Fail | Break | Garble | Hold


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One model call as the proxy would see it.

    Args:
        headers: By lower-case name.
        body: The JSON.
    """

    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Role and text of each message."""
        return [(message["role"], message.get("content") or "") for message in self.body["messages"]]


class ScriptedModel:
    """An OpenAI-compatible server that plays a script.

    Args:
        script: The replies, in the order of the calls; a call beyond the script is answered 500, and `overran` tells.
            Or a function that makes a reply of a call, for scripts in which the order is not known.
    """

    def __init__(self, script: Sequence[Reply] | Callable[["ModelCall"], Reply]) -> None:
        self.calls: list[ModelCall] = []
        self.listings = 0
        self.models = [MODEL]
        self.keys: dict[str, str] = {}
        self.overran = False
        self._improvise = script if callable(script) else None
        self._script = iter(() if callable(script) else script)
        self._received = asyncio.Semaphore(0)
        self._aborted = asyncio.Semaphore(0)

    async def received(self) -> None:
        """Wait for the next model call that no earlier wait has seen."""
        await self._received.acquire()

    async def aborted(self) -> None:
        """Wait for the next model call that is broken off by the caller."""
        await self._aborted.acquire()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI application."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/v1/muster/key":
            await self._tell_key(scope, receive, send)
            return
        if scope["path"] == "/v1/models":
            self.listings += 1
            listed = [
                {"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.models
            ]
            await JSONResponse({"object": "list", "data": listed})(scope, receive, send)
            return
        request = Request(scope, receive)
        call = ModelCall(dict(request.headers), json.loads(await request.body()))
        self.calls.append(call)
        self._received.release()
        answer = _Answer(send, is_streamed=bool(call.body.get("stream")))
        if not await until_disconnect(receive, partial(answer.play, self._next(call))):
            self._aborted.release()

    async def _tell_key(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As the proxy does: whose key came; where there are no keys, nobody's."""
        key = Request(scope, receive).headers.get("authorization", "").removeprefix("Bearer ")
        if self.keys and key not in self.keys:
            await JSONResponse({"error": {"code": "invalid_api_key"}}, 401)(scope, receive, send)
            return
        told = {
            "object": "muster.key",
            "tenant": self.keys.get(key, ""),
            "name": None,
            "class": "interactive",
        }
        await JSONResponse(told)(scope, receive, send)

    def _next(self, call: "ModelCall") -> Reply:
        if self._improvise is not None:
            return self._improvise(call)
        reply = next(self._script, None)
        if reply is None:
            self.overran = True
            return Refuse(500, {"message": "the script is at its end", "type": "server_error"})
        return reply


class ConnectionBreaks(Exception):  # noqa: N818 - it is a stage direction
    """Makes the server drop the connection in the middle of an answer."""


@dataclass(slots=True)
class _Answer:
    """One answer being written."""

    send: Send
    is_streamed: bool
    _has_begun: bool = False

    async def play(self, reply: Reply) -> None:
        match reply:
            case Say() | CallTools():
                await self._answer(reply)
            case Refuse(status, error, headers):
                await self._whole(json.dumps({"error": error}).encode(), status, headers)
            case Garble(body):
                await self._whole(body)
            case Fail(text, error):
                await self._write(*_words(text), {"error": error})
                await self._end()
            case Break(text):
                await self._write(*_words(text))
                raise ConnectionBreaks
            case Hold(then, said, release):
                if said:
                    await self._write(*_words(said))
                await release.wait()
                await self.play(then)

    async def _answer(self, reply: Say | CallTools) -> None:
        if not self.is_streamed:
            await self._whole(json.dumps(_completion(reply)).encode())
            return
        await self._write(*_chunks(reply))
        await self._end(is_done=reply.finish_reason is not None)

    async def _whole(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        given = {"content-type": "application/json", **(headers or {})}
        await self._begin(status, given)
        await self.send({"type": "http.response.body", "body": body})

    async def _write(self, *chunks: dict[str, Any]) -> None:
        if not self._has_begun:
            await self._begin(200, {"content-type": "text/event-stream"})
        for chunk in chunks:
            event = f"data: {json.dumps(chunk)}\n\n".encode()
            await self.send({"type": "http.response.body", "body": event, "more_body": True})

    async def _end(self, *, is_done: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": b"data: [DONE]\n\n" if is_done else b""})

    async def _begin(self, status: int, headers: dict[str, str]) -> None:
        self._has_begun = True
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})


def _tool_calls(reply: Say | CallTools) -> list[dict[str, Any]]:
    if isinstance(reply, Say):
        return []
    ids = reply.ids or [f"call_{index}" for index in range(len(reply.calls))]
    return [
        {
            "index": index,
            **({} if ids[index] is None else {"id": ids[index]}),
            "type": "function",
            "function": {
                "name": name,
                "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
            },
        }
        for index, (name, arguments) in enumerate(reply.calls)
    ]


def _usage(tokens: Tokens) -> dict[str, int]:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
    }


def _completion(reply: Say | CallTools) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text, "tool_calls": _tool_calls(reply) or None}
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
        "usage": _usage(reply.tokens),
    }


def _chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def _words(text: str) -> list[dict[str, Any]]:
    """A chunk for each word, with the space before it."""
    words = text.split(" ")
    return [_chunk({"content": word if at == 0 else f" {word}"}) for at, word in enumerate(words) if text]


def _chunks(reply: Say | CallTools) -> list[dict[str, Any]]:
    chunks = [_chunk({"role": "assistant", "content": ""}), *_words(reply.text)]
    chunks += [_chunk({"tool_calls": [call]}) for call in _tool_calls(reply)]
    if reply.finish_reason is None:
        return chunks
    usage: dict[str, Any] = {**_chunk({}), "choices": [], "usage": _usage(reply.tokens)}
    return [*chunks, _chunk({}, reply.finish_reason), usage]


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncGenerator[str]:
    """Serve `app` on a free port of 127.0.0.1; yields its root URL. Answers still held are broken off."""
    with server.bind(0, "") as listener:
        async with server.serving(app, listener, server.Manner(websockets=True)):
            yield f"http://{server.LOOPBACK}:{listener.getsockname()[1]}"


@dataclass(frozen=True, slots=True)
class ScriptedAgent:
    """The agent service in front of a scripted model.

    Args:
        url: Its root URL.
        model: What it thinks with.
    """

    url: str
    model: ScriptedModel


@asynccontextmanager
async def scripted_agent(
    *script: Reply,
    improvise: Callable[[ModelCall], Reply] | None = None,
    agents: Mapping[str, Any] | None = None,
    keys: Mapping[str, str] | None = None,
    **settings: object,
) -> AsyncGenerator[ScriptedAgent]:
    """Run the agent service on a scripted model.

    Args:
        script: The model's replies, in the order of its calls.
        improvise: Makes the replies instead, one from each call.
        agents: What `agents.yaml` would have under `agents`; None for the one agent that there is without a file.
        keys: The proxy's keys, and whose each is; None for a proxy without keys.
        settings: Fields of `AgentSettings`. Without a `database_url` it gets a SQLite file that goes with it.
    """
    model = ScriptedModel(improvise or script)
    model.keys = dict(keys or {})
    declared = None if agents is None else AgentsFile.model_validate({"agents": agents})
    # In threads, because they read and write files.
    folder = await asyncio.to_thread(tempfile.mkdtemp)
    try:
        async with serving(model) as proxy:
            database = {"database_url": f"sqlite:///{folder}/agent.db"}
            chosen = AgentSettings.model_validate({"proxy": proxy, **database, **settings})
            app = await asyncio.to_thread(create_app, chosen, declared)
            async with serving(app) as url:
                yield ScriptedAgent(url, model)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder)
