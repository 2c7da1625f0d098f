"""What chat front ends ask on the side: titles, tags, follow-up questions.

They send it to the same model, with a prompt of their own around the conversation. It is no turn of the
conversation and needs no tools, so it goes straight to the model that the agent thinks with, to be done when there
is nothing else to do.
"""

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson

from muster_agent import failures, identity

if TYPE_CHECKING:
    from muster_agent.agents.assistants import Assistant
    from muster_agent.callers import Caller
    from muster_agent.openai_api.chat_request import ChatRequest
    from muster_agent.service import Service

TASK_HEADER = "x-openwebui-task"

# How Open WebUI's prompts for titles, tags, queries, follow-up questions, image prompts and completions begin, and what
# all of them have. Its prompt for a question about files or web pages begins likewise, and is a turn of a conversation.
_TASK_PROMPT = "### Task:"
_HISTORY = "<chat_history>"
_ABOUT_FILES = "Respond to the user query using the provided context"


def is_task(headers: Mapping[str, str], chat: "ChatRequest") -> bool:
    """Whether a request is such a one: the front end says so, or its prompt is like Open WebUI's."""
    said = headers.get(TASK_HEADER)
    # A front end that does not fill the header in sends the name of what should stand there.
    if said is not None and not said.strip().startswith("{{"):
        return bool(said.strip())
    last = next(message for message in reversed(chat.messages) if message.role == "user")
    begin, prompt, asked = last.content.partition(_TASK_PROMPT)
    is_like_one = bool(prompt) and not begin.strip() and _HISTORY in asked
    return is_like_one and not asked.lstrip().startswith(_ABOUT_FILES)


class TaskCall:
    """One call of the model for such a task.

    Args:
        service: Calls it.
        assistant: Whose model it is.
        caller: Who asks.
        request_id: Of the request.
    """

    def __init__(self, service: "Service", assistant: "Assistant", caller: "Caller", request_id: str) -> None:
        self._service = service
        self._assistant = assistant
        self._identity = identity.RunIdentity(
            session_id=str(uuid.uuid4()),  # its prompt is nobody's prefix
            request_id=request_id,
            tenant=caller.tenant,
            key=caller.key,
            kind="title",
        )

    async def answer(self, chat: "ChatRequest") -> bytes:
        """The model's answer.

        Raises:
            Failure: There is none.
        """
        with identity.assumed(self._identity), failures.told():
            told: Any = await self._client.create(**await self._arguments(chat), stream=False)
            if not all(choice.finish_reason for choice in told.choices):
                raise failures.unreadable_answer()
            return self._as_ours(told, chat.model)

    async def stream(self, chat: "ChatRequest") -> AsyncGenerator[bytes]:
        """The model's chunks as server-sent events.

        Raises:
            Failure: They break off, or never come.
        """
        is_finished = False
        with identity.assumed(self._identity), failures.told():
            arguments = {**await self._arguments(chat), "stream": True}
            if chat.wants_usage:
                arguments["stream_options"] = {"include_usage": True}
            stream: Any = await self._client.create(**arguments)
            async with aclosing(stream.__aiter__()) as chunks:
                async for chunk in chunks:
                    is_finished |= any(choice.finish_reason for choice in chunk.choices)
                    if chunk.choices or chat.wants_usage:  # some servers send the usage unasked
                        yield b"data: " + self._as_ours(chunk, chat.model) + b"\n\n"
            if not is_finished:  # which is how a broken stream looks from here
                raise failures.unreadable_answer()

    @property
    def _client(self) -> Any:  # noqa: ANN401 - its overloads do not take a mapping
        return self._service.clients.openai.chat.completions

    async def _arguments(self, chat: "ChatRequest") -> dict[str, Any]:
        own = self._assistant.declaration.model
        return {
            "model": own or await self._service.model_name.get(),
            "messages": [{"role": message.role, "content": message.content} for message in chat.messages],
            "service_tier": "flex",
            **chat.sampling,
        }

    @staticmethod
    def _as_ours(told: Any, name: str) -> bytes:  # noqa: ANN401 - an object of the SDK
        """What the model said, in the name of the assistant."""
        return orjson.dumps({**told.model_dump(exclude_unset=True), "model": name})
