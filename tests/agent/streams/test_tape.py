"""What a listener of a thread gets of what its runs say."""

from collections.abc import Sequence
from typing import Any

import orjson

from muster_agent.runs.events import StoredEvent
from muster_agent.runs.thread_events import Place, Said
from muster_agent.streams import v2
from muster_agent.streams.tape import Tape, ThreadEvent, place_of

RUN = {"metadata": {"graph_id": "agent"}, "started_at": 1.5, "updated_at": 2.5, "error": None}


def metadata(attempt: int = 1) -> tuple[int, str, Any]:
    """An attempt begins."""
    return 1, "metadata", {"run_id": "r", "attempt": attempt}


def question(name: str) -> tuple[int, str, Any]:
    """A run asks."""
    data = {"namespace": [], "timestamp": 1, "data": {"interrupt_id": name}}
    return 2, v2.stored_name(v2.QUESTION, []), data


def end(status: str, **result: Any) -> tuple[int, str, Any]:
    """A run ends."""
    return 1, "end", {"status": status, "result": result}


def played(
    *events: tuple[int, str, Any] | None, run: dict[str, Any] | None = RUN, number: int = 3
) -> list[ThreadEvent]:
    """What is told of a run."""
    tape = Tape()
    told: list[ThreadEvent] = []
    for seq, event in enumerate(events, 1):
        stored = None if event is None else StoredEvent(seq, event[0], event[1], orjson.dumps(event[2]))
        told += tape.play(Said(Place(number, seq), run, "r", stored))
    return told


def words(events: Sequence[ThreadEvent]) -> list[str]:
    """Method and word of each."""
    return [
        f"{event.method} {orjson.loads(event.params)['data'].get('event', '')}".strip() for event in events
    ]


def test_a_question_waits_for_the_end() -> None:
    """It is told when it can be answered, and only if it is still asked."""
    waiting = end("interrupted", __interrupt__=[{"id": "a", "value": 1}])

    assert words(played(metadata(), question("a"))) == ["lifecycle running"]
    assert words(played(metadata(), question("a"), question("b"), waiting)) == [
        "lifecycle running",
        "input.requested",
        "lifecycle interrupted",
    ]
    assert words(played(metadata(), question("a"), end("success", text=""))) == [
        "lifecycle running",
        "lifecycle completed",
    ]


def test_another_attempt_asks_again() -> None:
    """What an attempt has asked that did not come to its end is forgotten, and the run begins once."""
    waiting = end("interrupted", __interrupt__=[{"id": "a", "value": 1}])
    told = played(metadata(), question("a"), metadata(2), question("a"), waiting)

    assert words(told) == ["lifecycle running", "input.requested", "lifecycle interrupted"]
    assert told[1].seq == told[0].seq + 3


def test_how_runs_end() -> None:
    """Each end of a run has its word, its moment and, if it went wrong, its error."""
    failed = {**RUN, "error": {"error": "ValueError", "message": "boom!"}}
    ends = [
        played(end("success", a=1))[-1],
        played(end("interrupted", a=1))[-1],
        played(end("interrupted"))[-1],
        played(end("timeout", __error__={}), run=failed)[-1],
        played(end("error", __error__={}), run=None)[-1],
        played(metadata(), None, run=None)[-1],
    ]
    data = [orjson.loads(event.params)["data"] for event in ends]

    assert [each["event"] for each in data] == ["completed", "interrupted", *["failed"] * 4]
    assert [each.get("error") for each in data[2:]] == [
        "The run was cancelled.",
        "boom!",
        "The run failed.",
        "The run was cancelled.",
    ]
    assert orjson.loads(ends[0].params)["timestamp"] == 2500
    assert ends[0].event_id == "synth:r:lc||completed"


def test_numbers_are_places() -> None:
    """From a number, whoever comes back with it is found again; events of later runs have higher ones."""
    (first,) = played(metadata(), number=1)
    (second,) = played(metadata(), number=2)

    assert first.seq < second.seq < 2**53
    assert [place_of(event.seq) for event in (first, second)] == [Place(1, 1), Place(2, 1)]
    assert place_of(0) == Place(0, 0)


def test_custom_events_lose_their_name_on_the_wire() -> None:
    """The name is in their data."""
    params = {"namespace": ["a:1"], "timestamp": 1, "data": {"name": "x"}}
    (event,) = played((2, v2.stored_name("custom:x", ["a:1"]), params))

    assert (event.method, event.namespace) == ("custom:x", ["a:1"])
    assert orjson.loads(event.as_json()) == {
        "type": "event",
        "event_id": "r:1",
        "seq": event.seq,
        "method": "custom",
        "params": params,
    }
