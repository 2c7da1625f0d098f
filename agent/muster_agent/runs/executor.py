"""The executor: claims runs, runs them, keeps their leases, and takes over from processes that died.

There is one in every process. It is told of new runs in its own process, hears of others' over the bus, and looks by
itself now and then, so that a message that is lost costs a moment and nothing else.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from muster_agent.runs import bus, queue
from muster_agent.runs.execution import Execution
from muster_agent.runs.records import Cancel
from muster_observability import logs

if TYPE_CHECKING:
    from muster_agent.runs.services import Services

_LOOK_S = 1.0

_log = logs.get("agent")


class Executor:
    """Runs runs.

    Args:
        services: What they need.
        most: Runs at once; further ones wait in the database.
        lease_s: Seconds after which the runs of a process that is silent are another's.
    """

    def __init__(self, services: "Services", most: int, lease_s: float) -> None:
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self._services = services
        self._most = most
        self._lease_s = lease_s
        self._renew_s = lease_s / 5
        self._executions: dict[str, Execution] = {}
        self._has_news = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._renewed_s = time.monotonic()
        self._is_full = False
        self._next_s: float | None = None
        self._missed: set[str] = set()
        self._errands: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Executor {len(self._executions)} of {self._most} runs>"

    @property
    def running(self) -> int:
        """Runs in this process."""
        return len(self._executions)

    def wake(self) -> None:
        """There may be something to claim."""
        self._has_news.set()

    def ended(self, execution: Execution) -> None:
        """An attempt is over; the thread's next run may start, or one that had no room."""
        self._executions.pop(execution.run_id, None)
        if not self._executions:
            self._is_idle.set()
        if self._is_full or execution.leaves_work:
            self.wake()

    def cancel(self, run_ids: Iterable[str], action: Cancel, *, keeps_input: bool = False) -> None:
        """Stop those of these runs that are in this process; the others' processes have been told."""
        for run_id in run_ids:
            if (execution := self._executions.get(run_id)) is None:
                self._missed.add(run_id)
            else:
                execution.cancel(action, keeps_input=keeps_input)

    def lose(self, run_ids: Iterable[str]) -> None:
        """Stop those of these runs that are in this process: they and their thread are deleted."""
        for run_id in run_ids:
            if (execution := self._executions.get(run_id)) is not None:
                execution.abandon(is_lost=True)
            self._services.log.look(run_id)  # whoever listens to it sees that it is gone

    async def serve(self) -> None:
        """Run what is to be run, until cancelled; then leave what is not finished to the next process."""
        if not self._services.database.is_postgres:
            # We alone have this database: whoever had the leases is dead.
            await self._services.database.run(queue.disown)
        async with asyncio.TaskGroup() as group:
            for work in (self._services.log.write_forever(), self._renew_forever()):
                group.create_task(work)
            group.create_task(bus.listen(self._services.database, self._heard))
            try:
                await self._claim_forever(group)
            finally:
                await self._leave()

    async def _claim_forever(self, group: asyncio.TaskGroup) -> None:
        look_again_s = 0.0
        while True:
            self._has_news.clear()
            more = False
            if time.monotonic() >= look_again_s:
                more = await self._start(group, queue.take_over, list(self._executions))
                look_again_s = time.monotonic() + _LOOK_S
            more |= await self._start(group, queue.claim)
            if not more:
                await self._news()

    async def _start(
        self, group: asyncio.TaskGroup, transaction: Callable[..., queue.Taken], *given: object
    ) -> bool:
        """Start what a transaction takes. Returns whether there may be more."""
        room = self._most - len(self._executions)
        self._is_full = room <= 0
        if self._is_full:
            return False
        self._missed.clear()
        try:
            taken = await self._services.database.run(transaction, self.owner, room, self._lease_s, *given)
        except Exception as error:  # noqa: BLE001 - the database is away; it is asked again
            _log.error("runs could not be claimed", error=type(error).__name__)
            await asyncio.sleep(_LOOK_S)
            return True
        self._next_s = taken.next_s
        for each in taken.claimed:
            execution = Execution(each, self._services)
            self._executions[execution.run_id] = execution
            self._is_idle.clear()
            execution.start(group)
        # Whoever cancelled one of them when it had been taken and did not stand here yet has not found it.
        await self._obey([each.lease.run_id for each in taken.claimed if each.lease.run_id in self._missed])
        self._is_full = len(taken.claimed) == room
        return self._is_full

    async def _news(self) -> None:
        """Wait until there may be something to claim."""
        try:
            async with asyncio.timeout(_LOOK_S if self._next_s is None else min(_LOOK_S, self._next_s)):
                await self._has_news.wait()
        except TimeoutError:
            return

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._renew_s)
            if self._executions:
                await self._renew()
            else:
                self._renewed_s = time.monotonic()

    async def _renew(self) -> None:
        executions = dict(self._executions)
        leases = [execution.claimed.lease for execution in executions.values()]
        try:
            async with asyncio.timeout(self._renew_s):
                kept, cancelled = await self._services.database.run(
                    queue.renew, self.owner, leases, self._lease_s
                )
        except Exception as error:  # noqa: BLE001 - the database is away; it is asked again
            _log.error("leases could not be renewed", error=type(error).__name__)
            if time.monotonic() - self._renewed_s < self._lease_s - 2 * self._renew_s:
                return
            kept, cancelled = set[str](), list[str]()  # they run out, and what we run is another's
        else:
            self._renewed_s = time.monotonic()
        for run_id, execution in executions.items():
            if run_id not in kept and run_id in self._executions:
                execution.abandon(is_lost=True)
        await self._obey(cancelled)

    async def _obey(self, run_ids: Sequence[str]) -> None:
        """Cancel those of these runs of ours that somebody has asked to cancel."""
        if not run_ids:
            return
        try:
            asked = await self._services.database.run(queue.cancellations, run_ids)
        except Exception as error:  # noqa: BLE001 - the database is away; the next renewal finds them again
            _log.error("cancelled runs could not be looked up", error=type(error).__name__)
            return
        for run_id, (action, keeps_input) in asked.items():
            self.cancel([run_id], action, keeps_input=keeps_input)

    def _heard(self, topic: str) -> None:
        kind, _, run_id = topic.partition(":")
        match kind:
            case bus.ALL:
                self._services.log.look_everywhere()
                self.wake()
            case "events":
                self._services.log.look(run_id)
            case "followed":
                self._services.log.came_back(run_id)
            case "cancel" if run_id in self._executions:
                errand = asyncio.get_running_loop().create_task(self._obey([run_id]))
                self._errands.add(errand)
                errand.add_done_callback(self._errands.discard)
            case "cancel":
                self._missed.add(run_id)
                self.wake()
            case _:
                self.wake()

    async def _leave(self) -> None:
        """Stop every attempt where it is; the next process goes on from its last checkpoint."""
        for execution in list(self._executions.values()):
            execution.abandon(is_lost=False)
        if self._executions:
            await self._is_idle.wait()
        await self._services.database.run(queue.disown, self.owner)
