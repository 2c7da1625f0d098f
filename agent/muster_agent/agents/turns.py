"""Reading a conversation: what has happened since the user last spoke, and what a model may be shown of it."""

from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from hashlib import blake2b

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall, ToolMessage

from muster_agent.agents.summarised import Kept, PastCall, is_summary, kept_on

NO_MORE_TOOLS = "no_more_tools"
"""In a tool message's `response_metadata`: the model has had enough calls, and is to answer."""

_NEVER_ENDED = "This call was not carried out to its end, and its result is unknown."


def current_turn(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    """The messages behind the user's last one; first of them a summary, where that message is part of it."""
    turn: list[AnyMessage] = []
    for place in reversed(range(len(messages))):
        message = messages[place]
        if isinstance(message, HumanMessage) and not (place == 0 and is_summary(message)):
            break
        turn.append(message)
    return turn[::-1]


def model_calls(messages: Sequence[AnyMessage]) -> int:
    """Model calls since the user last spoke."""
    turn = current_turn(messages)
    return _kept(turn).model_calls + sum(isinstance(message, AIMessage) for message in turn)


def has_had_enough(messages: Sequence[AnyMessage]) -> bool:
    """Whether a tool was refused since the user last spoke because there were too many calls."""
    turn = current_turn(messages)
    return _kept(turn).has_had_enough or any(
        isinstance(message, ToolMessage) and NO_MORE_TOOLS in message.response_metadata for message in turn
    )


def earlier_calls(messages: Sequence[AnyMessage], call_id: str | None) -> list[PastCall]:
    """Tool calls since the user last spoke and before this one of the last message."""
    calls: list[PastCall] = []
    turn = current_turn(messages)
    for asking, identifier, call in _calls_of(turn):
        if asking is messages[-1] and identifier == call_id:
            break
        calls.append(call)
    return [*_kept(turn).calls, *calls]


def same_as(call: ToolCall, calls: Sequence[PastCall]) -> list[PastCall]:
    """Those of the calls that called the same tool with the same arguments."""
    key = _key(call)
    keys = {key, _digest(key)}
    return [past for past in calls if past.key in keys]


def kept_of(messages: Sequence[AnyMessage], untrusted: Collection[str]) -> Kept:
    """What a summary of these messages, the first of a thread, is to tell beside its text.

    Args:
        messages: The messages.
        untrusted: Names of tools that bring content from outside.
    """
    turn = current_turn(messages)
    return Kept(
        model_calls=model_calls(messages),
        calls=_without_repeated_results(
            [*_kept(turn).calls, *(replace(call, key=_digest(call.key)) for _, _, call in _calls_of(turn))]
        ),
        has_had_enough=has_had_enough(messages),
        is_from_outside=has_read_from_outside(messages, untrusted),
    )


def has_read_from_outside(messages: Sequence[AnyMessage], untrusted: Collection[str]) -> bool:
    """Whether a conversation holds content from outside, or a summary of it."""
    return any(
        message.name in untrusted
        if isinstance(message, ToolMessage)
        else is_summary(message) and kept_on(message).is_from_outside
        for message in messages
    )


def sendable(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    """A conversation that every model takes: each tool call with one result right behind it, and no result without.

    A run that was cancelled in the middle of its tools leaves calls without results. They are answered here, and only
    for the model: what is stored stays what happened.
    """
    sent: list[AnyMessage] = []
    for place, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            continue
        sent.append(message)
        if isinstance(message, AIMessage) and message.tool_calls:
            results = _results_behind(messages[place + 1 :])
            sent += [_result(results, call["id"], call["name"]) for call in message.tool_calls]
    return sent


def _kept(turn: Sequence[AnyMessage]) -> Kept:
    """What a summary at the head of a turn tells of the turn's beginning."""
    return kept_on(turn[0]) if turn and is_summary(turn[0]) else Kept()


def _calls_of(turn: Sequence[AnyMessage]) -> Generator[tuple[AIMessage, str | None, PastCall]]:
    """The tool calls of a turn: who asks, the call's identifier, and the call."""
    for place, message in enumerate(turn):
        if isinstance(message, AIMessage):
            behind = _results_behind(turn[place + 1 :])
            for call in message.tool_calls:
                result = behind.get(call["id"] or "")
                yield message, call["id"], PastCall(_key(call), None if result is None else str(result.text))


def _key(call: ToolCall) -> str:
    return f"{call['name']} {sorted(call['args'].items())!r}"


def _digest(key: str) -> str:
    """A call's key as a summary has it: arguments may be long, and a summary is there to be short."""
    return blake2b(key.encode(errors="replace"), digest_size=16).hexdigest()


def _without_repeated_results(calls: Sequence[PastCall]) -> list[PastCall]:
    """Of calls with one key only the first one's result is ever given again."""
    seen: set[str] = set()
    kept: list[PastCall] = []
    for call in calls:
        kept.append(replace(call, result=None) if call.key in seen else call)
        seen.add(call.key)
    return kept


def _results_behind(messages: Sequence[AnyMessage]) -> dict[str, ToolMessage]:
    """Results up to the model's next message: identifiers of calls may repeat after it."""
    results: dict[str, ToolMessage] = {}
    for message in messages:
        if isinstance(message, AIMessage):
            break
        if isinstance(message, ToolMessage):
            results[message.tool_call_id] = message
    return results


def _result(results: dict[str, ToolMessage], call_id: str | None, name: str) -> ToolMessage:
    known = results.get(call_id or "")
    return known or ToolMessage(_NEVER_ENDED, tool_call_id=call_id or "", name=name, status="error")
