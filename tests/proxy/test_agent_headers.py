"""What agents say of their model calls: in the log line, and nowhere else."""

from typing import Any

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from muster_observability.request_ids import is_identifier
from muster_proxy import agent_headers
from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.asking import body, open_stream, post
from tests.proxy.conftest import Proxied

SENT = {
    "x-muster-run-id": "run-7",
    "x-muster-thread-id": "thread.3",
    "x-muster-step": "4",
    "x-muster-call-kind": "summary",
    "x-stainless-retry-count": "1",
}
TOLD = {"run_id": "run-7", "thread_id": "thread.3", "step": 4, "call_kind": "summary", "retry_count": 1}


def read(sent: dict[str, str]) -> dict[str, Any]:
    """What is read of headers, given as text."""
    return dict(agent_headers.read({name.encode(): value.encode("latin-1") for name, value in sent.items()}))


def told(logged: Any) -> list[dict[str, Any]]:
    """What the requests' lines tell of agents."""
    lines = [line for line in logged if line["event"] == "request"]
    return [{name: line[name] for name in TOLD if name in line} for line in lines]


async def test_a_requests_line_tells_run_thread_step_kind_and_retry(
    engine: FakeVllm, proxied: Proxied
) -> None:
    """Whether it is answered whole or by events, or fails; a request that says none of it has none of the fields."""
    engine.script(Reply(), Reply(), Reply())
    with structlog.testing.capture_logs() as logged:
        async with proxied(engine.url) as client:
            client.headers.update(SENT)
            await post(client)
            async with open_stream(client) as stream:
                await stream.aread()
            await post(client, model="unknown")
            for name in SENT:
                del client.headers[name]
            await post(client)

    assert told(logged) == [TOLD, TOLD, TOLD, {}]


async def test_neither_engines_nor_metrics_nor_answers_hear_of_them(
    engine: FakeVllm, proxied: Proxied
) -> None:
    """They are the operator's, and a label of each run would be a metric of each run."""
    async with proxied(engine.url) as client:
        answer = await post(client, SENT)
        metrics = (await client.get("/metrics")).text

    assert not set(SENT) & set(engine.requests[0].headers)
    assert engine.requests[0].body == body()
    assert [each for each in ("run-7", "thread.3") if each in f"{metrics}{answer.headers}{answer.text}"] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-muster-run-id", ""),
        ("x-muster-run-id", "a b"),
        ("x-muster-run-id", 'a"b'),
        ("x-muster-run-id", "a" * 129),
        ("x-muster-thread-id", "\u00e9"),
        ("x-muster-step", "0"),
        ("x-muster-step", "-1"),
        ("x-muster-step", "1.5"),
        ("x-muster-step", "\u00b2"),
        ("x-muster-step", "1000000"),
        ("x-muster-step", "9" * 5000),
        ("x-muster-call-kind", "Model"),
        ("x-muster-call-kind", "other"),
        ("x-stainless-retry-count", "+1"),
        ("x-stainless-retry-count", "one"),
    ],
)
async def test_what_is_malformed_is_left_out_and_is_no_error(
    engine: FakeVllm, proxied: Proxied, name: str, value: str
) -> None:
    """The request is answered, and the other fields are there."""
    headers = httpx.Headers(
        [(each.encode(), (SENT | {name: value})[each].encode("latin-1")) for each in SENT]
    )
    with structlog.testing.capture_logs() as logged:
        async with proxied(engine.url) as client:
            answer = await client.post("/v1/chat/completions", json=body(), headers=headers)

    assert answer.status_code == 200
    (line,) = told(logged)
    assert len(line) == 4
    assert line.items() < TOLD.items()


def test_numbers_are_those_from_the_first_to_the_last_of_six_digits() -> None:
    """A step counts from 1, a retry from 0, and both reach as far as the bound that the API's document names."""
    assert [read({"x-muster-step": each}) for each in ("1", "007", "999999")] == [
        {"step": 1},
        {"step": 7},
        {"step": agent_headers.MOST},
    ]
    assert read({"x-stainless-retry-count": "0"}) == {"retry_count": 0}


@given(st.dictionaries(st.sampled_from([*SENT, "x-other"]), st.text(st.characters(max_codepoint=255))))
def test_whatever_is_sent_only_identifiers_kinds_and_small_numbers_are_told(sent: dict[str, str]) -> None:
    """Nothing that could forge a line or fill a disk."""
    for name, value in read(sent).items():
        if name in ("step", "retry_count"):
            assert 0 <= int(value) <= agent_headers.MOST
        else:
            assert is_identifier(str(value))
