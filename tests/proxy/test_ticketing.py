"""What the scheduler is told of a request: the ticket that its headers and body make."""

import time
from dataclasses import replace
from typing import Any

import orjson
import pytest

from muster_batching import RequestClass, TenantId, Ticket, UpstreamId
from muster_proxy import wire
from muster_proxy.exchange import Exchange
from muster_proxy.failures import RequestError
from muster_proxy.keys import Identity
from muster_proxy.ticketing import TicketOffice

ANYBODY = Identity(TenantId("ada"), 1.0, RequestClass.INTERACTIVE, None)

TEXT = [{"role": "user", "content": "x" * 3900}]


async def _nothing(*_arguments: object) -> Any:
    """Neither receives nor sends."""


def ticket(
    office: TicketOffice | None = None,
    headers: dict[str, str] | None = None,
    identity: Identity = ANYBODY,
    **fields: Any,
) -> Ticket:
    """The ticket of a request with these headers and fields."""
    scope = {
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
    }
    body = orjson.dumps({"model": "m", "messages": TEXT, **fields})
    exchange = Exchange(scope, _nothing, _nothing)
    exchange.model = "m"
    return (office or TicketOffice()).ticket(exchange, wire.read_chat(body), identity)


@pytest.mark.parametrize(
    ("headers", "fields", "request_class"),
    [
        ({}, {}, RequestClass.STANDARD),
        ({"x-muster-class": "interactive"}, {}, RequestClass.INTERACTIVE),
        ({"x-muster-class": "standard"}, {"service_tier": "priority"}, RequestClass.STANDARD),
        ({"x-muster-class": "batch"}, {"service_tier": "priority"}, RequestClass.BATCH),
        ({}, {"service_tier": "priority"}, RequestClass.INTERACTIVE),
        ({}, {"service_tier": "flex"}, RequestClass.BATCH),
        ({}, {"service_tier": "auto"}, RequestClass.STANDARD),
        ({}, {"service_tier": None}, RequestClass.STANDARD),
        ({}, {"service_tier": "made-up"}, RequestClass.STANDARD),
    ],
)
def test_the_header_says_the_class_else_the_service_tier(
    headers: dict[str, str], fields: dict[str, Any], request_class: RequestClass
) -> None:
    """A tier that is not known is no reason to refuse: OpenAI adds some."""
    assert ticket(headers=headers, **fields).request_class is request_class


@pytest.mark.parametrize(
    ("headers", "fields", "session"),
    [
        ({}, {}, None),
        ({"x-session-id": "run-7"}, {"prompt_cache_key": "other"}, "run-7"),
        ({}, {"prompt_cache_key": "other"}, "other"),
        ({"x-session-id": "a b"}, {"prompt_cache_key": "other"}, "other"),
        ({}, {"prompt_cache_key": "a b"}, None),
        ({}, {"prompt_cache_key": ""}, None),
    ],
)
def test_the_header_names_the_session_else_the_cache_key(
    headers: dict[str, str], fields: dict[str, Any], session: str | None
) -> None:
    """Where it is an identifier."""
    assert ticket(headers=headers, **fields).session == session


@pytest.mark.parametrize(
    ("headers", "after_s"),
    [
        ({"x-slo-ttft-ms": "1500"}, 1.5),
        ({"x-slo-ttft-ms": "0.5"}, 0.0005),
        ({"x-slo-ttft-ms": "1500", "x-stainless-read-timeout": "600"}, 1.5),
        ({"x-stainless-read-timeout": "600"}, 600),
        ({"x-stainless-read-timeout": "2.5"}, 2.5),
    ],
)
def test_the_deadline_counts_from_the_arrival(headers: dict[str, str], after_s: float) -> None:
    """In milliseconds as the client wants it, else in the seconds for which its SDK reads."""
    before_s = time.monotonic()
    deadline_s = ticket(headers=headers).deadline_s
    now_s = time.monotonic()

    assert deadline_s is not None
    assert before_s <= deadline_s - after_s <= now_s


@pytest.mark.parametrize(
    "value", ["None", "", "-1", "0", "nan", "inf", "1e3", "1_0", " 5", "\xb2", "9" * 400]
)
def test_a_read_timeout_that_is_no_time_is_no_deadline(value: str) -> None:
    """An SDK sends it, not its user."""
    assert ticket(headers={"x-stainless-read-timeout": value}).deadline_s is None


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-muster-class", "urgent"),
        ("x-muster-class", ""),
        ("x-muster-class", "Batch"),
        *(("x-slo-ttft-ms", each) for each in ("0", "-5", "soon", "", "nan", "inf", "1e3", "0.0", "9" * 400)),
    ],
)
def test_a_malformed_header_of_ours_is_refused_by_its_name(header: str, value: str) -> None:
    """What was sent is not repeated."""
    with pytest.raises(RequestError) as caught:
        ticket(headers={header: value})

    assert (caught.value.http_status, caught.value.param) == (400, header)
    assert header in str(caught.value.message)
    assert not value or value not in str(caught.value.message)


def test_who_sent_it_decides_for_whom_it_counts_and_how_urgent_it_may_be() -> None:
    """Tenant and weight are the key's, whatever the request says; its class is at most the key's."""
    batch = Identity(TenantId("night"), 0.5, RequestClass.BATCH, None)
    urgent = ticket(headers={"x-muster-class": "interactive"}, identity=batch)

    assert (urgent.tenant, urgent.weight, urgent.request_class) == ("night", 0.5, RequestClass.BATCH)
    assert ticket(identity=ANYBODY, service_tier="priority").request_class is RequestClass.INTERACTIVE


def test_another_try_is_a_ticket_of_its_own_that_goes_elsewhere() -> None:
    """Nothing else about it changes."""
    office = TicketOffice()
    first = ticket(office)
    again = office.again(first, UpstreamId("a"))

    assert again.id != first.id
    assert replace(again, id=first.id, avoid=None) == first
    assert again.avoid == "a"


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 5}, 5),
        ({"max_tokens": 7, "n": 3}, 21),
    ],
)
def test_the_most_output_tokens_are_those_of_all_choices(fields: dict[str, Any], tokens: int | None) -> None:
    """The newer field counts."""
    assert ticket(**fields).max_output_tokens == tokens


def test_prompt_tokens_are_estimated_by_what_the_model_has_had() -> None:
    """Four bytes each at first; then as the engine accounts for them, model by model."""
    office = TicketOffice()
    first = ticket(office)
    assert first.input_tokens == -(-first.size_bytes // 4)

    for _ in range(60):
        office.learn(first, first.size_bytes // 2)

    assert ticket(office).input_tokens == pytest.approx(first.size_bytes / 2, rel=0.01)
    assert ticket(TicketOffice()).input_tokens == first.input_tokens


@pytest.mark.parametrize("tokens", [0, 1, 10**9])
def test_what_no_text_can_have_teaches_nothing(tokens: int) -> None:
    """A body that is mostly an image's data has a thousand bytes a token."""
    office = TicketOffice()
    first = ticket(office)
    office.learn(first, tokens)

    assert ticket(office).input_tokens == first.input_tokens


def test_an_image_counts_for_what_it_costs_and_not_for_its_bytes() -> None:
    """Of a body of a megabyte some thousand tokens remain."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    parts = [{"type": "text", "text": "What is this?"}, image]

    assert 1000 < ticket(messages=[{"role": "user", "content": parts}]).input_tokens < 1100


def test_tickets_have_names_of_their_own() -> None:
    """Whatever ids clients choose, a ticket is never another's."""
    office = TicketOffice()

    assert ticket(office).id != ticket(office).id
