"""Threads as the service's interfaces use them, with their states and histories."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.errors import InvalidUpdateError
from langgraph.types import StateSnapshot
from langgraph.types import StateUpdate as _GraphUpdate

from muster_agent.runs import holds, thread_rows
from muster_agent.runs.records import Lease, NewThread, Row, ThreadNotFoundError, ThreadStatus
from muster_agent.runs.states import drafting, state_of, states_of
from muster_agent.wire import interrupt_as_json, plain

if TYPE_CHECKING:
    from muster_agent.agents.assistants import Assistant, Assistants, Graph
    from muster_agent.checkpoints import Memory
    from muster_agent.runs.executor import Executor
    from muster_agent.runs.thread_rows import ThreadQuery
    from muster_storage import Database


_HOLD_S = 60.0
# States that are read at once where only some are wanted: a state costs a millisecond or more.
_FILTERED_AT_ONCE = 20
_READING = "threads.read"
_WRITING = "threads.update"


@dataclass(frozen=True, slots=True)
class StateUpdate:
    """A state that is written by hand.

    Attributes:
        values: What is written; None writes nothing and makes a new checkpoint.
        as_node: As which node's output.
        checkpoint: Which checkpoint it continues; None for the newest.
    """

    values: Any
    as_node: str | None = None
    checkpoint: Mapping[str, Any] | None = None


class StateRefusedError(Exception):
    """A state cannot be written by hand; its text says why."""


class NoCheckpointError(Exception):
    """What a state is to continue does not exist."""


class Threads:
    """The threads of a service.

    Args:
        database: Where they are.
        memory: Their states.
        assistants: Whose states they are.
        executor: Told when a thread is free again.
    """

    def __init__(
        self, database: "Database", memory: "Memory", assistants: "Assistants", executor: "Executor"
    ) -> None:
        self._database = database
        self._memory = memory
        self._assistants = assistants
        self._executor = executor

    async def create(
        self,
        thread: NewThread,
        *,
        may_exist: bool = False,
        supersteps: Sequence[Sequence["StateUpdate"]] = (),
    ) -> Row:
        """Make a thread, and write its state step by step. One that exists already stays as it is.

        Raises:
            ThreadExistsError: There is one of this identifier.
            StateRefusedError: It has no assistant that would take these steps.
        """
        row, is_new = await self._database.run(_create, thread, may_exist)
        if not is_new or not supersteps:
            return row
        try:
            await self._write(thread.tenant, row, supersteps)
        except BaseException:
            await asyncio.shield(self.delete(thread.tenant, thread.thread_id))
            raise
        return await self.get(thread.tenant, thread.thread_id)

    async def get(self, tenant: str, thread_id: str) -> Row:
        """A thread.

        Raises:
            ThreadNotFoundError: The tenant has no such thread.
        """
        row = await self._database.run(thread_rows.thread, tenant, thread_id)
        if row is None:
            raise ThreadNotFoundError(thread_id)
        return row

    async def search(
        self, tenant: str, query: "ThreadQuery", sort: tuple[str, bool], page: tuple[int, int]
    ) -> tuple[Sequence[Row], int]:
        """A page of the tenant's threads, and how many there are in all.

        Raises:
            FilterError: A key of the filters cannot be searched for.
        """
        rows = await self._database.run(thread_rows.search, tenant, query, sort, page)
        return rows, await self.count(tenant, query)

    async def count(self, tenant: str, query: "ThreadQuery") -> int:
        """How many of the tenant's threads match.

        Raises:
            FilterError: A key of the filters cannot be searched for.
        """
        return await self._database.run(thread_rows.count, tenant, query)

    async def patch(self, tenant: str, thread_id: str, metadata: Mapping[str, Any]) -> Row:
        """Add to a thread's metadata.

        Raises:
            ThreadNotFoundError: The tenant has no such thread.
        """
        row = await self._database.run(thread_rows.patch, tenant, thread_id, metadata)
        if row is None:
            raise ThreadNotFoundError(thread_id)
        return row

    async def delete(self, tenant: str, thread_id: str) -> None:
        """Delete a thread with everything on it; runs on it are stopped.

        Raises:
            ThreadNotFoundError: The tenant has no such thread.
        """
        in_flight = await self._database.run(thread_rows.remove, tenant, thread_id)
        if in_flight is None:
            raise ThreadNotFoundError(thread_id)
        self._executor.lose(in_flight)
        await self._memory.saver.adelete_thread(thread_id)
        await self._database.run(thread_rows.buried, thread_id)

    async def copy(self, tenant: str, thread_id: str) -> Row:
        """Copy a thread with its history.

        Raises:
            ThreadNotFoundError: The tenant has no such thread.
        """
        source = await self.get(tenant, thread_id)
        made = await self.create(NewThread(str(uuid.uuid4()), tenant, source["metadata"]))
        await self._memory.saver.copy(thread_id, made["thread_id"])
        status = ThreadStatus.INTERRUPTED if source["interrupts"] else ThreadStatus.IDLE
        shown = thread_rows.Shown(source["values"], source["interrupts"], status, source["approval_due"])
        await self._database.run(thread_rows.show_state, tenant, made["thread_id"], shown)
        return await self.get(tenant, made["thread_id"])

    async def state(
        self,
        tenant: str,
        thread_id: str,
        checkpoint: Mapping[str, Any] | None = None,
        *,
        subgraphs: bool = False,
    ) -> dict[str, Any]:
        """A thread's state, the newest or at a checkpoint.

        Raises:
            ThreadNotFoundError: The tenant has no such thread.
        """
        row = await self.get(tenant, thread_id)
        if (assistant := self._assistant_of(row)) is None:
            return _empty_state()
        async with assistant.open(self._memory, access=_READING) as graph:
            found = await state_of(graph, _at(thread_id, checkpoint), subgraphs=subgraphs)
        return state_as_json(found) if found.created_at is not None else _empty_state()

    async def history(
        self,
        tenant: str,
        thread_id: str,
        limit: int,
        before: Mapping[str, Any] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """A thread's states, newest first.

        Args:
            tenant: Whose.
            thread_id: Which thread.
            limit: Most states.
            before: Only those before this checkpoint.
            checkpoint: Of which namespace.
            metadata: What a state's metadata must have; it is compared here, never made part of a query.

        Raises:
            ThreadNotFoundError: The tenant has no such thread.
        """
        row = await self.get(tenant, thread_id)
        if (assistant := self._assistant_of(row)) is None:
            return []
        config = _at(thread_id, {"checkpoint_ns": (checkpoint or {}).get("checkpoint_ns", "")})
        earlier = None if before is None else _at(thread_id, before)
        size = max(limit, _FILTERED_AT_ONCE) if metadata else limit
        found: list[dict[str, Any]] = []
        async with assistant.open(self._memory, access=_READING) as graph:
            while len(found) < limit:
                page = [state async for state in states_of(graph, config, size, earlier)]
                found += [state_as_json(state) for state in page if _has(state, metadata or {})]
                if len(page) < size:
                    break
                earlier = page[-1].config
        return found[:limit]

    async def update(self, tenant: str, thread_id: str, change: StateUpdate) -> dict[str, Any]:
        """Write a thread's state by hand. Returns the new checkpoint.

        Raises:
            ThreadNotFoundError: The tenant has no such thread.
            ThreadBusyError: A run waits or is there.
            StateRefusedError: The thread has no assistant, or its graph does not take this.
            NoCheckpointError: What it is to continue does not exist.
        """
        return await self._write(tenant, await self.get(tenant, thread_id), [[change]])

    async def _write(self, tenant: str, row: Row, steps: Sequence[Sequence[StateUpdate]]) -> dict[str, Any]:
        """Write steps, each of which is one or more nodes' output; the first says what it continues."""
        thread_id = row["thread_id"]
        assistant = self._assistant_of(row)
        if assistant is None:
            raise StateRefusedError(
                "nothing has run on this thread and it has no graph_id: the shape of its state is unknown"
            )
        async with self._held(tenant, thread_id), assistant.open(self._memory, access=_WRITING) as graph:
            config = _at(thread_id, steps[0][0].checkpoint)
            if steps[0][0].checkpoint and await self._memory.saver.aget_tuple(config) is None:
                raise NoCheckpointError
            written = [[_GraphUpdate(each.values, each.as_node) for each in step] for step in steps]
            try:
                async with drafting(graph) as draft:
                    config = await draft.abulk_update_state(config, written)
            except InvalidUpdateError as error:  # of nodes that there are not, or that cannot be told apart
                raise StateRefusedError(str(error)) from None
            except (
                ArithmeticError,
                AttributeError,
                LookupError,
                TypeError,
                ValueError,
                NotImplementedError,
            ) as error:
                # Its text may quote what was to be written.
                raise StateRefusedError(
                    f"the graph does not take these values: {type(error).__name__}"
                ) from None
            await self._show(tenant, thread_id, graph)
        return config.get("configurable", {})

    async def prune(self, tenant: str, thread_ids: Sequence[str], *, keep_latest: bool) -> int:
        """Delete threads, or all of their checkpoints but the newest. Returns how many there were."""
        pruned = 0
        for thread_id in thread_ids:
            if await self._database.run(thread_rows.thread, tenant, thread_id) is None:
                continue
            pruned += 1
            if keep_latest:
                await self._memory.saver.shorten(thread_id, 1)
            else:
                await self.delete(tenant, thread_id)
        return pruned

    @asynccontextmanager
    async def _held(self, tenant: str, thread_id: str) -> AsyncGenerator[None]:
        """Keep runs off a thread."""
        owner = self._executor.owner
        fence = await self._database.run(thread_rows.hold, tenant, thread_id, owner, _HOLD_S)
        lease = Lease(thread_id, thread_rows.by_hand(owner), fence)
        try:
            with holds.assumed(holds.Hold(lease)):
                yield
        finally:
            await self._database.run(thread_rows.let_go, thread_id, fence)
            self._executor.wake()

    async def _show(self, tenant: str, thread_id: str, graph: "Graph") -> None:
        state = await state_of(graph, _at(thread_id))
        values, interrupts = plain(state.values), interrupts_of(state)
        status = ThreadStatus.INTERRUPTED if state.next else ThreadStatus.IDLE
        shown = thread_rows.Shown(values, interrupts, status)
        await self._database.run(thread_rows.show_state, tenant, thread_id, shown)

    def _assistant_of(self, row: Row) -> "Assistant | None":
        """Whose state a thread holds: it says so since its first run."""
        known = cast("Mapping[str, Any]", row["metadata"])
        name = known.get("assistant_id") or known.get("graph_id")
        found = None if name is None else self._assistants.by_id(str(name))
        if found is not None:
            return found
        return next(
            (assistant for assistant in self._assistants if assistant.graph_id == known.get("graph_id")), None
        )


def _create(connection: Any, thread: NewThread, may_exist: bool) -> tuple[Row, bool]:  # noqa: ANN401, FBT001 - a transaction's arguments
    return thread_rows.create_thread(connection, thread, may_exist=may_exist)


def _at(thread_id: str, checkpoint: Mapping[str, Any] | None = None) -> RunnableConfig:
    given = {key: value for key, value in (checkpoint or {}).items() if value is not None}
    return RunnableConfig(configurable={"checkpoint_ns": "", **given, "thread_id": thread_id})


def _has(state: StateSnapshot, metadata: Mapping[str, Any]) -> bool:
    known = cast("Mapping[str, Any]", state.metadata or {})
    return all(known.get(key) == value for key, value in metadata.items())


def interrupts_of(state: StateSnapshot) -> dict[str, list[dict[str, Any]]]:
    """What waits for a person, by task."""
    return {
        task.id: plain([interrupt_as_json(each) for each in task.interrupts])
        for task in state.tasks
        if task.interrupts
    }


def _empty_state() -> dict[str, Any]:
    return {
        "values": {},
        "next": [],
        "tasks": [],
        "metadata": None,
        "created_at": None,
        "checkpoint": None,
        "parent_checkpoint": None,
        "interrupts": [],
        "checkpoint_id": None,
        "parent_checkpoint_id": None,
    }


def state_as_json(state: StateSnapshot) -> dict[str, Any]:
    """A state as LangGraph's server writes it."""
    checkpoint, parent = _checkpoint(state.config), _checkpoint(state.parent_config)
    return {
        "values": state.values,
        "next": list(state.next),
        "tasks": [_task(task) for task in state.tasks],
        "metadata": state.metadata,
        "created_at": state.created_at,
        "checkpoint": checkpoint,
        "parent_checkpoint": parent,
        "interrupts": [interrupt_as_json(each) for each in state.interrupts],
        "checkpoint_id": None if checkpoint is None else checkpoint["checkpoint_id"],
        "parent_checkpoint_id": None if parent is None else parent["checkpoint_id"],
    }


def _checkpoint(config: RunnableConfig | None) -> dict[str, Any] | None:
    if config is None:
        return None
    configurable: dict[str, Any] = config.get("configurable", {})
    names = ("thread_id", "checkpoint_ns", "checkpoint_id", "checkpoint_map")
    return {name: configurable[name] for name in names if name in configurable}


def _task(task: Any) -> dict[str, Any]:  # noqa: ANN401 - LangGraph's own
    nested: RunnableConfig | StateSnapshot | None = task.state
    return {
        "id": task.id,
        "name": task.name,
        "path": list(task.path),
        "error": None if task.error is None else str(task.error),
        "interrupts": [interrupt_as_json(each) for each in task.interrupts],
        "checkpoint": None if isinstance(nested, StateSnapshot) else _checkpoint(nested),
        "state": state_as_json(nested) if isinstance(nested, StateSnapshot) else None,
        "result": task.result,
    }
