"""One attempt at one run: from its claim to its end, or until another attempt must go on.

An attempt ends in one of these ways:

* The graph ends, or waits for a person: `success` or `interrupted`.
* The graph fails: `error`. Its deadline passes: `timeout`.
* Somebody cancels it: `interrupted`, or it is rolled back and gone.
* Its process stops: it is released, and the next attempt resumes it at its last checkpoint.
* Another process has it: it writes nothing more.

The first three write the run's end, once. What an attempt writes before, it writes under its lease.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import orjson
from langchain_core.runnables import RunnableConfig

from muster_agent.checkpoints.pending import Pending
from muster_agent.runs import holds, queue
from muster_agent.runs.command import command_of
from muster_agent.runs.complaints import complaint_of, complaint_of_timeout
from muster_agent.runs.events import StoredEvent, Writer
from muster_agent.runs.records import Cancel, Claimed, LeaseLostError, Outcome, RunStatus, ThreadStatus
from muster_agent.runs.states import state_of
from muster_agent.streams import v1, v2
from muster_agent.wire import interrupt_as_json, plain, to_json
from muster_observability import logs

if TYPE_CHECKING:
    from langgraph.checkpoint.base import CheckpointTuple
    from langgraph.types import StateSnapshot

    from muster_agent.agents.assistants import Assistant, Graph
    from muster_agent.runs.services import Services

_MOST_STALLS = 10
_TOOLS_AT_ONCE = 8
_DEFAULT_RECURSION = 200

_log = logs.get("agent")


@dataclass(slots=True)
class _Cancelling:
    """A cancellation that was asked for."""

    action: Cancel
    keeps_input: bool


class Execution:
    """An attempt.

    Args:
        claimed: The run, and the right to run it.
        services: What runs need.
    """

    def __init__(self, claimed: Claimed, services: "Services") -> None:
        self.claimed = claimed
        self.hold = holds.Hold(claimed.lease)
        self._services = services
        self._run: Mapping[str, Any] = claimed.run
        self._kwargs: Mapping[str, Any] = claimed.run["kwargs"]
        is_stored = services.database.is_postgres or self._must_be_kept()
        heard = max(claimed.events, services.log.last_told(claimed.lease.run_id))
        self._writer = Writer(services.log, claimed.lease, heard, is_stored=is_stored)
        self._task: asyncio.Task[None] | None = None
        self._cancelling: _Cancelling | None = None
        self._is_ending = False
        self._is_under_way = False
        self._must_stop = False
        self.leaves_work = True
        """Whether another run may be waiting for this one's end."""

    def __repr__(self) -> str:
        return f"<Execution {self.run_id} attempt {self._run['attempt']}>"

    @property
    def run_id(self) -> str:
        """The run."""
        return self.claimed.lease.run_id

    def _must_be_kept(self) -> bool:
        """Whether somebody may ask for the run's events later."""
        return bool(self._kwargs.get("stream_resumable")) or self._kwargs.get("protocol") == v2.PROTOCOL

    def start(self, group: asyncio.TaskGroup) -> None:
        """Begin."""
        self._services.log.look(self.claimed.lease.thread_id)
        self._task = group.create_task(self._attempt(), name=f"run {self.run_id}")
        if self._run["cancel"] is not None:  # asked for while it waited
            self.cancel(Cancel(self._run["cancel"]), keeps_input=self._run["keeps_input"])

    def cancel(self, action: Cancel, *, keeps_input: bool = False) -> None:
        """Stop it: its model call is closed at once. With `keeps_input`, not before its input is in the thread."""
        if self._cancelling is not None or self._is_ending:
            return
        self._cancelling = _Cancelling(action, keeps_input)
        if keeps_input and not self.hold.is_saved:
            self.hold.on_saved = self._stop
        else:
            self._stop()

    def abandon(self, *, is_lost: bool) -> None:
        """Stop without writing an end: its lease is lost, or its process stops."""
        self.hold.is_lost = is_lost
        if not self._is_ending:
            self._stop()

    def _stop(self) -> None:
        # A task that is cancelled before it has begun never begins, and would not even say that it is over.
        if self._is_under_way and self._task is not None:
            self._task.cancel()
        else:
            self._must_stop = True

    async def _attempt(self) -> None:
        self._is_under_way = True
        with holds.assumed(self.hold):
            await self._to_its_end()

    async def _to_its_end(self) -> None:
        log = _log.bind(
            run_id=self.run_id, thread_id=self.claimed.lease.thread_id, attempt=self._run["attempt"]
        )
        try:
            with self._services.measured(self._run) as record:
                outcome = await self._outcome()
                self._is_ending = True
                await self._end(outcome)
                record.outcome = outcome.status.value
            ended = {"outcome": record.outcome, "seconds": round(record.seconds, 3)}
            log.info("run ended", request_id=self._run["request_id"], **ended)
        except LeaseLostError:
            log.warning("run is another process's now")
        except asyncio.CancelledError:
            log.info("run is left to the next process")
        except Exception as error:  # noqa: BLE001 - the database is away: the lease runs out, and the run is resumed
            log.error("run could not be ended", error=type(error).__name__)  # noqa: TRY400 - texts may quote prompts
        finally:
            self._services.ended(self)

    async def _outcome(self) -> Outcome:
        """Run the graph. Only `LeaseLostError` and, where nobody asked to cancel, `CancelledError` leave it."""
        limit = asyncio.timeout(max(0.0, self.claimed.left_s))
        try:
            async with limit:
                self._stop_if_told()
                return await self._run_graph()
        except TimeoutError as error:
            if not limit.expired():
                return await self._failed(error)
            return await self._complained(RunStatus.TIMEOUT, complaint_of_timeout(self._run["timeout_s"]))
        except LeaseLostError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._cancelling is None or self.hold.is_lost or task is None:
                raise
            task.uncancel()
            return await self._cancelled()
        except Exception as error:  # noqa: BLE001 - a graph may raise anything; the run fails with it
            return await self._failed(error)

    def _stop_if_told(self) -> None:
        if self._must_stop:
            raise asyncio.CancelledError

    async def _run_graph(self) -> Outcome:
        services, run = self._services, self._run
        assistant = services.assistants.find(run["assistant_id"])
        config = self._config(assistant)
        async with services.acting_for(run, self.hold), assistant.open(services.memory, config) as graph:
            start = await self._where_to_start(graph, config)
            await self._writer.write(
                "metadata", orjson.dumps({"run_id": self.run_id, "attempt": run["attempt"]})
            )
            if start is not _NOTHING:
                await self._stream(graph, start, config)
            if self._cancelling is not None:
                return await self._cancelled(graph)
            return await self._finished(graph)

    def _config(self, assistant: "Assistant") -> RunnableConfig:
        """The graph's configuration: the assistant's, the client's, and ours."""
        given = cast("Mapping[str, Any]", self._kwargs.get("config") or {})
        run, thread_id = self._run, self.claimed.lease.thread_id
        checkpoint = cast("Mapping[str, Any]", self._kwargs.get("checkpoint") or {})
        ours = {
            **checkpoint,
            "thread_id": thread_id,
            "checkpoint_ns": checkpoint.get("checkpoint_ns", ""),
            "run_id": self.run_id,
            "graph_id": assistant.graph_id,
            "assistant_id": assistant.assistant_id,
        }
        metadata = {
            **cast("Mapping[str, Any]", given.get("metadata") or {}),
            **run["metadata"],
            "run_id": self.run_id,
            "thread_id": thread_id,
            "run_attempt": run["attempt"],
        }
        return RunnableConfig(
            tags=list(given.get("tags") or ()),
            metadata=metadata,
            configurable={**cast("Mapping[str, Any]", given.get("configurable") or {}), **ours},
            recursion_limit=int(given.get("recursion_limit") or _DEFAULT_RECURSION),
            max_concurrency=_TOOLS_AT_ONCE,
        )

    async def _where_to_start(self, graph: "Graph", config: RunnableConfig) -> Any:  # noqa: ANN401 - a graph's input
        """What the graph is started with: the run's input, or nothing where an earlier attempt has come further."""
        if self._run["attempt"] > 1 and await self._has_begun():
            configurable: dict[str, Any] = config.get("configurable", {})
            # It names where the first attempt began, not where this one goes on.
            configurable.pop("checkpoint_id", None)
            return None
        command = self._kwargs.get("command")
        if self._goes_on:
            await self._note_start(config)
        if command is None:
            return await self._services.prepare_input(graph, config, self._kwargs)
        if command.get("resume") is not None and not await self._is_still_asked(graph, config):
            return _NOTHING
        return command_of(command)

    @property
    def _goes_on(self) -> bool:
        """Whether it begins without input, so that its first step is written beside a checkpoint of another run.

        An input beside a command is none: some clients send an empty one.
        """
        return self._kwargs.get("input") is None or self._kwargs.get("command") is not None

    async def _note_start(self, config: RunnableConfig) -> None:
        """Keep what stands beside the checkpoint where it begins, so that it can be put back."""
        database, saver = self._services.database, self._services.memory.saver
        chosen: str | None = config.get("configurable", {}).get("checkpoint_id")
        pending = await saver.pending(self.claimed.lease.thread_id, chosen)
        if pending is not None:
            await database.run(queue.note_start, self.claimed.lease, pending.to_json())

    async def _put_back(self, *, command_alone: bool) -> None:
        """Undo what this run has written beside another run's checkpoint, or only what its command has."""
        kept = await self._services.database.run(queue.start, self.run_id) if self._goes_on else None
        if kept is not None:
            thread_id, pending = self.claimed.lease.thread_id, Pending.from_json(kept)
            await self._services.memory.saver.put_back(thread_id, pending, command_alone=command_alone)

    async def _withdraw_command(self) -> None:
        """Take back an answer or an update that has led nowhere: every later run would begin with it and fail, too.

        Where it has led somewhere, the run has checkpoints of its own.
        """
        if self._goes_on and not self._is_mine(await self._newest()):
            await self._put_back(command_alone=True)

    async def _newest(self) -> "CheckpointTuple | None":
        return await self._services.memory.saver.aget_tuple(self._thread_config())

    def _is_mine(self, checkpoint: "CheckpointTuple | None") -> bool:
        return checkpoint is not None and checkpoint.metadata.get("run_id") == self.run_id

    async def _has_begun(self) -> bool:
        """Whether an earlier attempt has stored a checkpoint; an attempt that comes no further is not made for ever."""
        newest = await self._newest()
        checkpoint_id = None if newest is None else str(newest.checkpoint["id"])
        stalls = await self._services.database.run(queue.note_progress, self.claimed.lease, checkpoint_id)
        if stalls > _MOST_STALLS:
            raise RunStuckError(f"{stalls - 1} attempts ended at the same step; the run is given up")
        return self._is_mine(newest)

    async def _is_still_asked(self, graph: "Graph", config: RunnableConfig) -> bool:
        """Whether what waits for an answer is what waited when the answer was given; an answer counts once."""
        state = await state_of(graph, config)
        return {each.id for each in state.interrupts} == set(self._kwargs.get("answers") or ())

    async def _stream(self, graph: "Graph", start: Any, config: RunnableConfig) -> None:  # noqa: ANN401 - a graph's input
        if self._kwargs.get("protocol") == v2.PROTOCOL:
            await self._stream_v2(graph, start, config)
            return
        modes = self._kwargs.get("stream_mode") or ["values"]
        encoder = v1.Encoder(modes)
        async with aclosing(self._parts(graph, start, config, modes)) as parts:
            async for namespace, mode, part in self._of_wanted_graphs(parts):
                for event, data in encoder.write(namespace, mode, part):
                    await self._writer.write(event, data)

    def _parts(
        self,
        graph: "Graph",
        start: Any,  # noqa: ANN401 - a graph's input
        config: RunnableConfig,
        modes: Sequence[str],
    ) -> AsyncGenerator[v1.Part]:
        anything = cast("Any", graph)  # its stream has another type for each mode
        wishes = {"stream_mode": v1.graph_modes(modes), "subgraphs": True, **self._wishes()}
        if v1.EVENTS in modes:
            return v1.with_events(anything.astream_events(start, config, version="v2", **wishes))
        return anything.astream(start, config, **wishes)

    def _wishes(self) -> dict[str, Any]:
        """How the graph is to be run, as the client wants it."""
        kwargs = self._kwargs
        only_input = self._cancelling is not None
        return {
            "context": kwargs.get("context"),
            "interrupt_before": "*" if only_input else kwargs.get("interrupt_before"),
            "interrupt_after": kwargs.get("interrupt_after"),
            "durability": kwargs.get("durability") or "sync",
        }

    async def _of_wanted_graphs(self, parts: AsyncGenerator[v1.Part]) -> AsyncGenerator[v1.Part]:
        """Leave out what subgraphs say where the client did not ask for it."""
        with_subgraphs = bool(self._kwargs.get("stream_subgraphs"))
        async for namespace, mode, part in parts:
            # A model that is called inside a node speaks for the graph, and has its messages even so.
            if with_subgraphs or not namespace or mode == "messages":
                yield (namespace if with_subgraphs else ()), mode, part

    async def _stream_v2(self, graph: "Graph", start: Any, config: RunnableConfig) -> None:  # noqa: ANN401 - a graph's input
        encoder = v2.Encoder()
        async with v2.streaming(graph, start, config, self._wishes()) as events:
            async for said in events:
                for event, data in encoder.write(said):
                    await self._writer.write(event, data, v2.PROTOCOL)
        for event, data in encoder.questions():
            await self._writer.write(event, data, v2.PROTOCOL)

    async def _finished(self, graph: "Graph") -> Outcome:
        state = await state_of(graph, self._thread_config())
        waits = bool(state.interrupts) or bool(state.next)
        status = RunStatus.INTERRUPTED if waits else RunStatus.SUCCESS
        thread = ThreadStatus.INTERRUPTED if waits else ThreadStatus.IDLE
        return self._with_state(status, thread, state)

    def _thread_config(self) -> RunnableConfig:
        return RunnableConfig(configurable={"thread_id": self.claimed.lease.thread_id, "checkpoint_ns": ""})

    def _with_state(self, status: RunStatus, thread: ThreadStatus, state: "StateSnapshot") -> Outcome:
        interrupts = {
            task.id: [interrupt_as_json(each) for each in task.interrupts]
            for task in state.tasks
            if task.interrupts
        }
        values = plain(state.values)
        pending = [each for task in interrupts.values() for each in task]
        result = _with_questions(values, plain(pending)) if pending else values
        return Outcome(
            status,
            thread,
            to_json({"status": status.value, "result": result}),
            values,
            plain(interrupts) or None,
            approval_s=self._services.approval_s(self._run, interrupts),
            keeps_due=plain(interrupts) == self.claimed.asked and not self._kwargs.get("is_denial"),
        )

    async def _cancelled(self, graph: "Graph | None" = None) -> Outcome:
        """The end of a run that somebody has cancelled; what it has stored stays or goes."""
        assert self._cancelling is not None  # noqa: S101 - the callers have seen to it
        thread_id = self.claimed.lease.thread_id
        if self._cancelling.action is Cancel.ROLLBACK:
            await self._services.memory.saver.take_back(thread_id, self.run_id)
            await self._put_back(command_alone=False)
        else:
            await self._withdraw_command()
        return await self._at_rest(RunStatus.INTERRUPTED, graph)

    async def _at_rest(
        self, status: RunStatus, graph: "Graph | None" = None, error: Mapping[str, str] | None = None
    ) -> Outcome:
        """An outcome with the state as it was last stored."""
        if graph is None:
            assistant = self._services.assistants.find(self._run["assistant_id"])
            async with assistant.open(self._services.memory, self._config(assistant)) as opened:
                return await self._at_rest(status, opened, error)
        state = await state_of(graph, self._thread_config())
        thread = ThreadStatus.INTERRUPTED if state.interrupts or state.next else ThreadStatus.IDLE
        outcome = self._with_state(status, ThreadStatus.ERROR if error else thread, state)
        result = {"__error__": error} if error else {}
        final = to_json({"status": status.value, "result": result})
        return Outcome(
            status,
            outcome.thread_status,
            final,
            outcome.values,
            outcome.interrupts,
            error,
            outcome.approval_s,
        )

    async def _failed(self, error: Exception) -> Outcome:
        complaint = complaint_of(error)
        _log.warning("run failed", run_id=self.run_id, error=type(error).__name__)
        return await self._complained(RunStatus.ERROR, complaint)

    async def _complained(self, status: RunStatus, complaint: Mapping[str, str]) -> Outcome:
        """An end that clients hear of as an error. Whoever cancels it now is too late."""
        self._is_ending = True
        await self._writer.write("error", to_json(complaint))
        try:
            await self._withdraw_command()
            return await self._at_rest(status, error=complaint)
        except Exception:  # noqa: BLE001 - the graph cannot even be opened: the thread shows what it showed
            final = to_json({"status": status.value, "result": {"__error__": complaint}})
            asked = self.claimed.asked
            return Outcome(
                status, ThreadStatus.ERROR, final, interrupts=asked, error=complaint, keeps_due=True
            )

    async def _end(self, outcome: Outcome) -> None:
        """Write the end, when all before it is written."""
        await self._writer.flush()
        seq = self._writer.seq + 1
        is_gone = self._cancelling is not None and self._cancelling.action is Cancel.ROLLBACK
        ended = asyncio.ensure_future(
            self._services.database.run(queue.finish, self.claimed.lease, outcome, seq, forget=is_gone)
        )
        waits = await asyncio.shield(ended)
        # With several processes another run may have come at this very moment.
        self.leaves_work = waits or self._services.database.is_postgres
        if is_gone:
            self._services.log.look(self.run_id)
        else:
            self._services.log.tell(self.run_id, [StoredEvent(seq, 1, queue.END_EVENT, outcome.final)])


def _with_questions(values: Any, pending: list[Any]) -> dict[str, Any]:  # noqa: ANN401 - a graph's state
    """A result that waits for a person; where a state is no mapping there is nothing to put the questions into."""
    known = cast("dict[str, Any]", values) if isinstance(values, dict) else {}
    return {**known, "__interrupt__": pending}


class RunStuckError(Exception):
    """A run has come no further in many attempts."""


_NOTHING = object()
