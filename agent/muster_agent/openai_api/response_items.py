"""Output items of responses, and the items of conversations."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

from muster_agent.openai_api.approvals import APPROVE, arguments_of
from muster_agent.openai_api.happenings import ToolUsed, fields_of, text_of

_CALL = "call_"


def call_id_of(interrupt: Mapping[str, Any]) -> str:
    """The identifier of the call that asks."""
    return f"{_CALL}{interrupt['id']}"


def text_part(text: str) -> dict[str, Any]:
    """A part of a message that the assistant wrote."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def message(message_id: str, text: str | None) -> dict[str, Any]:
    """A message of the assistant; without a text, one that is about to be written."""
    return {
        "id": _identifier("msg", message_id),
        "type": "message",
        "role": "assistant",
        "status": "in_progress" if text is None else "completed",
        "content": [] if text is None else [text_part(text)],
    }


def reasoning(name: str, text: str | None) -> dict[str, Any]:
    """What is told to people beside the answer; without a text, about to be told."""
    return {
        "id": _identifier("rs", name),
        "type": "reasoning",
        "summary": [] if text is None else [{"type": "summary_text", "text": text}],
        "status": "in_progress" if text is None else "completed",
    }


def tool_call(tool: ToolUsed, place: int) -> dict[str, Any]:
    """A tool call, told to programs that asked for it."""
    return {
        "id": f"atc_{place}_{tool.call_id}",
        "type": "agent_tool_call",
        "call_id": tool.call_id,
        "name": tool.name,
        "arguments": tool.arguments,
        "output": tool.result,
        "status": "completed" if tool.is_ok else "failed",
    }


def approval(interrupt: Mapping[str, Any], *, is_complete: bool) -> dict[str, Any]:
    """A question to a person, as a function that the client is to call."""
    return {
        "id": _identifier("fc", str(interrupt["id"])),
        "type": "function_call",
        "call_id": call_id_of(interrupt),
        "name": APPROVE,
        "arguments": arguments_of(interrupt) if is_complete else "",
        "status": "completed" if is_complete else "in_progress",
    }


def of_conversation(messages: Sequence[Any]) -> Generator[dict[str, Any]]:
    """A thread's messages, as JSON, as the items of a conversation."""
    calls: dict[str, Mapping[str, Any]] = {}
    for told in messages:
        if not isinstance(told, dict):
            continue
        known = cast("dict[str, Any]", told)
        match known.get("type"):
            case "human":
                yield _from_outside(known)
            case "ai":
                asked = cast("list[dict[str, Any]]", known.get("tool_calls") or [])
                calls |= {str(call.get("id")): call for call in asked}
                if text := text_of(known):
                    yield message(str(known.get("id")), text)
            case "tool":
                yield _tool(known, calls)
            case _:
                pass


def _from_outside(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the user said; or a summary that stands in place of older messages."""
    if fields_of(told.get("additional_kwargs")).get("lc_source") == "summarization":
        return reasoning(str(told.get("id")), text_of(told))
    return {
        "id": _identifier("msg", str(told.get("id"))),
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": text_of(told)}],
    }


def _tool(told: Mapping[str, Any], calls: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    call_id = str(told.get("tool_call_id"))
    is_ok = told.get("status", "success") == "success"
    used = ToolUsed(call_id, str(told.get("name")), calls.get(call_id, {}).get("args"), text_of(told), is_ok)
    return reasoning(str(told.get("id")), used.line)


def _identifier(kind: str, name: str) -> str:
    return f"{kind}_{name.removeprefix('lc_run--').replace('-', '')}"
