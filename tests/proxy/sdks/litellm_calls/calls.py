"""Asks a proxy through litellm, and prints what its user gets, as JSON.

It runs in an environment of its own (`installs.py`). The engine's answers are written down beforehand, in this order.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import litellm  # pyright: ignore[reportMissingImports]  in this program's own environment

MESSAGES = [{"role": "user", "content": "Where is it warm?"}]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
]


async def main(url: str, full_url: str, key: str, model: str) -> None:
    """Make the calls."""
    to = {"model": f"openai/{model}", "messages": MESSAGES, "api_base": f"{url}/v1", "api_key": key}
    to |= {"max_retries": 0}

    async def chat(**more: Any) -> Any:
        return await litellm.acompletion(**{**to, **more})

    found: dict[str, Any] = {}
    whole = await chat()
    found["chat"] = [whole.choices[0].message.content, whole.usage.completion_tokens]
    found["stream"] = await _text(await chat(stream=True))
    found["stream with usage"] = await _tokens(
        await chat(stream=True, stream_options={"include_usage": True})
    )
    called = await chat(tools=TOOLS)
    found["tools"] = [
        [call.function.name, call.function.arguments] for call in called.choices[0].message.tool_calls
    ]
    found["tools streamed"] = await _arguments(await chat(tools=TOOLS, stream=True))
    found["embedding"] = await _vector(to)
    found["broken"] = await _failure(lambda: _broken(chat))
    found["bad request"] = await _failure(lambda: chat(max_tokens=0))
    found["unknown model"] = await _failure(lambda: chat(model="openai/other"))
    found["wrong key"] = await _failure(lambda: chat(api_key="wrong"))
    found["full"] = await _failure(lambda: chat(api_base=f"{full_url}/v1"))
    sys.stdout.write(json.dumps(found))


async def _text(stream: Any) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def _tokens(stream: Any) -> list[int]:
    told = [getattr(chunk, "usage", None) async for chunk in stream]
    return [usage.completion_tokens for usage in told if usage is not None]


async def _arguments(stream: Any) -> str:
    pieces = [chunk.choices[0].delta.tool_calls or [] async for chunk in stream]
    return "".join(call.function.arguments or "" for calls in pieces for call in calls)


async def _vector(to: dict[str, Any]) -> list[float]:
    where = {name: to[name] for name in ("model", "api_base", "api_key")}
    answer = await litellm.aembedding(input=["a"], encoding_format="float", **where)
    return answer.data[0]["embedding"]


async def _broken(chat: Callable[..., Awaitable[Any]]) -> None:
    await _text(await chat(stream=True))


async def _failure(ask: Callable[[], Awaitable[Any]]) -> list[Any]:
    try:
        await ask()
    except litellm.exceptions.APIError as error:
        return [type(error).__name__, error.status_code]
    except Exception as error:  # noqa: BLE001  whatever it is, the test sees its name
        return [type(error).__name__, getattr(error, "status_code", None)]
    return []


asyncio.run(main(**json.loads(sys.argv[1])))
