"""`POST /v1/chat/completions/batch`: several conversations in one call, in vLLM's shape.

vLLM takes one admission for all of them and drops tools. Here each conversation is a chat completion of its own: it has
its own ticket, may go to another engine, and fails alone. The answer has one choice for each, in their order. One that
failed has `finish_reason: "error"` and the error; only if all have failed does the call fail.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import orjson

from muster_proxy import wire
from muster_proxy.failures import RequestError
from muster_proxy.generation import Engines, Generation
from muster_proxy.wire import Call, Kind

_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


class ExplicitBatch:
    """One call and its conversations.

    Args:
        engines: Carry them out.
        call: The client's.
    """

    def __init__(self, engines: Engines, call: Call) -> None:
        self._engines = engines
        self._calls = [_conversation(call, messages) for messages in call.fields["messages"]]

    async def answer(self, generation_of: Callable[[Call], Generation]) -> bytes:
        """Have all conversations answered.

        Args:
            generation_of: Makes the generation of a chat completion call.

        Raises:
            RequestError: All have failed; the first one's.
        """
        generations = [generation_of(call) for call in self._calls]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(each)) for each in generations]
        results = [task.result() for task in tasks]
        completions = [result for result in results if isinstance(result, dict)]
        if not completions:
            raise cast("RequestError", results[0])
        usage = {name: sum(_counted(each, name) for each in completions) for name in _USAGE}
        choices = [_choice(index, result) for index, result in enumerate(results)]
        return orjson.dumps({**completions[0], "choices": choices, "usage": usage})

    async def _one(self, generation: Generation) -> dict[str, Any] | RequestError:
        held = _Held()
        try:
            await self._engines.carry_out(generation, held)
        except RequestError as error:
            return error
        return held.completion


class _Held:
    """Takes a whole answer."""

    completion: dict[str, Any]

    def begin(self, generation: Generation) -> None:
        """See `Taker`."""

    def take(self, piece: bytes) -> None:
        """See `Taker`."""
        self.completion = orjson.loads(piece)


def _conversation(call: Call, messages: object) -> Call:
    return wire.read(Kind.CHAT, orjson.dumps({**call.fields, "messages": messages}))


def _choice(index: int, result: dict[str, Any] | RequestError) -> dict[str, Any]:
    if isinstance(result, RequestError):
        message = {"role": "assistant", "content": None}
        error = orjson.loads(result.body())["error"]
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": "error",
            "error": error,
        }
    return {**result["choices"][0], "index": index}


def _counted(completion: dict[str, Any], name: str) -> int:
    usage: dict[str, int] = completion.get("usage") or {}
    return usage.get(name) or 0
