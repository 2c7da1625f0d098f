"""The clients of a benchmark are the same in every run."""

import itertools

import pytest

from muster_batching.testing.simulation import Call, Record, Start, Think
from muster_batching.tickets import TenantId
from muster_proxy.bench.cases.tenants import service_by_second
from muster_proxy.bench.workloads import (
    CHAT,
    RETRIES,
    AgentShape,
    Job,
    Lengths,
    Mix,
    SessionRun,
    again_and_again,
    agents,
    arrivals,
    before,
    draws,
    sessions,
)

CALL = Call(input_tokens=10, output_tokens=5)


def ended(call: Call, outcome: str = "completed", retry_after_s: int | None = None) -> Record:
    """A record of a call that ended at 3 s."""
    record = Record(call, sent_s=1.0, ended_s=3.0, retry_after_s=retry_after_s)
    record.outcome = "turned_away" if outcome == "turned_away" else "completed"
    return record


def test_one_seed_draws_one_mix() -> None:
    """The same requests each time, others for another seed, all within the mix's bounds."""
    one, same, other = (list(itertools.islice(CHAT.calls(seed), 500)) for seed in ("a", "a", "b"))

    assert one == same != other
    assert all(16 <= call.input_tokens <= 4000 and 8 <= call.output_tokens <= 1000 for call in one)
    assert {call.max_output_tokens for call in one} == {1000}


def test_a_mix_can_be_made_smaller() -> None:
    """All lengths by the same factor, none below a token."""
    mix = Mix(Lengths(100, 0.5, 1, 400), Lengths(10, 0.5, 1, 40), scale=0.01)
    calls = list(itertools.islice(mix.calls("a"), 200))

    assert {call.output_tokens for call in calls} == {1}
    assert max(call.input_tokens for call in calls) <= 4


def test_arrivals_come_at_their_rate_until_they_end() -> None:
    """A thousand a second for a second are about a thousand, each a client of its own."""
    wishes = list(arrivals(itertools.repeat(CALL), 1000.0, draws("gaps"), before(1.0)))
    starts = [wish for wish in wishes if isinstance(wish, Start)]

    assert 900 < len(starts) < 1100
    assert sum(wish.seconds for wish in wishes if isinstance(wish, Think)) >= 1.0
    assert list(starts[0].script) == [CALL]


def test_arrivals_end_with_their_calls() -> None:
    """Without a further call nobody comes."""
    assert len(list(arrivals([CALL], 1.0, draws("gaps"), before(1e9)))) == 2


def test_a_job_is_open_while_a_line_is_left() -> None:
    """It closes with the last line's end."""
    job = Job(1)
    line = job.line(CALL)

    assert next(line) == CALL
    assert job.is_open(0.0)
    assert list(line) == []
    assert not job.is_open(0.0)


def test_a_busy_client_sends_on_until_its_time_is_up() -> None:
    """The next request follows the end of the last; one that was turned away waits first."""
    client = again_and_again(itertools.repeat(CALL), until_s=10.0)

    assert next(client) == CALL
    assert client.send(ended(CALL)) == CALL
    assert client.send(ended(CALL, "turned_away", 4)) == Think(4.0)
    assert client.send(None) == CALL
    assert list(client) == []


def test_sessions_share_their_beginning_and_nothing_else() -> None:
    """Blocks of the system prompt are the same in all, the others in none; a turn begins with the one before it."""
    shape = AgentShape(system_tokens=64)
    one, other = sessions(2, shape, "a")
    names, others = one.block_names(16), other.block_names(16)

    assert set(names) & set(others) == {0, 1, 2, 3} == set(names[:4])
    assert len(names) == len(set(names)) == (one.turns[-1].input_tokens + one.turns[-1].output_tokens) // 16
    assert all(
        later.input_tokens > earlier.input_tokens + earlier.output_tokens
        for earlier, later in itertools.pairwise(one.turns)
    )
    assert sessions(2, shape, "a") == [one, other]


def test_a_place_runs_one_session_after_another() -> None:
    """Each call names its session, the last one ends it, and what became of each is noted."""
    drawn = sessions(2, AgentShape(turns=(2, 2)), "a")
    seen: list[SessionRun] = []
    client = agents(iter(drawn), seen, block_size=16, most_output_tokens=800)
    calls: list[Call] = []
    record: Record | None = None
    for _ in range(6):  # two calls and a pause, twice
        wish = client.send(record)
        record = ended(wish) if isinstance(wish, Call) else None
        calls += [wish] if isinstance(wish, Call) else []

    assert [call.session for call in calls] == ["session-0", "session-0", "session-1", "session-1"]
    assert [call.ends_session for call in calls] == [False, True, False, True]
    assert calls[1].blocks[: len(calls[0].blocks)] == calls[0].blocks
    with pytest.raises(StopIteration):
        client.send(record)
    assert seen == [SessionRun(number, 1.0, 3.0, is_complete=True) for number in (0, 1)]


def test_an_agent_asks_again_as_its_sdk_does() -> None:
    """Turned away too often, the session has failed."""
    seen: list[SessionRun] = []
    client = agents(iter(sessions(1, AgentShape(), "a")), seen, block_size=16, most_output_tokens=800)
    call = next(client)
    assert isinstance(call, Call)
    for _ in range(RETRIES):
        assert client.send(ended(call, "turned_away", 7)) == Think(7.0)
        assert client.send(None) == call

    with pytest.raises(StopIteration):
        client.send(ended(call, "turned_away", 7))
    assert [run.is_complete for run in seen] == [False]


def test_service_is_counted_as_it_is_given() -> None:
    """A prompt with the first token, an answer evenly up to its last, both over the tenant's weight."""
    tenant = TenantId("t")
    call = Call(input_tokens=100, output_tokens=30, tenant=tenant, weight=2.0)
    long = Record(call, 0.0, 0.0, 1.5, 4.5, "completed", output_tokens=30)
    short = Record(Call(10, 1, tenant=tenant), 0.0, 0.0, 0.5, 0.5, "completed", output_tokens=1)
    never = Record(call, 0.0, ended_s=9.0, outcome="gave_up")

    assert service_by_second([long, short, never], [tenant]) == {tenant: [12.0, 55.0, 10.0, 10.0, 5.0]}
