"""Plays clients against models of engines in virtual time, through a scheduler or past it.

A client is a generator, its *script*: it yields what it does next and is sent the record of each call that
it makes. The same scripts run against engines over HTTP (`muster bench --upstream`), so what the simulation
tells can be held against the real thing.

    def chat(turns: int) -> Script:
        for _ in range(turns):
            yield Call(input_tokens=400, output_tokens=120)
            yield Think(5.0)

    done = simulate([(0.0, chat(3))], {UpstreamId("a"): EngineModel(H200_8B)}, Scheduler(Policy()))

Time passes in engine steps, in thinking and in waiting, and nowhere else: the network and the proxy's own
work, some hundreds of microseconds for each request, count as nothing. What the scheduler itself takes is
measured in real time, where the caller lends a stopwatch.
"""

import dataclasses
import heapq
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from muster_batching.limits import EngineQueueLimit, LimitPolicy
from muster_batching.samples import CALM, EngineSample
from muster_batching.scheduler import Scheduler
from muster_batching.testing.engine import EngineModel, EngineRequest, Finished, FirstToken
from muster_batching.tickets import (
    NOBODY,
    Action,
    Dispatch,
    End,
    Outcome,
    PoolId,
    RequestClass,
    SessionId,
    TenantId,
    Ticket,
    TicketId,
    UpstreamId,
    Usage,
)
from muster_batching.upstreams import UpstreamReport

POOL = PoolId("simulated")

METRICS_FAIL_AT_S = 5.0
"""When metrics that get lost or stale do so: late enough that a scheduler has learned what they tell."""

LONGEST_S = 86_400.0
"""A simulated day: clients that have not ended by then never will."""

_FULL_QUEUE = 1_000

CallEnd: TypeAlias = Literal["completed", "turned_away", "gave_up", "failed", "unfinished"]
"""How a call ended for its client: `gave_up` is a client that hung up at its deadline, `failed` an error of
the engine (none in a simulation), `unfinished` one that was under way when time was up."""

Metrics: TypeAlias = Literal["honest", "missing", "lost", "stale", "zero", "full"]
"""What the scheduler gets to see of the engines: the truth; nothing ever; nothing after 5 s; what was true at
5 s, again and again; an engine that always looks idle; one whose queue and KV cache always look full."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request that a client makes.

    Attributes:
        input_tokens: Of the prompt, over 0.
        output_tokens: Of the answer, if it is let come to its end, over 0.
        request_class: How urgent it is.
        tenant: Who pays.
        weight: The tenant's share.
        session: The conversation it belongs to, unique within the tenant.
        max_output_tokens: The limit that the client sets, at least `output_tokens`; None for none.
        blocks: Identity of the text's full KV blocks, prompt then answer, as `EngineRequest` has it.
        ttft_deadline_s: The client hangs up when its first token has not come after so long; None for never.
        tells_deadline: Whether the request says so, or the client just hangs up.
        size_bytes: Of the request's body.
        ends_session: Whether its session makes no further call.
    """

    input_tokens: int
    output_tokens: int
    request_class: RequestClass = RequestClass.STANDARD
    tenant: TenantId = NOBODY
    weight: float = 1.0
    session: SessionId | None = None
    max_output_tokens: int | None = None
    blocks: Sequence[int] = ()
    ttft_deadline_s: float | None = None
    tells_deadline: bool = True
    size_bytes: int = 2_000
    ends_session: bool = False


@dataclass(frozen=True, slots=True)
class Think:
    """The client does something else for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Start:
    """Another client starts now, beside this one: how a process of arrivals is written."""

    script: "Script"


@dataclass(slots=True)
class Record:
    """What became of one call; times in seconds since the start of the run.

    Attributes:
        call: The call.
        sent_s: When the client sent it.
        dispatched_s: When the engine got it; None if it never did.
        first_token_s: When its first token came; None if none did.
        ended_s: When it ended, in whatever way.
        outcome: How it ended.
        retry_after_s: What a client that was turned away was told.
        upstream: The engine that got it.
        cached_tokens: Tokens of the prompt that were found in the engine's prefix cache.
        output_tokens: Tokens that the client got.
        submit_s: Real seconds that the scheduler took to take it in; 0.0 without a stopwatch.
    """

    call: Call
    sent_s: float
    dispatched_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    outcome: CallEnd = "unfinished"
    retry_after_s: int | None = None
    upstream: UpstreamId | None = None
    cached_tokens: int = 0
    output_tokens: int = 0
    submit_s: float = 0.0

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token; None if none came."""
        return None if self.first_token_s is None else self.first_token_s - self.sent_s


Script: TypeAlias = Generator[Call | Think | Start, Record | None, None]
"""A client. What `yield` gives back is the record of a call, and None for anything else."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under what conditions a simulation runs.

    Attributes:
        until_s: It stops there; what is under way stays unfinished.
        metrics: What the scheduler sees of the engines.
        sample_every_s: Seconds between two readings of an engine's metrics; `CALM` times as many while nothing waits.
        limit: The limit of each engine.
        stopwatch: Reads a real clock in seconds, for the time that the scheduler takes.
        on_end: Called with the record of each call that ended.
    """

    until_s: float = LONGEST_S
    metrics: Metrics = "honest"
    sample_every_s: float = 0.25
    limit: LimitPolicy = field(default_factory=EngineQueueLimit)
    stopwatch: Callable[[], float] | None = None
    on_end: Callable[[Record], None] | None = None


@dataclass(slots=True)
class Simulated:
    """What a simulation saw.

    Attributes:
        records: Of every call, in the order in which they were sent.
        ended_s: When the last client ended, or time was up.
        scheduler_s: Real seconds spent in the scheduler; 0.0 without a stopwatch.
        decisions: Inputs that the scheduler got.
    """

    records: list[Record] = field(default_factory=list[Record])
    ended_s: float = 0.0
    scheduler_s: float = 0.0
    decisions: int = 0


DEFAULT_CONDITIONS: Final = Conditions()


def simulate(
    scripts: Iterable[tuple[float, Script]],
    engines: Mapping[UpstreamId, EngineModel],
    scheduler: Scheduler | None,
    conditions: Conditions = DEFAULT_CONDITIONS,
) -> Simulated:
    """Run clients to their ends.

    What is due at one moment happens in this order: engines end their steps, the scheduler is woken, clients
    act in the order in which they set out to. So a run has one outcome, whatever the machine.

    Args:
        scripts: The clients, each with the time at which it starts.
        engines: The engines, all of one pool, fresh or warmed up by an earlier run.
        scheduler: A fresh one; None sends each call at once to the engine with the fewest in flight.
        conditions: See there.
    """
    return _Run(engines, scheduler, conditions).play(scripts)


@dataclass(slots=True)
class _Flight:
    """A call that has not ended."""

    script: Script
    record: Record
    told_tokens: int = 0


class _Run:
    def __init__(
        self,
        engines: Mapping[UpstreamId, EngineModel],
        scheduler: Scheduler | None,
        conditions: Conditions,
    ) -> None:
        self._engines = engines
        self._scheduler = scheduler
        self._conditions = conditions
        self._in_flight = dict.fromkeys(engines, 0)
        self._flights: dict[TicketId, _Flight] = {}
        self._frozen: dict[UpstreamId, EngineSample] = {}
        self._unread = CALM - 1
        self._due: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._set_down = 0  # orders what is due at one moment
        self._clients = 0
        self._now_s = 0.0
        self._seen = Simulated()

    def play(self, scripts: Iterable[tuple[float, Script]]) -> Simulated:
        for start_s, script in scripts:
            self._start(script, start_s)
        if self._scheduler is not None:
            self._report(self._scheduler)
        until_s = self._conditions.until_s
        while self._clients and (next_s := self._next_s()) <= until_s:
            self._now_s = max(self._now_s, next_s)
            self._end_steps()
            self._wake()
            self._do_what_is_due()
        self._seen.ended_s = until_s if self._clients else self._now_s
        return self._seen

    def _next_s(self) -> float:
        times_s = [engine.next_event_s() for engine in self._engines.values()]
        if self._scheduler is not None:
            times_s.append(self._scheduler.next_wakeup_s())
        if self._due:
            times_s.append(self._due[0][0])
        return min((time_s for time_s in times_s if time_s is not None), default=math.inf)

    # What happens: engines, the scheduler's own time, clients.

    def _end_steps(self) -> None:
        for upstream_id, engine in self._engines.items():
            due_s = engine.next_event_s()
            if due_s is not None and due_s <= self._now_s:
                self._advance(engine, upstream_id)

    def _advance(self, engine: EngineModel, upstream_id: UpstreamId) -> None:
        for event in engine.advance(now_s=self._now_s):
            self._came(event, upstream_id)

    def _came(self, event: FirstToken | Finished, upstream_id: UpstreamId) -> None:
        flight = self._flights[TicketId(event.id)]
        if isinstance(event, FirstToken):
            flight.record.first_token_s = event.at_s
            flight.record.cached_tokens = event.cached_tokens
            self._tell_progress(TicketId(event.id), flight, 1)
        else:
            self._finished(TicketId(event.id), flight, upstream_id)

    def _finished(self, ticket_id: TicketId, flight: _Flight, upstream_id: UpstreamId) -> None:
        self._in_flight[upstream_id] -= 1
        call = flight.record.call
        flight.record.output_tokens = call.output_tokens
        actions: list[Action] = []
        if self._scheduler is not None:
            usage = Usage(call.input_tokens, call.output_tokens)
            end = End(Outcome.COMPLETED, usage=usage, is_session_over=call.ends_session)
            actions = self._ask(self._scheduler.finish, ticket_id, end)
        self._end(ticket_id, "completed")
        self._carry_out(actions)

    def _wake(self) -> None:
        if self._scheduler is None:
            return
        due_s = self._scheduler.next_wakeup_s()
        if due_s is not None and due_s <= self._now_s:
            self._carry_out(self._ask(self._scheduler.wake))

    def _do_what_is_due(self) -> None:
        while self._due and self._due[0][0] <= self._now_s:
            _, _, act, argument = heapq.heappop(self._due)
            act(argument)

    def _at(self, time_s: float, act: Callable[[Any], None], argument: object) -> None:
        self._set_down += 1
        heapq.heappush(self._due, (time_s, self._set_down, act, argument))

    # Clients.

    def _start(self, script: Script, start_s: float) -> None:
        self._clients += 1
        self._at(start_s, self._go_on, (script, None))

    def _go_on(self, step: tuple[Script, Record | None]) -> None:
        script, record = step
        while True:
            try:
                wish = script.send(record)
            except StopIteration:
                self._clients -= 1
                return
            record = None
            if isinstance(wish, Start):
                self._start(wish.script, self._now_s)
            elif isinstance(wish, Think):
                self._at(self._now_s + wish.seconds, self._go_on, (script, None))
                return
            else:
                self._call(script, wish)
                return

    def _call(self, script: Script, call: Call) -> None:
        record = Record(call, self._now_s)
        ticket_id = TicketId(str(len(self._seen.records)))
        self._seen.records.append(record)
        self._flights[ticket_id] = _Flight(script, record)
        if call.ttft_deadline_s is not None:
            self._at(self._now_s + call.ttft_deadline_s, self._lose_patience, ticket_id)
        if self._scheduler is None:
            self._send(ticket_id, min(self._in_flight, key=self._in_flight.__getitem__))
        else:
            self._submit(self._scheduler, ticket_id, record)

    def _lose_patience(self, ticket_id: TicketId) -> None:
        flight = self._flights.get(ticket_id)
        if flight is None or flight.record.first_token_s is not None:
            return
        upstream_id = flight.record.upstream
        if upstream_id is not None:
            self._in_flight[upstream_id] -= 1
            self._engines[upstream_id].abort(ticket_id, now_s=self._now_s)
        actions = self._ask(self._scheduler.cancel, ticket_id) if self._scheduler is not None else []
        self._end(ticket_id, "gave_up")
        self._carry_out(actions)

    def _end(self, ticket_id: TicketId, outcome: CallEnd) -> None:
        flight = self._flights.pop(ticket_id)
        flight.record.outcome = outcome
        flight.record.ended_s = self._now_s
        if self._conditions.on_end is not None:
            self._conditions.on_end(flight.record)
        # Not at once: a client's next step comes after all that this moment's step of the engine decided.
        self._at(self._now_s, self._go_on, (flight.script, flight.record))

    # The scheduler.

    def _submit(self, scheduler: Scheduler, ticket_id: TicketId, record: Record) -> None:
        call = record.call
        is_told = call.ttft_deadline_s is not None and call.tells_deadline
        ticket = Ticket(
            ticket_id,
            POOL,
            size_bytes=call.size_bytes,
            request_class=call.request_class,
            tenant=call.tenant,
            weight=call.weight,
            session=call.session,
            input_tokens=call.input_tokens,
            max_output_tokens=call.max_output_tokens,
            deadline_s=self._now_s + (call.ttft_deadline_s or 0.0) if is_told else None,
            is_stream=True,
        )
        before_s = self._seen.scheduler_s
        actions = self._ask(scheduler.submit, ticket)
        record.submit_s = self._seen.scheduler_s - before_s
        self._carry_out(actions)

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                self._send(action.ticket_id, action.upstream_id)
            else:
                self._flights[action.ticket_id].record.retry_after_s = action.retry_after_s
                self._end(action.ticket_id, "turned_away")

    def _send(self, ticket_id: TicketId, upstream_id: UpstreamId) -> None:
        record = self._flights[ticket_id].record
        record.dispatched_s, record.upstream = self._now_s, upstream_id
        self._in_flight[upstream_id] += 1
        call = record.call
        request = EngineRequest(ticket_id, call.input_tokens, call.output_tokens, call.blocks)
        self._engines[upstream_id].add(request, now_s=self._now_s)

    def _ask(self, decide: Callable[..., list[Action]], *arguments: object) -> list[Action]:
        self._seen.decisions += 1
        stopwatch = self._conditions.stopwatch
        if stopwatch is None:
            return decide(*arguments, now_s=self._now_s)
        began_s = stopwatch()
        actions = decide(*arguments, now_s=self._now_s)
        self._seen.scheduler_s += stopwatch() - began_s
        return actions

    def _tell_progress(self, ticket_id: TicketId, flight: _Flight, output_tokens: int) -> None:
        if self._scheduler is not None and output_tokens > flight.told_tokens:
            flight.told_tokens = output_tokens
            self._carry_out(self._ask(self._scheduler.progress, ticket_id, output_tokens))

    # The engines' metrics.

    def _report(self, scheduler: Scheduler) -> None:
        for upstream_id in self._engines:
            report = UpstreamReport(self._conditions.limit, frozenset({POOL}), available=True)
            scheduler.report(upstream_id, report, now_s=self._now_s)
        self._at(self._now_s, self._scrape, scheduler)

    def _scrape(self, scheduler: Scheduler) -> None:
        self._at(self._now_s + self._conditions.sample_every_s, self._scrape, scheduler)
        self._unread += 1
        if scheduler.waiting or self._unread >= CALM:
            self._unread = 0
            self._read(scheduler)
        # A proxy tells of every event of a stream; four times a second is as good to a scheduler, and cheaper.
        for ticket_id, flight in list(self._flights.items()):
            if flight.record.first_token_s is not None and flight.record.upstream is not None:
                tokens = self._engines[flight.record.upstream].tokens_of(ticket_id)
                self._tell_progress(ticket_id, flight, tokens)

    def _read(self, scheduler: Scheduler) -> None:
        for upstream_id, engine in self._engines.items():
            self._advance(engine, upstream_id)  # its steps that nothing was to be told of
            sample = self._shown(upstream_id, engine.sample())
            if sample is not None:
                self._carry_out(self._ask(scheduler.sample, upstream_id, sample))

    def _shown(self, upstream_id: UpstreamId, sample: EngineSample) -> EngineSample | None:
        """What a scheduler gets to see of an engine's sample."""
        failed = self._now_s >= METRICS_FAIL_AT_S
        match self._conditions.metrics:
            case "missing":
                return None
            case "lost":
                return None if failed else sample
            case "stale":
                return self._frozen.setdefault(upstream_id, sample) if failed else sample
            case "zero":
                return dataclasses.replace(
                    sample, running=0, waiting=0, kv_usage=0.0, preemptions=0, prefix_queries=0, prefix_hits=0
                )
            case "full":
                return dataclasses.replace(sample, waiting=_FULL_QUEUE, kv_usage=1.0)
            case _:
                return sample
