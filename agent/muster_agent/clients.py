"""The ways to the proxy."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import httpx2
import openai
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from muster_agent.identity import add_identity
from muster_agent.settings import AgentSettings

_CONNECT_TIMEOUT_S = 5.0
_KEPT_ALIVE_S = 30.0

_NONE = object()

_SPOILT = " is no JSON object"
"""What is put behind arguments of which LangChain shall not think that they are JSON."""

AS_WRITTEN = "muster_calls_as_written"
"""In a streamed answer's `additional_kwargs`: its tool calls, arguments as text, where these are no JSON object."""


class ProxyModel(ChatOpenAI):
    """`ChatOpenAI` without the SDK's types between the wire and LangChain, which has its own.

    The SDK walks through a request and rewrites what its types say is spelt otherwise on the wire. Nothing in messages
    and tools is, and the walk takes longer than all the rest of a call: 3 ms for a dozen messages. What is put into
    `extra_body` goes out as it is. And it makes an object of each chunk of a stream, which LangChain makes JSON again.

    And LangChain reads the arguments of tool calls in three ways. Streamed, it closes what brackets and quotes are
    open, so that a call which was cut off looks like a whole one: where it might, the calls follow the last chunk as
    they were written. In its second protocol and unstreamed, it breaks on JSON that is no object: that is made no JSON.
    """

    def _get_request_payload(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 - as the base class has it
        payload = cast("dict[str, Any]", super()._get_request_payload(*args, **kwargs))  # pyright: ignore[reportUnknownMemberType] - untyped there
        plain = {name: payload[name] for name in ("messages", "tools") if name in payload}
        payload.pop("tools", None)
        return {**payload, "messages": [], "extra_body": {**(payload.get("extra_body") or {}), **plain}}

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:  # noqa: ANN401 - as the base class has it
        asking: list[AIMessageChunk] = []
        async with aclosing(
            cast("AsyncGenerator[ChatGenerationChunk]", super()._astream(*args, **kwargs))
        ) as chunks:
            async for chunk in chunks:
                if isinstance(chunk.message, AIMessageChunk) and chunk.message.tool_call_chunks:
                    asking.append(chunk.message)
                yield chunk
        if (last := _as_written(asking)) is not None:
            yield ChatGenerationChunk(message=last)

    def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:  # noqa: ANN401 - as the base class has it
        for choice in getattr(response, "choices", None) or ():
            for call in getattr(choice.message, "tool_calls", None) or ():
                if _is_other_json(call.function.arguments):
                    call.function.arguments += _SPOILT
        return super()._create_chat_result(response, generation_info)  # pyright: ignore[reportUnknownMemberType] - untyped there


def _as_written(asking: Sequence[AIMessageChunk]) -> AIMessageChunk | None:
    """The calls that chunks make together, with their arguments as text; None where each has an object."""
    whole = asking[0].__add__(list(asking[1:])) if asking else AIMessageChunk(content="")
    calls = whole.tool_call_chunks
    if all(isinstance(_json(call["args"]), dict) for call in calls):
        return None
    written = [{name: call[name] for name in ("name", "args", "id")} for call in calls]
    spoilt = [
        tool_call_chunk(args=_SPOILT, index=call["index"]) for call in calls if _is_other_json(call["args"])
    ]
    return AIMessageChunk(content="", additional_kwargs={AS_WRITTEN: written}, tool_call_chunks=spoilt)


def _is_other_json(arguments: str | None) -> bool:
    """Whether arguments are JSON, but no object."""
    read = _json(arguments)
    return read is not _NONE and not isinstance(read, dict)


def _json(arguments: str | None) -> object:
    """Arguments as JSON; `_NONE` where they are none."""
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return _NONE


class _Completions:
    """The SDK's chat completions as `ChatOpenAI` calls them, the chunks of a stream as plain JSON."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client
        self.with_raw_response = client.chat.completions.with_raw_response

    async def create(self, *, extra_body: dict[str, Any], **body: Any) -> openai.AsyncStream[object]:  # noqa: ANN401 - JSON
        return await self._client.post(
            "/chat/completions",
            cast_to=cast("type[openai.AsyncStream[object]]", object),
            body={**body, **extra_body},
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )


@dataclass(frozen=True, slots=True)
class ProxyClients:
    """Pooled HTTP clients to the proxy, and the faces they are used through.

    Attributes:
        http: Its requests carry the identity of the run that makes them; whoever made this closes it.
        plain: Its requests carry what they are given; likewise.
        model: The face that agents think through.
        openai: The face for everything else.
    """

    http: httpx2.AsyncClient
    plain: httpx2.AsyncClient
    model: BaseChatModel
    openai: openai.AsyncOpenAI

    async def aclose(self) -> None:
        """Close the connections."""
        await self.http.aclose()
        await self.plain.aclose()


def connect(settings: AgentSettings) -> ProxyClients:
    """Make the clients; nothing is sent yet. It reads certificates from the disk."""
    # A run's own deadline ends its calls; a limit here would be a second one, and fewer would wait in the proxy.
    timeout = httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S)
    # How many calls run at once is the proxy's decision. A pool limit here would be a second queue in front of its
    # queue, one that knows nothing of classes, tenants and sessions. For aiohttp 0 is no limit, and None is 100.
    options: dict[str, Any] = {
        "limits": httpx2.Limits(max_connections=0, keepalive_expiry=_KEPT_ALIVE_S),
        "timeout": timeout,
        "follow_redirects": False,
        # The operator names the server in full; HTTP_PROXY and netrc are about other traffic, and would send a
        # loopback address and its prompts elsewhere.
        "trust_env": False,
    }
    # The SDK has its client on h11 too, which costs more CPU time (docs/decisions/0007-agent-runs.md).
    http = openai.DefaultAioHttpClient(event_hooks={"request": [add_identity]}, **options)
    plain = openai.DefaultAioHttpClient(**options)
    model = ProxyModel(
        model=settings.model or "unnamed",  # each call carries the name that ModelName has found
        base_url=f"{settings.proxy}/v1",
        # The SDK will not do without a key; each call carries its caller's.
        api_key=settings.api_key or SecretStr("none"),
        http_async_client=http,
        timeout=timeout,
        max_retries=0,  # what is tried again is decided in one place: see agents/middleware/asking.py
        stream_usage=True,
        stream_chunk_timeout=None,  # a call may wait long in the proxy's queue; the run's own timeout holds
        use_responses_api=False,  # else names of some hosted models would switch it on
    )
    client = cast("openai.AsyncOpenAI", model.root_async_client)
    model.async_client = _Completions(client)
    return ProxyClients(http, plain, model, client)
