"""The service put together: what it opens when it starts, in which order, and closes when it stops."""

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from muster_agent import identity
from muster_agent.agents.assistants import Assistants, open_assistants
from muster_agent.agents.building import Parts
from muster_agent.agents.declarations import AgentsFile
from muster_agent.agents.tracing import stay_in_loop_untraced
from muster_agent.callers import Callers
from muster_agent.checkpoints import Memory, open_memory
from muster_agent.clients import ProxyClients, connect
from muster_agent.measures import Measures
from muster_agent.models import ModelName
from muster_agent.openai_api.reconciling import prepare_input
from muster_agent.openai_api.stored_responses import StoredResponses
from muster_agent.runs.departures import Departures
from muster_agent.runs.events import EventLog
from muster_agent.runs.executor import Executor
from muster_agent.runs.front import Runs
from muster_agent.runs.holds import Hold
from muster_agent.runs.services import Services
from muster_agent.runs.tables import SCHEMA
from muster_agent.runs.thread_events import ThreadEvents
from muster_agent.runs.threads import Threads
from muster_agent.runs.upkeep import Retention, Upkeep
from muster_agent.seals import Seals, secret_in
from muster_agent.settings import AgentSettings
from muster_observability import logs, server
from muster_storage import Database, open_database


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that the interfaces use.

    Attributes:
        settings: The service's.
        assistants: The agents.
        callers: Tells who calls.
        clients: The ways to the proxy.
        database: Where everything is.
        memory: What graphs remember.
        measures: Counts.
        model_name: The model that agents think with, unless they have their own.
        runs: Runs.
        threads: Threads.
        thread_events: What is said on threads.
        executor: Runs runs.
        departures: Ends runs whose clients have hung up.
        responses: Responses that can be asked for later.
    """

    settings: AgentSettings
    assistants: Assistants
    callers: Callers
    clients: ProxyClients
    database: Database
    memory: Memory
    measures: Measures
    model_name: ModelName
    runs: Runs
    threads: Threads
    thread_events: ThreadEvents
    executor: Executor
    departures: Departures
    responses: StoredResponses


@asynccontextmanager
async def open_service(
    settings: AgentSettings, agents: AgentsFile, measures: Measures
) -> AsyncGenerator[Service]:
    """Open the service; runs that an earlier process left are resumed.

    Raises:
        StorageError: The database cannot be used.
        ToolkitError: An agent's tools or graph cannot be had.
    """
    stay_in_loop_untraced()
    async with AsyncExitStack() as opened:
        database = await asyncio.to_thread(open_database, settings.database_url, SCHEMA)
        opened.push_async_callback(database.close)
        memory = await opened.enter_async_context(open_memory(settings.database_url))
        clients = await asyncio.to_thread(connect, settings)  # reads certificates from the disk
        opened.push_async_callback(clients.aclose)
        name = ModelName(settings.model, clients.openai)
        parts = Parts(
            model=clients.model,
            name=name,
            prompt=settings.system_prompt,
            measures=measures,
            database=lambda: database,
            model_named=lambda wanted: ModelName(wanted, clients.openai),
        )
        assistants = await open_assistants(agents, parts, opened)
        measures.know_tools(tool.name for assistant in assistants for tool in assistant.tools)
        seals = await asyncio.to_thread(_seals, settings)
        log = EventLog(database)
        executor = _executor(settings, database, log, memory, assistants, seals, measures)
        runs = Runs(database, log, executor, seals)
        responses = StoredResponses(database, runs, memory, assistants)
        opened.push_async_callback(responses.close)
        service = Service(
            settings=settings,
            assistants=assistants,
            callers=Callers(settings.proxy, clients.plain, _own_key(settings), settings.allowed_hosts),
            clients=clients,
            database=database,
            memory=memory,
            measures=measures,
            model_name=name,
            runs=runs,
            threads=Threads(database, memory, assistants, executor),
            thread_events=ThreadEvents(database, log),
            executor=executor,
            departures=Departures(log, settings.disconnect_grace_s),
            responses=responses,
        )
        upkeep = Upkeep(database, memory, executor, _retention(settings))
        await upkeep.bury()
        await opened.enter_async_context(_working(executor, upkeep))
        yield service


def _own_key(settings: AgentSettings) -> str | None:
    return None if settings.api_key is None else settings.api_key.get_secret_value()


def _seals(settings: AgentSettings) -> Seals:
    if settings.secret is not None:
        return Seals(settings.secret.get_secret_value())
    path = Path(str(make_url(settings.database_url).database))
    return Seals(secret_in(path.with_name(f"{path.stem}.secret")))


def _retention(settings: AgentSettings) -> Retention:
    return Retention(settings.events_ttl_s, settings.runs_ttl_s, settings.threads_ttl_s, settings.states_kept)


def _executor(  # noqa: PLR0913, PLR0917 - it ties the knot between the executor and what it needs
    settings: AgentSettings,
    database: Database,
    log: EventLog,
    memory: Memory,
    assistants: Assistants,
    seals: Seals,
    measures: Measures,
) -> Executor:
    @asynccontextmanager
    async def acting_for(run: Mapping[str, Any], hold: Hold) -> AsyncGenerator[None]:
        who = identity.RunIdentity(
            session_id=hold.lease.thread_id,
            request_id=run["request_id"],
            tenant=run["tenant"],
            key=seals.open(run["sealed_key"]),
            run_id=run["run_id"],
            attempt=run["attempt"],
            is_patient=bool(run["kwargs"].get("is_patient", True)),
        )
        with identity.assumed(who):
            yield

    def approval_s(run: Mapping[str, Any], interrupts: Mapping[str, Any]) -> float | None:
        assistant = assistants.by_id(run["assistant_id"])
        if not interrupts or assistant is None or assistant.declaration.graph is not None:
            return None
        return assistant.declaration.approval.timeout_s

    executors: list[Executor] = []
    services = Services(
        database=database,
        log=log,
        memory=memory,
        assistants=assistants,
        acting_for=acting_for,
        measured=lambda run: measures.run_of(str(run["metadata"].get("graph_id", ""))),
        prepare_input=prepare_input,
        approval_s=approval_s,
        ended=lambda execution: executors[0].ended(execution),  # noqa: PLW0108 - it is not there yet
    )
    executors.append(Executor(services, settings.runs_at_once, settings.lease_s))
    return executors[0]


@asynccontextmanager
async def _working(executor: Executor, upkeep: Upkeep) -> AsyncGenerator[None]:
    """Run runs while the block lasts."""
    work = [
        asyncio.create_task(executor.serve(), name="executor"),
        asyncio.create_task(upkeep.serve(), name="upkeep"),
    ]
    for task in work:
        task.add_done_callback(_end_with)
    try:
        yield
    finally:
        for task in work:
            task.remove_done_callback(_end_with)
            task.cancel()
        await asyncio.wait(work)


def _end_with(task: "asyncio.Task[None]") -> None:
    """A service that runs nothing must not look well: without its executor the process ends."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logs.get("agent").critical(
            "the service cannot go on", task=task.get_name(), error=type(error).__name__
        )
        os._exit(server.ExitCode.SOFTWARE)
