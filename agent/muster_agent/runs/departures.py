"""Clients that hang up: some come back at once, and the others wanted their run to end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muster_agent.runs.events import EventLog


class Departures:
    """Ends runs that nobody has come back to.

    Args:
        log: Knows who listens.
        grace_s: Seconds to come back in.
    """

    def __init__(self, log: "EventLog", grace_s: float) -> None:
        self._log = log
        self._grace_s = grace_s
        self._waiting: set[asyncio.Task[None]] = set()

    def cancel_unless_followed(self, run_id: str, cancel: Callable[[], Awaitable[None]]) -> None:
        """Call `cancel` when the time is over and nobody listens to the run."""
        self._log.leave(run_id)
        task = asyncio.get_running_loop().create_task(self._cancel(run_id, cancel))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _cancel(self, run_id: str, cancel: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(self._grace_s)
        if self._log.is_left(run_id):
            await cancel()
