"""A client's command as graphs take it."""

from collections.abc import Mapping
from typing import Any, cast

from langgraph.types import Command, Send


def command_of(asked: Mapping[str, Any]) -> "Command[Any]":
    """What a client asked for; JSON has neither `Send` nor tuples."""
    goto: Any = asked.get("goto") or ()
    update: Any = asked.get("update")
    jumps: list[Any] = [goto] if isinstance(goto, str | dict) else list(goto)
    to: list[Any] = [_jump(each) for each in jumps]
    pairs: Any = [tuple(pair) for pair in cast("list[Any]", update)] if isinstance(update, list) else update
    return Command(resume=asked.get("resume"), goto=to, update=pairs)


def _jump(to: Any) -> Any:  # noqa: ANN401 - a node's name, or what it is sent
    if not isinstance(to, dict):
        return to
    sent = cast("dict[str, Any]", to)
    return Send(sent["node"], sent.get("input"))
