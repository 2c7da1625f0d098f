"""What stands beside a checkpoint: what tasks have written that no later checkpoint has taken in yet.

A run that goes on from a checkpoint, with an answer to its question for one, writes beside that checkpoint until its
first step is done. The run's own checkpoints can be told from others' and be taken back; what it wrote there cannot. So
it is noted before, and put back.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, cast

import orjson

_NO_TASK = "00000000-0000-0000-0000-000000000000"  # LangGraph's, for what no task has written
_RESUME = "__resume__"  # LangGraph's channel of answers

OF_COMMANDS: LiteralString = f"(channel = '{_RESUME}' OR task_id = '{_NO_TASK}')"
"""Which rows come with a client's command and not from a task: answers to questions, and updates."""

_TASK = 2
_CHANNEL = -3
_VALUE = -1


@dataclass(frozen=True, slots=True)
class Pending:
    """What stood beside a thread's checkpoints from one on.

    Attributes:
        since: The oldest of them.
        rows: The rows of LangGraph's table but for the thread. A row begins with its namespace, its checkpoint and its
            task, and ends with its channel, its type and its value.
    """

    since: str
    rows: Sequence[Sequence[Any]]

    def to_json(self) -> bytes:
        """As it is kept."""
        rows = [[*row[:_VALUE], _text(row[_VALUE])] for row in self.rows]
        return orjson.dumps({"since": self.since, "rows": rows})

    @classmethod
    def from_json(cls, kept: bytes) -> "Pending":
        """What was kept."""
        known = cast("dict[str, Any]", orjson.loads(kept))
        rows = [[*row[:_VALUE], _bytes(row[_VALUE])] for row in known["rows"]]
        return cls(known["since"], rows)

    def chosen(self, *, command_alone: bool) -> Iterable[Sequence[Any]]:
        """The rows, or those that come with commands."""
        return (row for row in self.rows if not command_alone or _is_of_command(row))


def _is_of_command(row: Sequence[Any]) -> bool:
    return row[_CHANNEL] == _RESUME or row[_TASK] == _NO_TASK


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
