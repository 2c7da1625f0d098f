"""Answers to questions about tool calls, checked before a run is made of them.

LangGraph stores an answer before the graph looks at it. One that the graph cannot use would be given to it again with
every later answer, and the question could never be answered. So whoever makes a run of an answer, in whichever
interface, asks here first.

Only questions in the form of LangChain's `HumanInTheLoopMiddleware` are known here. What else a mounted graph asks is
its own, and so is the answer.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

_KINDS = ("approve", "edit", "reject", "respond")
_ID_LENGTH = 32


def calls_of(question: object) -> list[dict[str, Any]]:
    """The tool calls that a question is about; none where it is about anything else."""
    requests: object = _fields(question).get("action_requests")
    calls = cast("list[object]", requests) if isinstance(requests, list) else []
    return [cast("dict[str, Any]", call) for call in calls] if all(map(_is_call, calls)) else []


def problem_with(answer: object, question: object, tools: Collection[str]) -> str | None:
    """Why a question cannot be answered so; None where it can.

    Args:
        answer: What the graph would be resumed with.
        question: What it asks.
        tools: The names of the agent's tools; none where they are not known.
    """
    calls = calls_of(question)
    if not calls:
        return None
    told: object = _fields(answer).get("decisions")
    decisions = cast("list[object]", told) if isinstance(told, list) else []
    if len(decisions) != len(calls):
        return f'expected {{"decisions": [...]}} with {len(calls)} of them'
    allowed = _allowed(question)
    for call, decision in zip(calls, decisions, strict=True):
        problem = _problem(_fields(decision), allowed.get(str(call.get("name")), _KINDS), tools)
        if problem is not None:
            return problem
    return None


def problem_with_resume(
    resume: object, interrupts: Mapping[str, Sequence[Mapping[str, Any]]], tools: Collection[str]
) -> str | None:
    """Why a thread cannot be resumed so; None where it can.

    Args:
        resume: An answer, or answers by the identifiers of what they answer, as LangGraph takes both.
        interrupts: What waits on the thread, by task.
        tools: The names of the agent's tools; none where they are not known.
    """
    waiting = {str(each["id"]): each["value"] for task in interrupts.values() for each in task}
    given = _fields(resume)
    by_id = given if given and all(len(name) == _ID_LENGTH for name in given) else None
    for identifier, question in waiting.items():
        if by_id is not None and identifier not in by_id:
            continue
        answer = resume if by_id is None else by_id[identifier]
        problem = problem_with(answer, question, tools)
        if problem is not None:
            return problem
    return None


def _is_call(told: object) -> bool:
    return isinstance(told, dict) and isinstance(_fields(cast("object", told)).get("args", {}), dict)


def _allowed(question: object) -> dict[str, Sequence[str]]:
    """Which kinds of decision a question takes, by the name of the tool."""
    configs: object = _fields(question).get("review_configs")
    allowed: dict[str, Sequence[str]] = {}
    for config in map(_fields, cast("list[object]", configs) if isinstance(configs, list) else []):
        kinds: object = config.get("allowed_decisions")
        if isinstance(kinds, list):
            allowed[str(config.get("action_name"))] = [str(kind) for kind in cast("list[object]", kinds)]
    return allowed


def _problem(decision: Mapping[str, Any], allowed: Sequence[str], tools: Collection[str]) -> str | None:
    match decision.get("type"):
        case kind if kind not in allowed:
            return f"expected a type for each decision: {', '.join(allowed)}"
        case "edit":
            return _problem_with_edit(_fields(decision.get("edited_action")), tools)
        case "reject" if not isinstance(decision.get("message"), str | None):
            return "expected the message of a rejection to be text"
        case "respond" if not isinstance(decision.get("message"), str):
            return "expected the message of a response, as text"
        case _:
            return None


def _problem_with_edit(action: Mapping[str, Any], tools: Collection[str]) -> str | None:
    name = action.get("name")
    if not isinstance(name, str) or not isinstance(action.get("args"), dict):
        return "expected an edited_action with a name and with args, which are an object"
    if tools and name not in tools:
        return f"expected an edited_action whose name is one of {', '.join(sorted(tools))}"
    return None


def _fields(value: object) -> Mapping[str, Any]:
    """What a JSON object has; nothing where it is none."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
