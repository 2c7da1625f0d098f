"""What a summary still tells, beside its text, of the messages that it stands for.

For the model a summary is a message of the user; for the rules around calls it is not: the user has said nothing new.
What those rules must not forget stands in its `additional_kwargs`, which are stored and never shown to a model: what
has been called since the user last spoke, and whether something came from outside.

A client of LangGraph's API may write all of this into a message of its own. So only a thread's first message, which is
where a summary is put, can be part of a turn. And whatever is read here is added to what is counted, or makes one more
question asked: who forges a summary shortens the runs on their own thread, and can lengthen none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata

USAGE = "muster_usage"
"""On a summary: what the call that wrote it has used, for those who add up what a run has."""

_KEPT = "muster"
_MORE_THAN_ANY_LIMIT = 1_000_000
_SOURCE, _SUMMARY = "lc_source", "summarization"


@dataclass(frozen=True, slots=True)
class PastCall:
    """A tool call that has been made since the user last spoke.

    Attributes:
        key: The same for calls of one tool with the same arguments.
        result: The text that it gave; None where there is none, or where an earlier one has the same key.
    """

    key: str
    result: str | None


@dataclass(frozen=True, slots=True)
class Kept:
    """What the rules must know of messages that are gone.

    Attributes:
        model_calls: Calls of the model since the user last spoke.
        calls: Tool calls likewise.
        has_had_enough: Whether a tool was refused likewise, because there were too many calls.
        is_from_outside: Whether they held content from outside. Summaries of earlier versions do not say, and may.
    """

    model_calls: int = 0
    calls: Sequence[PastCall] = ()
    has_had_enough: bool = False
    is_from_outside: bool = True

    def noted_on(self, summary: AnyMessage, usage: UsageMetadata | None = None) -> AnyMessage:
        """The summary, with this written on it, and what the call that wrote it has used."""
        told = {
            "model_calls": self.model_calls,
            "calls": [[call.key, call.result] for call in self.calls],
            "has_had_enough": self.has_had_enough,
            "is_from_outside": self.is_from_outside,
        }
        known = cast("dict[str, Any]", summary.additional_kwargs)
        used = {} if usage is None else {USAGE: dict(usage)}
        return summary.model_copy(update={"additional_kwargs": {**known, _KEPT: told, **used}})


def as_summary(text: str) -> HumanMessage:
    """A message that says that it stands in place of older ones, in LangChain's way."""
    return HumanMessage(text, additional_kwargs={_SOURCE: _SUMMARY})


def is_summary(message: AnyMessage) -> bool:
    """Whether a message says that it stands in place of older ones."""
    if not isinstance(message, HumanMessage):
        return False
    return cast("dict[str, object]", message.additional_kwargs).get(_SOURCE) == _SUMMARY


def kept_on(summary: AnyMessage) -> Kept:
    """What is written on a summary. A client may have written it, so it may be anything."""
    told = cast("dict[str, object]", summary.additional_kwargs).get(_KEPT)
    if not isinstance(told, Mapping):
        return Kept()
    known = cast("Mapping[str, object]", told)
    return Kept(
        model_calls=_count(known.get("model_calls")),
        calls=_calls(known.get("calls")),
        has_had_enough=known.get("has_had_enough") is True,
        is_from_outside=known.get("is_from_outside") is not False,
    )


def _count(told: object) -> int:
    return min(max(0, told), _MORE_THAN_ANY_LIMIT) if isinstance(told, int) else 0


def _calls(told: object) -> list[PastCall]:
    pairs = cast("list[object]", told) if isinstance(told, list) else []
    return [call for call in map(_call, pairs) if call is not None]


def _call(told: object) -> PastCall | None:
    match told:
        case [str() as key, (str() | None) as result]:
            return PastCall(key, result)
        case _:
            return None
