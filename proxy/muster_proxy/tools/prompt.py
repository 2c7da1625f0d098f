"""Renders a conversation with tools for a chat template that knows neither tools nor their results.

The words were chosen by trying five forms on 14 questions at temperature 0 with a 0.5 billion parameter
model (docs/decisions/0003-tool-emulation.md): answering must look like one more function, or a small model
never calls, or never stops calling.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import orjson

from muster_proxy.wire import Function

_FORM = (
    "You reply only by calling one function, written as one JSON object: "
    '{"name": <function name>, "arguments": <arguments object>}.'
)
_SEVERAL = " To call several at once, write a JSON array of such objects."
_ANSWER = "Give the final answer to the user in plain text."
_WHEN_TO_ANSWER = (
    'Call "%s" for greetings, general knowledge, writing, and as soon as a function result tells you what '
    "the user wants to know. Call another function only when the user's request is about what it does."
)

Turn = dict[str, Any]


def instructions(functions: Sequence[Function], *, answer_name: str | None, parallel: bool) -> str:
    """What the model is told about replying.

    Args:
        functions: Those that it may call.
        answer_name: The name under which it may answer instead; None where it must call.
        parallel: Whether it may make several calls at once.

    Raises:
        orjson.JSONEncodeError: A schema is nested deeper than JSON is written.
    """
    specifications = [_specification(function) for function in functions]
    if answer_name is not None:
        text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
        specifications.insert(0, {"name": answer_name, "description": _ANSWER, "parameters": text})
    lines = "\n".join(_json(each) for each in specifications)
    told = f"{_FORM}{_SEVERAL if parallel else ''}\n\nFunctions:\n{lines}"
    if answer_name is not None and functions:
        told += "\n\n" + _WHEN_TO_ANSWER % answer_name
    return told


def conversation(messages: Iterable[Mapping[str, Any]], told: str, answer_name: str) -> list[Turn]:
    """The messages as turns of system, user and assistant alone.

    Args:
        messages: The client's messages.
        told: The instructions; they join the client's own in one system turn at the front.
        answer_name: The name under which earlier answers were given.

    Raises:
        orjson.JSONEncodeError: A call's arguments are nested deeper than JSON is written.
    """
    system: list[str] = []
    turns: list[Turn] = []
    names: dict[str, str] = {}
    for message in messages:
        role, content = message["role"], message.get("content")
        if role in ("system", "developer"):
            system.append(_text(content))
        elif role == "assistant":
            turns.append({"role": "assistant", "content": _assistant(message, names, answer_name)})
        elif role in ("tool", "function"):
            name = names.get(message.get("tool_call_id") or "") or message.get("name") or "the function"
            _add_user(turns, f"Result of {name}: {_text(content)}")
        else:
            _add_user(turns, content)
    return [{"role": "system", "content": "\n\n".join([*filter(None, system), told])}, *turns]


def _specification(function: Function) -> dict[str, Any]:
    specification: dict[str, Any] = {"name": function.name}
    if function.description:
        specification["description"] = function.description
    if function.parameters:
        specification["parameters"] = function.parameters
    return specification


def _assistant(message: Mapping[str, Any], names: dict[str, str], answer_name: str) -> str:
    text = _text(message.get("content"))
    calls: list[dict[str, Any]] = []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        names[call.get("id") or ""] = function["name"]
        calls.append({"name": function["name"], "arguments": _parsed(function.get("arguments"))})
    if not calls:
        return _json({"name": answer_name, "arguments": {"text": text}})
    return _json(calls[0] if len(calls) == 1 else calls)


def _parsed(arguments: str | None) -> object:
    """A call's arguments as JSON; what a model once wrote wrongly stays as the text that it is."""
    try:
        return orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return arguments


def _add_user(turns: list[Turn], content: object) -> None:
    """Add a user turn, to the one before where there is one: many templates want the roles to alternate."""
    if not turns or turns[-1]["role"] != "user":
        turns.append({"role": "user", "content": content})
        return
    before = turns[-1]["content"]
    if isinstance(before, str) and isinstance(content, str):
        turns[-1]["content"] = f"{before}\n\n{content}"
    else:
        turns[-1]["content"] = [*_parts(before), *_parts(content)]


def _parts(content: object) -> list[Any]:
    if isinstance(content, list):
        return cast("list[Any]", content)
    return [{"type": "text", "text": content or ""}]


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = cast("list[dict[str, Any]]", content)
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
