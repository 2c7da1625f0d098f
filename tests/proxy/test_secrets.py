"""What a client proves its identity by goes no further than the proxy."""

import asyncio

import httpx

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.asking import body
from tests.proxy.processes import proxy_process

CANARY = "sk-CANARY"
HEADERS = {
    "authorization": f"Bearer {CANARY}",
    "x-muster-class": "interactive",
    "x-stainless-read-timeout": "60",
    "x-session-id": "run-7",
}


async def ready(client: httpx.AsyncClient) -> bool:
    """Whether the proxy is up and has an engine."""
    try:
        return (await client.get("/health/ready")).is_success
    except httpx.TransportError:
        return False


async def all_answers_of_a_proxy(engine: FakeVllm) -> tuple[str, str]:
    """Run a proxy as a process and send it what succeeds and what fails. Returns all that it answers, and its log."""
    async with (
        proxy_process(engine, MUSTER_LOG_LEVEL="debug") as proxy,
        httpx.AsyncClient(base_url=proxy.url, trust_env=False) as client,
    ):
        while not await ready(client):
            await asyncio.sleep(0.02)
        answers = [
            await client.post("/v1/chat/completions", json=each, headers=HEADERS)
            for each in (body(), body(stream=True), body(temperature="x"), body(model="x"), body())
        ]
        answers.append(await client.get("/metrics", headers=HEADERS))
        proxy.process.terminate()
        await proxy.process.wait()
    return "".join(f"{answer.headers}{answer.text}" for answer in answers), proxy.told.decode()


async def test_a_clients_key_is_in_no_log_metric_answer_or_request(engine: FakeVllm) -> None:
    """At the most talkative level, and where requests fail too."""
    engine.script(Reply(), Reply(), Reply(status=500))
    answers, told = await all_answers_of_a_proxy(engine)

    assert told.count('"event":"request"') == 5
    assert "CANARY" not in told + answers
    assert len(engine.requests) == 3
    assert all("CANARY" not in str(request.headers) for request in engine.requests)
