"""What is read from a run's events."""

from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest

from muster_agent.failures import Failure
from muster_agent.openai_api.happenings import Ended, Reader, Said, Spoke, ToolUsed
from muster_agent.openai_api.streaming import whole
from muster_agent.runs.complaints import complaint_of, failure_of
from muster_agent.runs.events import StoredEvent


def _read(*events: tuple[str, Any], node: str | None = "model") -> list[Any]:
    reader = Reader(node)
    stored = [StoredEvent(seq, 1, name, orjson.dumps(data)) for seq, (name, data) in enumerate(events, 1)]
    return [happening for event in stored for happening in reader.read(event)]


def _piece(message_id: str, text: str, node: str = "model") -> tuple[str, Any]:
    return "messages", [
        {"type": "AIMessageChunk", "id": message_id, "content": text},
        {"langgraph_node": node},
    ]


def _message(message_id: str, text: str) -> dict[str, Any]:
    return {"type": "ai", "id": message_id, "content": text, "response_metadata": {"finish_reason": "stop"}}


def _update(*messages: dict[str, Any], node: str = "model") -> tuple[str, Any]:
    return "updates", {node: {"messages": list(messages)}}


BEGUN = ("metadata", {"attempt": 1})
AGAIN = ("metadata", {"attempt": 2})


def _texts(happenings: list[Any]) -> list[tuple[str, str]]:
    return [(each.message_id, each.text) for each in happenings if isinstance(each, Said)]


def test_a_call_that_is_made_again_is_told_once() -> None:
    """After a change of process the model says the same again; only what goes beyond the first time is told."""
    told = _read(
        BEGUN, _piece("a", "It"), _piece("a", " is"), AGAIN, _piece("b", "It i"), _piece("b", "s 161.")
    )
    told += _read(
        BEGUN, _piece("a", "It"), AGAIN, _piece("b", "It is 161."), _update(_message("b", "It is 161."))
    )

    assert _texts(told) == [("a", "It"), ("a", " is"), ("a", " 161."), ("a", "It"), ("a", " is 161.")]
    assert [each.message_id for each in told if isinstance(each, Spoke)] == ["a"]


def test_a_call_that_goes_otherwise_is_told_from_its_beginning() -> None:
    """Where the model says something else the second time, that is another message."""
    told = _read(
        BEGUN, _piece("a", "It is"), AGAIN, _piece("b", "It"), _piece("b", " was"), _piece("b", " 161.")
    )

    assert _texts(told) == [("a", "It is"), ("b", "It was"), ("b", " 161.")]


def test_other_nodes_do_not_answer() -> None:
    """What another node's model says is no part of the answer; of a mounted graph every node speaks."""
    events = [_piece("a", "hm", node="other"), _update(_message("a", "hm"), node="other")]

    assert _read(*events) == []
    assert len(_read(*events, node=None)) == 2


def test_a_rewritten_conversation_is_not_told_again() -> None:
    """An update with a summary and kept messages tells of its last message alone; a whole list of its last turn."""
    removed = {"type": "remove", "id": "__remove_all__"}
    human = {"type": "human", "id": "h", "content": "?"}
    told = _read(_update(removed, human, _message("old", "old"), _message("new", "new")))
    told += _read(_update(_message("old", "old"), human, _message("new", "new")))

    assert [each.text for each in told] == ["new", "new"]


def test_a_tool_whose_call_is_not_known() -> None:
    """It is told by its name and its result."""
    (told,) = _read(
        _update({"type": "tool", "id": "t", "tool_call_id": "c", "name": "f", "content": "1"}, node="tools")
    )

    assert isinstance(told, ToolUsed)
    assert told.line == "f(…) → 1\n"


FAILURE = Failure(429, "too many", "rate_limit_error", "queue_full", "model", "7")


@pytest.mark.parametrize("failure", [FAILURE, Failure(503, "full")])
def test_a_failure_survives_its_event(failure: Failure) -> None:
    """Every field of a failure that was stored as an event is told to the client."""
    complaint = complaint_of(failure)
    told = failure_of(complaint)
    (ended,) = _read(("error", complaint), ("end", {"status": "error", "result": {"__error__": complaint}}))

    assert (told.status, told.body, told.headers) == (failure.status, failure.body, failure.headers)
    assert ended.failure.body == failure.body


def test_what_a_graph_says_of_itself_is_not_repeated() -> None:
    """The text of a graph's own error may quote a prompt."""
    (ended,) = _read(
        ("error", complaint_of(ValueError("CANARY"))), ("end", {"status": "error", "result": {}})
    )

    assert "CANARY" not in str(ended.failure.body)
    assert ended.failure.status == 500


ASKED: tuple[str, Any] = ("updates", {"model": {"messages": []}})


@pytest.mark.parametrize(
    ("events", "status", "may"),
    [
        ([], 429, True),
        ([], 503, True),
        ([], 502, False),
        ([], 504, False),
        ([ASKED], 429, False),
        ([ASKED], 503, False),
    ],
)
def test_a_run_that_did_something_is_not_repeated(
    events: list[tuple[str, Any]], status: int, may: bool
) -> None:
    """Only a run whose first call the proxy turned away may be asked for again."""
    failed = ("error", complaint_of(Failure(status, "?")))
    *_, ended = _read(BEGUN, *events, failed, ("end", {"status": "error", "result": {}}))

    assert ended.failure.may_be_repeated is may
    assert ended.failure.headers == ({} if may else {"x-should-retry": "false"})


def test_a_summary_tells_what_it_cost() -> None:
    """Its call counts where it is made; another behind it was counted before, and what is no number counts nothing."""
    spent = {"input_tokens": 100, "output_tokens": 20, "input_token_details": {"cache_creation": 7}}
    removed = {"type": "remove", "id": "__remove_all__"}
    summary = {"type": "human", "id": "s", "content": "S", "additional_kwargs": {"muster_usage": spent}}
    answer = {**_message("a", "one"), "usage_metadata": {"input_tokens": 10, "output_tokens": 5}}
    reader = Reader("model")
    events = [
        _update(removed, summary, answer),
        _update(removed, {**summary, "additional_kwargs": {}}, summary),
    ]
    events.append(_update(removed, {**summary, "additional_kwargs": {"muster_usage": {"input_tokens": "x"}}}))
    for seq, (name, data) in enumerate(events, 1):
        _ = list(reader.read(StoredEvent(seq, 1, name, orjson.dumps(data))))

    assert (reader.usage.input_tokens, reader.usage.output_tokens) == (110, 25)
    assert reader.usage.cache_write_tokens == 7


def test_a_graph_that_runs_out_of_steps() -> None:
    """It ends with what was said, at its limit."""
    told = _read(("error", {"error": "GraphRecursionError", "message": ""}), ("end", {"status": "error"}))

    assert told == [Ended(is_limited=True)]


@pytest.mark.parametrize(("numbers", "code"), [([1, 3], "client_too_slow"), ([1, 2], "run_cancelled")])
async def test_a_run_that_is_not_heard_whole(numbers: list[int], code: str) -> None:
    """Events that are missing, in the middle or at the end, are a failure and never a shorter answer."""

    async def events() -> AsyncGenerator[StoredEvent]:
        for number in numbers:
            yield StoredEvent(number, 1, "updates", b"{}")

    with pytest.raises(Failure) as caught:
        _ = [event async for event in whole(events())]

    assert caught.value.code == code
