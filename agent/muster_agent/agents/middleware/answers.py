"""Reading a model's answer: which of the calls it asks for are whole, and what each is called."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import AIMessage, ToolCall

from muster_agent import failures
from muster_agent.clients import AS_WRITTEN
from muster_agent.wire import encodable

_BROKEN = "broken_tool_calls"
"""In an answer's `additional_kwargs`: identifiers of calls whose arguments were no JSON object."""


def checked(message: AIMessage) -> AIMessage:
    """A model's answer, fit to be kept and sent back.

    Raises:
        Failure: It ended without saying why, which is how a broken stream looks from here.
    """
    reason: object = message.response_metadata.get("finish_reason")
    if not reason:
        raise failures.unreadable_answer()
    whole, broken = _calls(message)
    if reason == "length":
        whole, broken = _before_the_cut(whole, is_seen=bool(broken)), []
    # Arguments that are no JSON would end the run without an answer. Called with none, the tool says what it expects,
    # and the model can mend its call; a tool that expects nothing and changes the world must not take it for one.
    calls = _with_identifiers([*whole, *broken])
    known = cast("dict[str, Any]", message.additional_kwargs)
    noted = {name: value for name, value in known.items() if name != AS_WRITTEN}
    if broken:
        noted[_BROKEN] = [call["id"] for call in calls[len(whole) :]]
    update: dict[str, Any] = {
        "content": encodable(message.content),
        "tool_calls": encodable(calls),
        "invalid_tool_calls": [],
        "additional_kwargs": noted,
    }
    return message.model_copy(update=update)


def is_broken(message: AIMessage, call_id: str | None) -> bool:
    """Whether what the model wrote as the call's arguments is none of what stands there now."""
    return call_id in cast("dict[str, Any]", message.additional_kwargs).get(_BROKEN, ())


def _calls(message: AIMessage) -> tuple[list[ToolCall], list[ToolCall]]:
    """The calls that are whole, and without arguments those whose arguments are no JSON object."""
    written = cast("dict[str, Any]", message.additional_kwargs).get(AS_WRITTEN)
    if written is None:
        return list(message.tool_calls), [_call(each, {}) for each in message.invalid_tool_calls]
    read = [(each, _arguments(each["args"])) for each in cast("list[dict[str, Any]]", written)]
    return (
        [_call(each, arguments) for each, arguments in read if arguments is not None],
        [_call(each, {}) for each, arguments in read if arguments is None],
    )


def _call(told: Mapping[str, Any], arguments: dict[str, Any]) -> ToolCall:
    return ToolCall(name=told["name"] or "", args=arguments, id=told["id"], type="tool_call")


def _arguments(written: str | None) -> dict[str, Any] | None:
    """What a model has written as arguments, read as LangChain reads them unstreamed; None where it is no object."""
    try:
        read: object = json.loads(written or "{}", strict=False)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", read) if isinstance(read, dict) else None


def _before_the_cut(calls: Sequence[ToolCall], *, is_seen: bool) -> list[ToolCall]:
    """The calls that an answer of too many tokens had finished.

    The cut is in the last call. It is seen where it left half an object; where it left nothing, the call looks like
    one without arguments, and nobody knows which were to come.
    """
    return list(calls if is_seen or not calls or calls[-1]["args"] else calls[:-1])


def _with_identifiers(calls: Iterable[ToolCall]) -> list[ToolCall]:
    """The calls, each with an identifier of its own: by these, results and the journal of calls tell them apart."""
    seen: set[str] = set()
    named: list[ToolCall] = []
    for call in calls:
        identifier = call["id"]
        if not identifier or identifier in seen:
            identifier = f"call_{uuid.uuid4().hex}"
        seen.add(identifier)
        named.append({**call, "id": identifier})
    return named
