"""How a graph's events are written in the second protocol."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langgraph.types import Command, Interrupt

from muster_agent.streams import v2


def written(
    encoder: v2.Encoder, method: str, data: Any, *namespace: str, **more: Any
) -> list[tuple[Any, ...]]:
    """Method, namespace and data of what is written for one event of a graph."""
    event = {"method": method, "params": {"namespace": list(namespace), "timestamp": 5, "data": data, **more}}
    return [_read(*each) for each in encoder.write(event)]


def _read(name: str, params: bytes) -> tuple[Any, ...]:
    method, namespace = v2.read_name(name)
    told = orjson.loads(params)
    assert (told["namespace"], told["timestamp"]) == (namespace, 5)
    return method, namespace, told["data"]


def test_two_models_speak_at_once() -> None:
    """Each piece says which message and which call it belongs to."""
    encoder = v2.Encoder()
    for call in ("x", "y"):
        written(encoder, "messages", ({"event": "message-start", "id": f"m-{call}"}, {"run_id": call}))
    pieces = [
        written(encoder, "messages", ({"event": event, "index": 0}, {"run_id": call}))[0][2]
        for event in ("content-block-delta", "message-finish")
        for call in ("x", "y")
    ]

    assert [(each["message_id"], each["run_id"]) for each in pieces] == [("m-x", "x"), ("m-y", "y")] * 2


@pytest.mark.parametrize(("integration", "count"), [("langchain_chat_model", 5), ("langgraph", 0)])
def test_a_message_in_one_piece(integration: str, count: int) -> None:
    """Of a model that does not stream it is told as if it had; what a node returns is in the state."""
    usage: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    message = AIMessage("Hi.", id="m", usage_metadata=usage)

    told = written(v2.Encoder(), "messages", (message, {"ls_integration": integration}), "sub:1")

    assert [(method, namespace) for method, namespace, _ in told] == [("messages", ["sub:1"])] * count
    if told:
        start, _, delta, finish, end = [data for _, _, data in told]
        assert start == {"event": "message-start", "role": "ai", "id": "m"}
        assert delta["delta"] == {"type": "text-delta", "text": "Hi."}
        assert finish["content"]["text"] == "Hi."
        assert end == {"event": "message-finish", "message_id": "m", "usage": usage}


RESULT = ToolMessage("4", tool_call_id="c", id="t")


@pytest.mark.parametrize("output", [RESULT, Command(update={"messages": [RESULT]})])
def test_a_tool_gives_a_message(output: Any) -> None:
    """A result is a message in the call's namespace, also where the tool returns a command."""
    data = {"event": "tool-finished", "tool_call_id": "c", "output": output}
    told = written(v2.Encoder(), "tools", data, "sub:1")

    assert (told[0][0], told[0][2]["output"]["content"]) == ("tools", "4")
    assert {tuple(namespace) for _, namespace, _ in told[1:]} == {("sub:1", "tools:c")}
    assert told[1][2] == {"event": "message-start", "role": "tool", "id": "t", "tool_call_id": "c"}


@pytest.mark.parametrize("output", ["plain", None, Command(goto="x"), Command(update=[("a", 1)])])
def test_a_tool_gives_something_else(output: Any) -> None:
    """What is no message is told as it is."""
    told = written(v2.Encoder(), "tools", {"event": "tool-finished", "tool_call_id": "c", "output": output})

    assert [method for method, _, _ in told] == ["tools"]


# a graph's method and data, and what is written
PLAIN: dict[str, tuple[str, Any, Sequence[tuple[Any, ...]]]] = {
    "custom": (
        "custom",
        {"name": "progress", "n": 1},
        [("custom:progress", [], {"name": "progress", "n": 1})],
    ),
    "custom without a name": ("custom", "half", [("custom", [], "half")]),
    "a named channel": ("custom:files", [1], [("custom:files", [], {"name": "files", "payload": [1]})]),
    "a graph inside": (
        "lifecycle",
        {"event": "started", "namespace": ["n:1"], "graph_name": "n"},
        [("lifecycle", ["n:1"], {"event": "started", "graph_name": "n"})],
    ),
    "updates": (
        "updates",
        {"node": {"messages": [AIMessage("x", id="1")]}},
        [("updates", [], {"node": {"messages": [{"type": "ai", "content": "x", "id": "1"}]}})],
    ),
    "a question among updates": ("updates", {"__interrupt__": (Interrupt("?", id="q"),)}, []),
    "a first checkpoint": (
        "checkpoints",
        {"config": {"configurable": {"checkpoint_id": "c"}}, "parent_config": None, "metadata": {"step": -1}},
        [("checkpoints", [], {"id": "c", "step": -1})],
    ),
}


@pytest.mark.parametrize("case", list(PLAIN))
def test_other_events(case: str) -> None:
    """Each has its shape."""
    method, data, expected = PLAIN[case]

    assert written(v2.Encoder(), method, data) == list(expected)


def test_questions_are_kept() -> None:
    """A question is told once, by the graph that asks it, when the graph has said all."""
    encoder = v2.Encoder()
    question = Interrupt({"sure": True}, id="q")
    for namespace in (["sub:1"], []):
        told = written(encoder, "values", {"a": 1}, *namespace, interrupts=(question,))
        assert told == [("values", namespace, {"a": 1})]

    data = {"interrupt_id": "q", "payload": {"sure": True}, "value": {"sure": True}}
    assert [_read(*each) for each in encoder.questions()] == [("input.requested", ["sub:1"], data)]
