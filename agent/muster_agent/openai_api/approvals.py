"""What waits for a person, told to OpenAI's clients, and their answers to it.

Chat completions have no way to approve: a text says what is asked, and whatever is said next withdraws the
question, so that no "yes" in a conversation, and no model that writes one, ever lets a tool run. Responses have
one: each question is a call of a function `approve_tool_call`, and its output is the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from muster_agent import failures

APPROVE = "approve_tool_call"
"""The function that a client is asked to call."""

QUESTION = "This needs your approval"
"""How every question in a chat begins."""

_TYPES = frozenset({"approve", "edit", "reject", "respond"})
_LONGEST_SHOWN = 1000


def question(interrupts: Sequence[Mapping[str, Any]]) -> str:
    """What is asked, as text."""
    asked = [f"- {_call_line(call)}" for each in interrupts for call in calls_of(each["value"])]
    asked += [f"- {_shortened(_json(each['value']))}" for each in interrupts if not calls_of(each["value"])]
    return "\n".join(
        [
            f"{QUESTION}, and nothing has been carried out yet:",
            *asked,
            "It cannot be approved in this chat. The next message here withdraws it.",
        ]
    )


def calls_of(value: object) -> list[dict[str, Any]]:
    """The tool calls that a question is about; a mounted graph may ask about anything else."""
    requests: Any = cast("dict[str, Any]", value).get("action_requests") if isinstance(value, dict) else None
    return cast("list[dict[str, Any]]", requests) if isinstance(requests, list) else []


def _call_line(call: Mapping[str, Any]) -> str:
    arguments = cast("dict[str, Any]", call.get("args") or {})
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"{call.get('name')}({_shortened(given)})"


def arguments_of(interrupt: Mapping[str, Any]) -> str:
    """The arguments of the function call that asks, as JSON."""
    value = interrupt["value"]
    calls = [{name: call.get(name) for name in ("name", "args", "description")} for call in calls_of(value)]
    return _json({"calls": calls} if calls else {"question": value})


def answer_to(value: object, output: str, where: str) -> Any:  # noqa: ANN401 - whatever the graph expects
    """What a graph is resumed with.

    Args:
        value: What it asked.
        output: What the client answered: `approve`, `reject`, or `{"decisions": [...]}` with one for each call. To a
            question that is not about tool calls, any text or JSON.
        where: The field of the request, for complaints.

    Raises:
        Failure: 400; an answer that is not understood is no approval.
    """
    calls = calls_of(value)
    told = _as_json(output)
    if not calls:
        return told
    decisions: Any = told
    if isinstance(told, str):
        decisions = {"decisions": [_decision(told) for _ in calls]}
    elif isinstance(told, dict) and "type" in told:
        decisions = {"decisions": [cast("dict[str, Any]", told) for _ in calls]}
    if not _are_decisions(decisions, len(calls)):
        raise failures.bad_request(
            f'expected approve, reject, or {{"decisions": [...]}} with {len(calls)} of them, each with a type: '
            "approve, edit or reject",
            param=where,
        )
    return {"decisions": decisions["decisions"]}


def _decision(word: str) -> dict[str, Any]:
    return {"type": word.strip().lower()}


def _are_decisions(told: Any, count: int) -> bool:  # noqa: ANN401 - any JSON
    given: Any = cast("dict[str, Any]", told).get("decisions") if isinstance(told, dict) else None
    if not isinstance(given, list):
        return False
    decisions = cast("list[Any]", given)
    return len(decisions) == count and all(
        isinstance(each, dict) and cast("dict[str, Any]", each).get("type") in _TYPES for each in decisions
    )


def _as_json(text: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _json(value: object) -> str:
    return orjson.dumps(value, default=str).decode()


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
