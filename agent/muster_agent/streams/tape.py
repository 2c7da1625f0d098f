"""A thread's events as clients of the second protocol get them: numbered, and with the beginning and end of every run.

An event's number is made of its run's and its own, so it rises along a thread, is the same for everybody, and a client
that comes back with the last one it has gets the rest. It is not the next number: another run of the service may have
been made in between.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import orjson

from muster_agent.runs.queue import END_EVENT
from muster_agent.runs.records import RunStatus
from muster_agent.runs.thread_events import Place
from muster_agent.streams import v2

if TYPE_CHECKING:
    from muster_agent.runs.events import StoredEvent
    from muster_agent.runs.thread_events import Said

# Events of one run that have numbers of their own; with JavaScript's integers of 53 bits that leaves 2**31 runs.
_EVENTS_OF_A_RUN = 2**22

# The beginning and the end.
_FIRST_EVENTS = 2

_WORDS = {RunStatus.SUCCESS: "completed", RunStatus.INTERRUPTED: "interrupted"}
_CANCELLED = "The run was cancelled."


def place_of(number: int) -> Place:
    """Where in a thread an event with this number is."""
    return Place(*divmod(number, _EVENTS_OF_A_RUN))


@dataclass(frozen=True, slots=True)
class ThreadEvent:
    """One event.

    Attributes:
        seq: Its number.
        event_id: Its identifier; clients leave out what they have already.
        method: Its method; `custom:NAME` for a custom event that has a name.
        namespace: The graph that speaks.
        params: JSON.
    """

    seq: int
    event_id: str
    method: str
    namespace: list[str]
    params: bytes

    @property
    def wire_method(self) -> str:
        """Its method as clients see it."""
        return self.method.partition(":")[0]

    def as_json(self) -> bytes:
        """The event as it goes out."""
        head = {"type": "event", "event_id": self.event_id, "seq": self.seq, "method": self.wire_method}
        return b'%b,"params":%b}' % (orjson.dumps(head)[:-1], self.params)


@dataclass(slots=True)
class Tape:
    """Makes events for one listener of a thread; each run is given to it from its beginning or from where he left."""

    _questions: list[ThreadEvent] = field(default_factory=list[ThreadEvent])
    _is_second: bool = False

    def play(self, said: "Said") -> Generator[ThreadEvent]:
        """The events for what was said."""
        match said.event:
            case None:
                self._questions.clear()
                yield _lifecycle(said, "failed", {"error": _CANCELLED})
            case event if event.protocol == v2.PROTOCOL:
                yield from self._plain(said, event)
            case event if event.event == END_EVENT:
                yield from self._end(said, event)
            case event if event.event == "metadata":
                # Another attempt asks again what it still wants to know.
                self._questions.clear()
                if orjson.loads(event.data).get("attempt") == 1:
                    yield _lifecycle(said, "running", {})
            case _:
                return

    def _plain(self, said: "Said", event: "StoredEvent") -> Generator[ThreadEvent]:
        self._is_second = True
        method, namespace = v2.read_name(event.event)
        seq = _number(said)
        plain = ThreadEvent(seq, f"{said.run_id}:{event.seq}", method, namespace, event.data)
        if method == v2.QUESTION:
            self._questions.append(plain)
        else:
            yield plain

    def _end(self, said: "Said", event: "StoredEvent") -> Generator[ThreadEvent]:
        """What waits for an answer, and then how the run ended.

        A run that was asked for in the first protocol has said nothing in the second: its state is told here.
        """
        told = orjson.loads(event.data)
        result: Any = told.get("result", {})  # a run that was cancelled before it began has none
        named = cast("dict[str, Any]", result) if isinstance(result, dict) else {}
        waiting = {each["id"] for each in named.get("__interrupt__") or ()}
        for question in self._questions:
            if orjson.loads(question.params)["data"]["interrupt_id"] in waiting:
                yield question
        self._questions.clear()
        if result and not self._is_second and "__error__" not in named and event.seq > _FIRST_EVENTS:
            yield _last_values(said, event.seq - 1, result)
        self._is_second = False
        yield _lifecycle(said, *_how_it_ended(said, RunStatus(told["status"]), has_result=result != {}))


def _how_it_ended(said: "Said", status: RunStatus, *, has_result: bool) -> tuple[str, dict[str, Any]]:
    """LangGraph's word for the end of a run.

    A run that somebody has cancelled is `interrupted` like one that waits for a person, but nobody will continue it;
    and clients that wait for its end wait for `completed` or `failed`.
    """
    run = said.run or {}
    if status is RunStatus.INTERRUPTED and not has_result:
        return "failed", {"error": _CANCELLED}
    if status in _WORDS:
        return _WORDS[status], {}
    error = cast("dict[str, Any]", run.get("error") or {})
    return "failed", {"error": str(error.get("message", "The run failed."))}


def _last_values(said: "Said", seq: int, result: Any) -> ThreadEvent:  # noqa: ANN401 - JSON
    """A run's state at its end, numbered as the event before it, which was not told."""
    state = _without_questions(result)
    params: dict[str, Any] = {"namespace": [], "timestamp": _now_ms(), "data": state}
    return ThreadEvent(_number(said) - 1, f"{said.run_id}:{seq}", "values", [], orjson.dumps(params))


def _without_questions(result: Any) -> Any:  # noqa: ANN401 - JSON
    if not isinstance(result, dict):
        return result
    named = cast("dict[str, Any]", result)
    return {name: value for name, value in named.items() if name != "__interrupt__"}


def _lifecycle(said: "Said", word: str, more: dict[str, Any]) -> ThreadEvent:
    run = said.run or {}
    moment_s: float | None = run.get("started_at" if word == "running" else "updated_at")
    moment_ms = _now_ms() if moment_s is None else round(moment_s * 1000)
    metadata = cast("dict[str, Any]", run.get("metadata") or {})
    data = {"event": word, "graph_name": metadata.get("graph_id", ""), **more}
    params: dict[str, Any] = {"namespace": [], "timestamp": moment_ms, "data": data}
    # Clients read the run's identifier out of this one.
    event_id = f"synth:{said.run_id}:lc||{word}"
    return ThreadEvent(_number(said), event_id, "lifecycle", [], orjson.dumps(params))


def _now_ms() -> int:
    return round(datetime.now(UTC).timestamp() * 1000)


def _number(said: "Said") -> int:
    return said.place.run * _EVENTS_OF_A_RUN + said.place.event
