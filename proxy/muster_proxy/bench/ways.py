"""The ways of the original comparison, each over the same mix of requests."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import httpx

from muster_batching.handler import BatchHandler
from muster_proxy.bench.labs import BenchmarkError

SHORTEST_TOKENS, LONGEST_TOKENS = 10, 150

# The same lengths in every run and every way: what differs is the way.
_SEED = 7

WINDOW, WINDOW_MS = 32, 100.0

_TOPICS = ("rivers", "bridges", "clocks", "bread", "maps", "winter", "trains", "glass", "whales", "paper")


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they ask for.

    Attributes:
        url: The server's root.
        model: The model asked for.
        fixed_length: Whether the engine takes `ignore_eos`, which makes every answer as long as its limit.
    """

    url: str
    model: str
    fixed_length: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What one way took.

    Attributes:
        wall_s: From the first request to the last answer.
        latencies_s: Of each request.
        output_tokens: Of all answers.
        batches: Batches formed, where the way forms any.
        mean_batch_size: Their mean size.
    """

    wall_s: float
    latencies_s: list[float]
    output_tokens: int
    batches: int | None = None
    mean_batch_size: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the mix."""

    prompt: str
    max_tokens: int


def requests(count: int, label: str) -> list[Request]:
    """The mix: as many requests as asked, of 10 to 150 tokens.

    Args:
        count: How many.
        label: Begins every prompt, so that no way finds its prompts in the engine's cache from another.
    """
    draw = random.Random(_SEED)  # noqa: S311  a workload, not a secret
    return [
        Request(
            prompt=f"[{label} {number}] Tell me a story about {draw.choice(_TOPICS)}.",
            max_tokens=draw.randint(SHORTEST_TOKENS, LONGEST_TOKENS),
        )
        for number in range(count)
    ]


def client() -> httpx.AsyncClient:
    """A client with as many connections as there are requests."""
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(timeout=httpx.Timeout(None), limits=limits, trust_env=False)


async def one_at_a_time(target: Target, mix: list[Request], advance: Callable[[], None]) -> Result:
    """Send each request when the one before it is answered."""
    return await _run(target, mix, advance, asyncio.Semaphore(1))


async def all_at_once(target: Target, mix: list[Request], advance: Callable[[], None]) -> Result:
    """Send all requests together, and let the engine see to it."""
    return await _run(target, mix, advance, asyncio.Semaphore(len(mix)))


async def explicit_batch(target: Target, mix: list[Request], advance: Callable[[], None]) -> Result:
    """Send all prompts in one call, the way of vLLM's batch endpoint or, where there is none, of completions.

    A call has one limit on tokens for all of its prompts: it gets the mean, so that the work is the same.
    """
    max_tokens = round(sum(each.max_tokens for each in mix) / len(mix))
    fields = {"model": target.model, "max_tokens": max_tokens, **_sampling(target)}
    messages = [[{"role": "user", "content": each.prompt}] for each in mix]
    async with client() as http:
        started_s = time.monotonic()
        answer = await http.post(
            f"{target.url}/v1/chat/completions/batch", json={**fields, "messages": messages}
        )
        if answer.status_code in (404, 405):
            started_s = time.monotonic()
            answer = await http.post(
                f"{target.url}/v1/completions", json={**fields, "prompt": [each.prompt for each in mix]}
            )
        body = _checked(answer)
        wall_s = time.monotonic() - started_s
    for _ in mix:
        advance()
    # Engines differ in whose tokens a batch's usage counts; with fixed lengths they are known.
    tokens = max_tokens * len(mix) if target.fixed_length else _output_tokens(body)
    return Result(wall_s, [wall_s] * len(mix), tokens, batches=1, mean_batch_size=float(len(mix)))


async def windows(target: Target, mix: list[Request], advance: Callable[[], None]) -> Result:
    """Send all requests together to a `BatchHandler` in window mode: the original prototype's way."""
    latencies_s: list[float] = []

    async def ask(handler: BatchHandler[Request, int], request: Request) -> int:
        began_s = time.monotonic()
        tokens = await handler.add_request(request)
        latencies_s.append(time.monotonic() - began_s)
        advance()
        return tokens

    async with client() as http:
        handler = BatchHandler(
            _Together(http, target), max_batch_size=WINDOW, timeout_ms=WINDOW_MS, mode="window"
        )
        started_s = time.monotonic()
        async with handler, asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(handler, request)) for request in mix]
        wall_s = time.monotonic() - started_s
    stats = handler.stats
    tokens = sum(each.result() for each in asked)
    return Result(wall_s, latencies_s, tokens, stats.total_batches, stats.avg_batch_size)


@dataclass(frozen=True, slots=True)
class _Together:
    """Sends the requests of a window, each with its own limit on tokens, and waits for the slowest.

    One call of a batch endpoint would have one limit for all, and hide what a window costs.
    """

    http: httpx.AsyncClient
    target: Target

    async def batch_chat_completion(self, requests: Sequence[Request], /) -> Sequence[int]:
        """Send them; the number of each answer's tokens."""
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(_ask(self.http, self.target, request)) for request in requests]
        except ExceptionGroup as group:  # all of a window get one error
            raise group.exceptions[0] from None
        return [each.result() for each in asked]


async def _run(
    target: Target, mix: list[Request], advance: Callable[[], None], gate: AbstractAsyncContextManager[Any]
) -> Result:
    latencies_s: list[float] = []
    tokens: list[int] = []

    async def ask(http: httpx.AsyncClient, request: Request) -> None:
        async with gate:
            started_s = time.monotonic()
            tokens.append(await _ask(http, target, request))
            latencies_s.append(time.monotonic() - started_s)
            advance()

    async with client() as http:
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for request in mix:
                tasks.create_task(ask(http, request))
        return Result(time.monotonic() - started_s, latencies_s, sum(tokens))


async def _ask(http: httpx.AsyncClient, target: Target, request: Request) -> int:
    """Ask for one answer; the number of its tokens."""
    answer = await http.post(f"{target.url}/v1/chat/completions", json=_body(target, request))
    return _output_tokens(_checked(answer))


async def find_target(url: str, model: str | None) -> Target:
    """Ask a server which model it has, and whether it takes `ignore_eos`; warms it up by doing so.

    Raises:
        BenchmarkError: It cannot be reached, or answers with errors.
    """
    root = url.rstrip("/").removesuffix("/v1")
    async with client() as http:
        try:
            models = _checked(await http.get(f"{root}/v1/models"))
            target = Target(root, model or models["data"][0]["id"], fixed_length=True)
            request = Request("Say hello.", 4)
            answer = await http.post(f"{root}/v1/chat/completions", json=_body(target, request))
            if answer.status_code == 400:  # noqa: PLR2004  a strict server refuses what it does not know
                target = Target(root, target.model, fixed_length=False)
                answer = await http.post(f"{root}/v1/chat/completions", json=_body(target, request))
            _checked(answer)
        except httpx.HTTPError as error:
            raise BenchmarkError(f"{root} cannot be reached ({type(error).__name__})") from error
    return target


def _body(target: Target, request: Request) -> dict[str, Any]:
    return {
        "model": target.model,
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": request.max_tokens,
        **_sampling(target),
    }


def _sampling(target: Target) -> dict[str, Any]:
    return {"temperature": 0} | ({"ignore_eos": True} if target.fixed_length else {})


def _checked(answer: httpx.Response) -> dict[str, Any]:
    if not answer.is_success:
        raise BenchmarkError(f"{answer.url.path} answered {answer.status_code}: {answer.text[:300]}")
    body: dict[str, Any] = answer.json()
    return body


def _output_tokens(body: dict[str, Any]) -> int:
    usage: dict[str, int] = body.get("usage") or {}
    return usage.get("completion_tokens", 0)
