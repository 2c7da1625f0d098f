"""The same clients over HTTP: what they send, and what they make of each answer."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from muster_batching.testing import EngineProfile
from muster_batching.testing.simulation import Call, Record, Script, Start, Think
from muster_batching.tickets import RequestClass, SessionId, TenantId
from muster_proxy.bench.labs import BenchmarkError
from muster_proxy.bench.over_http import Clients, HttpLab, HttpRecord, Prose
from muster_proxy.bench.ways import Target
from muster_proxy.testing import FakeVllm, Reply

FAST = EngineProfile(
    max_num_seqs=8,
    max_num_batched_tokens=512,
    kv_blocks=1_000,
    step_s=0.0005,
    decode_s=0.0,
    context_s=0.0,
    prefill_s=0.0,
)


class Silent:
    """A meter that only counts."""

    ended = 0

    def run_begins(self, label: str) -> None:
        """A run begins."""

    def call_ended(self, record: Record) -> None:
        """Count it."""
        assert record.ended_s is not None
        self.ended += 1


def clients(engine: FakeVllm, meter: Silent | None = None) -> Clients:
    """Clients of a fake engine."""
    target = Target(engine.url, engine.model, fixed_length=True)
    return Clients(target, engine.url, Prose("salt"), meter or Silent())


def one(call: Call) -> Script:
    """A client with one call."""
    yield call


def test_a_prompt_has_as_many_words_as_tokens() -> None:
    """And about four characters for each, whether its blocks are named or not."""
    prose = Prose("salt")
    for tokens in (1, 15, 16, 17, 100):
        text = prose.prompt(Call(tokens, 20, blocks=tuple(range(4))), 1)
        assert len(text.split()) == tokens
        assert len(text) == 4 * tokens - 1


def test_a_sessions_next_prompt_begins_with_the_last_one() -> None:
    """Not only to the last full block, but to its last word."""
    prose = Prose("salt")
    first = prose.prompt(Call(20, 20, blocks=(1, 2)), 1)
    second = prose.prompt(Call(60, 20, blocks=(1, 2, 3, 4, 5)), 2)

    assert second.startswith(first)


def test_prompts_of_another_run_have_nothing_in_common() -> None:
    """No run finds its prompts in the cache of an earlier one."""
    call = Call(64, 20, blocks=(1, 2, 3, 4, 5))

    assert Prose("a").prompt(call, 1)[:64] != Prose("b").prompt(call, 1)[:64]
    assert Prose("a").prompt(Call(16, 2), 1) != Prose("a").prompt(Call(16, 2), 2)


async def test_a_call_says_who_asks() -> None:
    """Tenant, class, session and deadline are in the headers, lengths in the body."""
    call = Call(
        32,
        5,
        RequestClass.BATCH,
        tenant=TenantId("acme"),
        session=SessionId("run-1"),
        ttft_deadline_s=30.0,
    )
    async with FakeVllm() as engine:
        records, _ = await clients(engine).play([(0.0, one(call))])
        received = engine.requests[0]

    assert [record.outcome for record in records] == ["completed"]
    assert received.headers["authorization"] == "Bearer acme"
    assert received.headers["x-muster-class"] == "batch"
    assert received.headers["x-session-id"] == "run-1"
    assert received.headers["x-slo-ttft-ms"] == "30000"
    assert (received.body["max_tokens"], received.body["ignore_eos"]) == (5, True)
    assert len(received.body["messages"][0]["content"].split()) == 32


async def test_a_silent_client_tells_no_deadline() -> None:
    """It just hangs up, and the engine notices."""
    never = asyncio.Event()
    call = Call(8, 5, ttft_deadline_s=0.05, tells_deadline=False)
    async with FakeVllm() as engine:
        engine.script(Reply(release=never))
        records, _ = await clients(engine).play([(0.0, one(call))])
        await engine.aborted.acquire()

    assert (records[0].outcome, records[0].first_token_s) == ("gave_up", None)
    assert "x-slo-ttft-ms" not in engine.requests[0].headers


async def test_a_deadline_ends_with_the_first_token() -> None:
    """An answer that has begun may take as long as it takes."""
    going_on = asyncio.Event()
    call = Call(8, 5, ttft_deadline_s=30.0)

    def client() -> Script:
        record = yield call
        assert record is not None
        assert record.ttft_s is not None

    async with FakeVllm() as engine:
        engine.script(Reply("One two three.", pauses_after=3, resume=going_on))
        async with asyncio.TaskGroup() as tasks:
            playing = tasks.create_task(clients(engine).play([(0.0, client())]))
            await engine.arrived.acquire()
            going_on.set()
        records, _ = playing.result()

    assert records[0].outcome == "completed"
    assert records[0].output_tokens == 3


@pytest.mark.parametrize(
    ("reply", "outcome", "retry_after_s"),
    [
        (Reply(status=429, headers={"retry-after": "7"}), "turned_away", 7),
        (Reply(status=503), "turned_away", None),
        (Reply(status=500), "failed", None),
        (Reply(breaks_after=0), "failed", None),
        (Reply(breaks_after=2), "failed", None),
        (Reply(""), "failed", None),
    ],
)
async def test_each_answer_is_an_outcome(reply: Reply, outcome: str, retry_after_s: int | None) -> None:
    """Refused, failed, broken off or empty: none of these is an answer."""
    meter = Silent()
    async with FakeVllm() as engine:
        engine.script(reply)
        records, _ = await clients(engine, meter).play([(0.0, one(Call(8, 5)))])

    assert (records[0].outcome, records[0].retry_after_s) == (outcome, retry_after_s)
    assert meter.ended == 1


async def test_a_request_that_is_wrong_ends_the_run() -> None:
    """Figures of a run whose requests no engine takes would be about nothing."""
    async with FakeVllm() as engine:
        engine.script(Reply(status=400, error={"error": {"message": "too long"}}))
        with pytest.raises(ExceptionGroup) as caught:
            await clients(engine).play([(0.0, one(Call(8, 5)))])

    assert isinstance(caught.value.exceptions[0], BenchmarkError)
    assert "too long" in str(caught.value.exceptions[0])


async def test_what_the_engine_found_in_its_prefix_cache_is_noted() -> None:
    """With what it looked up; an engine that tells nothing of its cache has looked nothing up."""
    call = Call(64, 4, blocks=tuple(range(4)))

    def client() -> Script:
        yield call
        yield call

    async with FakeVllm(profile=FAST) as told, FakeVllm() as silent:
        (first, again), _ = await clients(told).play([(0.0, client())])
        (other,), _ = await clients(silent).play([(0.0, one(call))])

    assert isinstance(first, HttpRecord)
    assert isinstance(again, HttpRecord)
    assert isinstance(other, HttpRecord)
    assert first.cached_tokens == 0 < again.cached_tokens < again.looked_up_tokens == first.looked_up_tokens
    assert (other.cached_tokens, other.looked_up_tokens) == (0, 0)


async def test_clients_think_and_start_others() -> None:
    """Over HTTP as in virtual time."""

    def client() -> Script:
        yield Think(0.001)
        yield Start(one(Call(8, 1)))
        yield Call(8, 2)

    async with FakeVllm() as engine:
        records, ended_s = await clients(engine).play([(0.0, client())])

    assert sorted(record.call.output_tokens for record in records) == [1, 2]
    assert min(record.sent_s for record in records) >= 0.001
    assert ended_s >= max(record.ended_s or 0.0 for record in records)


async def test_the_engines_cache_is_read_from_its_metrics() -> None:
    """An engine without metrics tells no size, and the message says what to do."""
    async with FakeVllm(profile=FAST) as told, FakeVllm() as silent:
        sizes = await asyncio.to_thread(
            lambda: HttpLab(Target(told.url, told.model, fixed_length=True), Silent()).kv_tokens
        )
        silent_lab = HttpLab(Target(silent.url, silent.model, fixed_length=True), Silent())
        with pytest.raises(BenchmarkError, match="--kv-tokens"):
            await asyncio.to_thread(lambda: silent_lab.kv_tokens)

    assert sizes == FAST.kv_tokens


async def test_a_benchmark_runs_on_a_real_server(tmp_path: Path) -> None:
    """Direct and through a proxy that is started for it, on a modelled engine in real time."""
    figures = tmp_path / "figures.json"
    async with FakeVllm(profile=FAST) as engine:
        sizes = ("--quick", "--duration", "1", "--capacity-requests", "40", "--load", "0.05")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "muster_proxy", "bench", "light"),
            *("--upstream", engine.url, *sizes, "--json", str(figures)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        place = {"upstream": engine.url, "model": engine.model}
    assert process.returncode == 0, output.decode()
    found = json.loads(figures.read_text())

    assert [row["way"] for row in found["rows"]] == ["direct", "Muster"]
    assert all(row["answered"] == row["requests"] > 0 for row in found["rows"])
    assert found["engine"] == place
    assert len(engine.requests) >= 40 + sum(row["requests"] for row in found["rows"])
