"""Runs and what they leave, as the tests of agents' rules ask for them."""

from collections.abc import Callable
from typing import Any

from langgraph_sdk.client import LangGraphClient

from muster_agent.testing import ModelCall, Reply, Say, ScriptedAgent

SUMMARY = Say("They want to know everything.")


def is_summary(call: ModelCall) -> bool:
    """Whether a model call asks for a summary."""
    return call.headers["x-muster-call-kind"] == "summary"


def summarising(*script: Reply) -> Callable[[ModelCall], Reply]:
    """A model that plays a script, and writes a summary whenever it is asked for one."""
    replies = iter(script)
    return lambda call: SUMMARY if is_summary(call) else next(replies)


def thinking(agent: ScriptedAgent) -> list[ModelCall]:
    """The model calls of the conversation itself."""
    return [call for call in agent.model.calls if not is_summary(call)]


def summaries(agent: ScriptedAgent) -> list[ModelCall]:
    """The model calls for summaries."""
    return [call for call in agent.model.calls if is_summary(call)]


def asks(text: str = "hi", **fields: object) -> dict[str, Any]:
    """A run's input: one message of the user."""
    return {"messages": [{"role": "user", "content": text, **fields}]}


async def run(client: LangGraphClient, thread: str, text: str = "hi", **fields: object) -> Any:
    """Run the agent on a thread; the thread's values at its end."""
    return await client.runs.wait(thread, "agent", input=asks(text, **fields))


async def new_thread(client: LangGraphClient) -> str:
    """A new thread."""
    return (await client.threads.create())["thread_id"]


def told(values: Any) -> list[str]:
    """What tools have said."""
    return [message["content"] for message in values["messages"] if message["type"] == "tool"]
