"""Responses that can be asked for later.

A response is read from its run's events, and put down whole when the run has ended. Both are done by whoever comes
first: the process that made it, when the run ends, or a client that asks. The events are kept until then.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig
from sqlalchemy import Connection, and_, delete, func, insert, select, update

from muster_agent import failures
from muster_agent.failures import Failure
from muster_agent.openai_api.happenings import reader_for
from muster_agent.openai_api.response_writer import ResponseWriter
from muster_agent.runs.events import StoredEvent, read_events
from muster_agent.runs.tables import EVENTS, RESPONSES
from muster_observability import logs
from muster_storage import now_s

if TYPE_CHECKING:
    from muster_agent.agents.assistants import Assistants
    from muster_agent.checkpoints import Memory
    from muster_agent.runs.front import Runs
    from muster_storage import Database

Row = Mapping[Any, Any]

MADE_BY: Mapping[str, str] = {"muster_made_by": "responses"}
"""In a thread's metadata: it was made by a response, and goes with the last one on it."""

_log = logs.get("agent")


@dataclass(frozen=True, slots=True)
class NewResponse:
    """A response that is to be stored.

    Attributes:
        run: Its run.
        body: What it is while its run goes on.
        items: What it was asked with.
        shows_tools: Whether tool calls are items for programs.
    """

    run: Row
    body: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    shows_tools: bool


class StoredResponses:
    """The responses of a service.

    Args:
        database: Where they are.
        runs: Their runs.
        memory: The states that they lead to.
        assistants: Who made them.
    """

    def __init__(
        self, database: "Database", runs: "Runs", memory: "Memory", assistants: "Assistants"
    ) -> None:
        self._database = database
        self._runs = runs
        self._memory = memory
        self._assistants = assistants
        self._finishing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop waiting for runs; who asks for their responses finishes them."""
        for task in self._finishing:
            task.cancel()
        if self._finishing:
            await asyncio.wait(self._finishing)

    async def add(self, response: NewResponse) -> Row:
        """Store a response, and finish it when its run has ended; one that is there already is left as it is."""
        row = await self._database.run(_add, response)
        task = asyncio.get_running_loop().create_task(self._finish_when_ended(row))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return row

    async def get(self, tenant: str, response_id: str) -> Row:
        """A response's row.

        Raises:
            Failure: 404, the tenant has no such response.
        """
        row = await self._database.run(_one, tenant, response_id)
        if row is None:
            raise missing(response_id)
        return row

    async def newest_of(self, row: Row) -> Row:
        """The same response, finished if its run has ended."""
        if row["is_finished"]:
            return row
        events, is_over = await self._events_of(row["run_id"])
        writer = self.writer_for(row)
        is_told = _play(writer, events)
        if not is_over:
            return {**row, "body": writer.snapshot()} if events else row
        if not is_told:  # the run is gone, or ended before it began
            writer.fail(failures.run_cancelled())
        checkpoint_id = await self._checkpoint_of(row)
        return await self._database.run(_finish, row["response_id"], writer.response, checkpoint_id) or row

    async def has_events(self, row: Row) -> bool:
        """Whether a response's run can still be told from its beginning; events are kept for a while only."""
        return await self._database.run(_has_events, row["run_id"])

    def writer_for(self, row: Row, after: int = -1) -> ResponseWriter:
        """What tells a response's run from its beginning."""
        asked = row["body"]
        assistant = self._assistants.by_model(asked["model"])
        if assistant is None:
            raise missing(row["response_id"])
        return ResponseWriter(
            dict(asked), reader_for(assistant), shows_tools=row["asked"]["shows_tools"], after=after
        )

    async def delete(self, tenant: str, response_id: str) -> Row:
        """Delete a response. Returns what it was, with `is_last` for the last of its thread.

        Raises:
            Failure: 404, the tenant has no such response.
        """
        row = await self._database.run(_delete, tenant, response_id)
        if row is None:
            raise missing(response_id)
        return row

    async def _finish_when_ended(self, row: Row) -> None:
        try:
            await self._runs.ended(row["run_id"])
            await self.newest_of(row)
        except Exception as error:  # noqa: BLE001 - whoever asks for the response finishes it then
            _log.warning("a response was not finished", error=type(error).__name__)

    async def _events_of(self, run_id: str) -> tuple[list[StoredEvent], bool]:
        """What a run has said until now, and whether that is all."""
        events: list[StoredEvent] = []
        while True:
            page, is_over = await self._database.run(read_events, run_id, events[-1].seq if events else 0)
            events += page
            if not page:
                return events, is_over

    async def _checkpoint_of(self, row: Row) -> str | None:
        """The state that a response's run has left its thread in."""
        thread = RunnableConfig(configurable={"thread_id": row["thread_id"], "checkpoint_ns": ""})
        found = self._memory.saver.alist(thread, filter={"run_id": row["run_id"]}, limit=1)
        async for checkpoint in found:
            return str(checkpoint.checkpoint["id"])
        return None


def missing(response_id: str) -> Failure:
    """The tenant has no such response; somebody else may."""
    return failures.not_found(f"Response with id '{response_id[:128]}' not found.", "response_id")


def _play(writer: ResponseWriter, events: Sequence[StoredEvent]) -> bool:
    """Have a writer take in events. Returns whether the run's end was among them."""
    for event in events:
        try:
            writer.take(event)
        except Failure as failure:
            writer.fail(failure)
            return True
        if event.is_last:
            return True
    return False


def response_id_of(run_id: str) -> str:
    """The response that tells a run."""
    return f"resp_{run_id.replace('-', '')}"


def _add(connection: Connection, response: NewResponse) -> Row:
    run = response.run
    response_id = response_id_of(run["run_id"])
    known = _one(connection, run["tenant"], response_id)
    if known is not None:
        return known
    row = {
        "response_id": response_id,
        "tenant": run["tenant"],
        "thread_id": run["thread_id"],
        "run_id": run["run_id"],
        "is_finished": False,
        "asked": {"items": list(response.items), "shows_tools": response.shows_tools},
        "body": response.body,
    }
    made = insert(RESPONSES).values(**row, created_at=now_s(connection)).returning(RESPONSES)
    return connection.execute(made).mappings().one()


def _one(connection: Connection, tenant: str, response_id: str) -> Row | None:
    mine = and_(RESPONSES.c.response_id == response_id, RESPONSES.c.tenant == tenant)
    return connection.execute(select(RESPONSES).where(mine)).mappings().first()


def _has_events(connection: Connection, run_id: str) -> bool:
    query = select(EVENTS.c.seq).where(EVENTS.c.run_id == run_id).limit(1)
    return connection.execute(query).first() is not None


def _finish(
    connection: Connection, response_id: str, body: Mapping[str, Any], checkpoint_id: str | None
) -> Row | None:
    unfinished = and_(RESPONSES.c.response_id == response_id, RESPONSES.c.is_finished.is_(False))
    changed = {"body": body, "checkpoint_id": checkpoint_id, "is_finished": True}
    connection.execute(update(RESPONSES).where(unfinished).values(**changed))
    query = select(RESPONSES).where(RESPONSES.c.response_id == response_id)
    return connection.execute(query).mappings().first()


def _delete(connection: Connection, tenant: str, response_id: str) -> Row | None:
    row = _one(connection, tenant, response_id)
    if row is None:
        return None
    connection.execute(delete(RESPONSES).where(RESPONSES.c.response_id == response_id))
    others = select(func.count()).where(RESPONSES.c.thread_id == row["thread_id"])
    return {**row, "is_last": not connection.execute(others).scalar_one()}
