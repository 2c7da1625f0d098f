"""Reading a conversation: what has happened since the user last spoke, and what a model may be shown of it."""

from collections.abc import Sequence

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

NO_MORE_TOOLS = "no_more_tools"
"""In a tool message's `response_metadata`: the model has had enough calls, and is to answer."""

_NEVER_ENDED = "This call was not carried out to its end, and its result is unknown."


def current_turn(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    """The messages behind the user's last one."""
    turn: list[AnyMessage] = []
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            break
        turn.append(message)
    return turn[::-1]


def model_calls(messages: Sequence[AnyMessage]) -> int:
    """Model calls since the user last spoke."""
    return sum(isinstance(message, AIMessage) for message in current_turn(messages))


def has_had_enough(messages: Sequence[AnyMessage]) -> bool:
    """Whether a tool was refused since the user last spoke because there were too many calls."""
    return any(
        isinstance(message, ToolMessage) and NO_MORE_TOOLS in message.response_metadata
        for message in current_turn(messages)
    )


def earlier_calls(messages: Sequence[AnyMessage], call_id: str | None) -> list[tuple[str, str]]:
    """Tool calls since the user last spoke and before this one: each tool and its arguments."""
    calls: list[tuple[str, str]] = []
    for message in current_turn(messages):
        for call in message.tool_calls if isinstance(message, AIMessage) else ():
            if message is messages[-1] and call["id"] == call_id:
                return calls
            calls.append((call["name"], repr(sorted(call["args"].items()))))
    return calls


def results(messages: Sequence[AnyMessage]) -> list[ToolMessage | None]:
    """The results of the tool calls since the user last spoke, in the calls' order; None where there is none yet."""
    turn = current_turn(messages)
    found: list[ToolMessage | None] = []
    for place, message in enumerate(turn):
        if isinstance(message, AIMessage):
            behind = _results_behind(turn[place + 1 :])
            found += [behind.get(call["id"] or "") for call in message.tool_calls]
    return found


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
