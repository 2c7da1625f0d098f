"""At most once: what a tool that changes the world has done is known before it does it again.

A process may die between a tool's effect and the checkpoint that tells of it. The run is resumed from before the call,
so the call comes again. The journal has it by then: with its result, which is given again, or without one, and then
nobody knows whether it had its effect. The model is told so; it is not carried out a second time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, insert, select, update

from muster_agent.runs.queue import check
from muster_agent.runs.records import Lease
from muster_agent.runs.tables import TOOL_CALLS
from muster_storage import now_s


@dataclass(frozen=True, slots=True)
class CallKey:
    """Which call is meant. A model's own identifiers may repeat, so they count within one of its messages.

    Attributes:
        thread_id: The thread.
        message_id: The model's message that asks for the call.
        call_id: The call in it.
    """

    thread_id: str
    message_id: str
    call_id: str


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known of a call that is about to be carried out.

    Attributes:
        is_first: Whether it is to be carried out.
        result: What it gave the first time, if that is known.
    """

    is_first: bool
    result: Mapping[str, Any] | None = None


def begin(connection: Connection, lease: Lease, key: CallKey) -> Begun:
    """Write down that a call is about to be carried out, unless it has been before.

    Raises:
        LeaseLostError: The run is another process's.
    """
    check(connection, lease)
    known = connection.execute(select(TOOL_CALLS.c.result).where(_is(key))).first()
    if known is not None:
        return Begun(is_first=False, result=known.result)
    row = {"thread_id": key.thread_id, "message_id": key.message_id, "call_id": key.call_id}
    connection.execute(insert(TOOL_CALLS).values(**row, started_at=now_s(connection)))
    return Begun(is_first=True)


def end(connection: Connection, key: CallKey, result: Mapping[str, Any]) -> None:
    """Write down what a call gave. A lost lease is no hindrance: it is what happened."""
    connection.execute(update(TOOL_CALLS).where(_is(key)).values(result=result))


def _is(key: CallKey) -> Any:  # noqa: ANN401 - an SQL expression
    return and_(
        TOOL_CALLS.c.thread_id == key.thread_id,
        TOOL_CALLS.c.message_id == key.message_id,
        TOOL_CALLS.c.call_id == key.call_id,
    )
