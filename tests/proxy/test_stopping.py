"""How the proxy stops: not ready at once, what is under way finishes, what cannot is told."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator

import httpx

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.asking import open_stream, post
from tests.proxy.processes import ProxyProcess, proxy_process


@contextlib.asynccontextmanager
async def _proxy(
    engine: FakeVllm, **settings: float
) -> AsyncGenerator[tuple[ProxyProcess, httpx.AsyncClient]]:
    """A proxy as a process of its own, that is ready."""
    variables = {f"MUSTER_PROXY_{name.upper()}": str(value) for name, value in settings.items()}
    async with (
        proxy_process(engine, **variables) as proxy,
        httpx.AsyncClient(base_url=proxy.url, trust_env=False, timeout=30) as client,
    ):
        while not await _is_ready(client):
            await asyncio.sleep(0.02)
        yield proxy, client


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/ready")).is_success
    except httpx.TransportError:
        return False


async def test_a_stream_under_way_is_finished(engine: FakeVllm) -> None:
    """SIGTERM ends the process when its last answer is whole, with status 0."""
    resume = asyncio.Event()
    engine.script(Reply("one two three", pauses_after=2, resume=resume))
    async with _proxy(engine) as (proxy, client):
        async with open_stream(client) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            proxy.process.send_signal(signal.SIGTERM)
            while await _accepts(proxy.port):
                await asyncio.sleep(0.02)
            resume.set()
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert "error" not in "".join(rest)
        assert await proxy.process.wait() == 0


async def test_what_cannot_finish_in_time_is_told(engine: FakeVllm) -> None:
    """A stream ends with an error event, a request that waits for its answer with a 503."""
    engine.script(
        Reply("one two three", pauses_after=2, resume=asyncio.Event()), Reply(release=asyncio.Event())
    )
    async with _proxy(engine, drain_s=1) as (proxy, client), open_stream(client) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        waiting = asyncio.ensure_future(post(client))
        await engine.arrived.acquire()
        await engine.arrived.acquire()
        proxy.process.send_signal(signal.SIGTERM)
        rest = [line async for line in lines if line]
        refused = await waiting

    assert '"server_shutting_down"' in rest[-2]
    assert rest[-1] == "data: [DONE]"
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_shutting_down")


async def test_it_is_not_ready_at_once_and_takes_requests_until_others_know(engine: FakeVllm) -> None:
    """With `stop_delay_s`, a request that comes after SIGTERM is still answered."""
    async with _proxy(engine, stop_delay_s=60) as (proxy, client):
        proxy.process.send_signal(signal.SIGTERM)
        while await _is_ready(client):
            await asyncio.sleep(0.02)

        assert (await client.get("/health/ready")).json() == {"status": "stopping"}
        assert (await client.get("/health/live")).status_code == 200
        assert (await post(client)).status_code == 200


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
