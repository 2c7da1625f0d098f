"""What waits for a person, told to OpenAI's clients, and their answers to it.

Chat completions have no way to approve: a text says what is asked, and whatever is said next withdraws the
question, so that no "yes" in a conversation, and no model that writes one, ever lets a tool run. Responses have
one: each question is a call of a function `approve_tool_call`, and its output is the answer.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import orjson

from muster_agent import decisions, failures
from muster_agent.decisions import calls_of
from muster_agent.nesting import is_too_deep

APPROVE = "approve_tool_call"
"""The function that a client is asked to call."""

_ASKS = "This needs your approval, and nothing has been carried out yet:"
_WITHDRAWN = "It cannot be approved in this chat. The next message here withdraws it."
_LONGEST_SHOWN = 1000


def question(interrupts: Sequence[Mapping[str, Any]]) -> str:
    """What is asked, as text."""
    asked = [f"- {_call_line(call)}" for each in interrupts for call in calls_of(each["value"])]
    asked += [f"- {_shortened(_json(each['value']))}" for each in interrupts if not calls_of(each["value"])]
    return "\n".join([_ASKS, *asked, _WITHDRAWN])


def before_question(text: str) -> str | None:
    """What stands before the question that a text of the assistant ends with; None where it ends with none."""
    before, asks, rest = text.partition(_ASKS)
    return before if asks and rest.rstrip().endswith(_WITHDRAWN) else None


def _call_line(call: Mapping[str, Any]) -> str:
    arguments = cast("dict[str, Any]", call.get("args") or {})
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"{call.get('name')}({_shortened(given)})"


def arguments_of(interrupt: Mapping[str, Any]) -> str:
    """The arguments of the function call that asks, as JSON."""
    value = interrupt["value"]
    calls = [{name: call.get(name) for name in ("name", "args", "description")} for call in calls_of(value)]
    return _json({"calls": calls} if calls else {"question": value})


def answer_to(question: object, output: str, tools: Collection[str], where: str) -> Any:  # noqa: ANN401 - whatever the graph expects
    """What a graph is resumed with.

    Args:
        question: What it asked.
        output: What the client answered: `approve`, `reject`, or `{"decisions": [...]}` with one for each call. To a
            question that is not about tool calls, any text or JSON.
        tools: The names of the agent's tools; none where they are not known.
        where: The field of the request, for complaints.

    Raises:
        Failure: 400; an answer that is not understood is no approval, and the question stays.
    """
    calls = calls_of(question)
    told = _as_json(output)
    if is_too_deep(output.encode(), told):
        raise failures.bad_request("The answer is nested too deeply.", param=where)
    if not calls:
        return told
    answer: Any = told
    if isinstance(told, str):
        answer = {"decisions": [{"type": told.strip().lower()} for _ in calls]}
    elif isinstance(told, dict) and "type" in told:
        answer = {"decisions": [cast("dict[str, Any]", told) for _ in calls]}
    problem = decisions.problem_with(answer, question, tools)
    if problem is not None:
        raise failures.bad_request(f"This is neither approve nor reject: {problem}.", param=where)
    return {"decisions": answer["decisions"]}


def _as_json(text: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _json(value: object) -> str:
    return orjson.dumps(value, default=str).decode()


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
