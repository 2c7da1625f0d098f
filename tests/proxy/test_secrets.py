"""What a client proves its identity by goes no further than the proxy."""

import asyncio
import os
import sys
from pathlib import Path
from typing import IO

import httpx

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.asking import body

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


async def all_answers_of_a_proxy(engine: FakeVllm, port: int, log: IO[bytes]) -> str:
    """Run a proxy as a process, send it what succeeds and what fails, and give back all that it answers."""
    command = (sys.executable, "-m", "muster_proxy", "proxy", "--upstream", engine.url, "--port", str(port))
    environment = {**os.environ, "MUSTER_LOG_LEVEL": "debug"}
    process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=environment)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while not await ready(client):
                await asyncio.sleep(0.02)
            answers = [
                await client.post("/v1/chat/completions", json=each, headers=HEADERS)
                for each in (body(), body(stream=True), body(temperature="x"), body(model="x"), body())
            ]
            answers.append(await client.get("/metrics", headers=HEADERS))
    finally:
        process.terminate()
        await process.wait()
    return "".join(f"{answer.headers}{answer.text}" for answer in answers)


async def test_a_clients_key_is_in_no_log_metric_answer_or_request(
    engine: FakeVllm, unused_port: int, tmp_path: Path
) -> None:
    """At the most talkative level, and where requests fail too."""
    engine.script(Reply(), Reply(), Reply(status=500))
    log = tmp_path / "log"
    with log.open("wb") as output:
        answers = await all_answers_of_a_proxy(engine, unused_port, output)

    told = log.read_text()
    assert told.count('"event":"request"') == 5
    assert "CANARY" not in told + answers
    assert len(engine.requests) == 3
    assert all("CANARY" not in str(request.headers) for request in engine.requests)
