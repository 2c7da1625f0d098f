"""How far the model of an engine is from a real vLLM: the same 200 requests on both.

    .venv/bin/python tests/benchmarks/calibrate_engine_model.py --upstream http://127.0.0.1:8200

replays a trace against an engine over HTTP and in virtual time on the model, and prints both and how far they are
apart. With `--fit` it measures the engine first, by runs of its own that have nothing of the trace, prints the
profile that follows from them, and judges that one. The constants of `CPU_135M` come from it: SmolLM2-135M-Instruct
in bf16 on vLLM 0.32 on two cores, `vllm serve ... --dtype bfloat16 --max-model-len 4096 --max-num-seqs 16
--enforce-eager` with 2 GB of KV cache. The load generator shares those two cores.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import aiohttp
from rich.console import Console
from rich.table import Table

from muster_batching.testing import CPU_135M, EngineModel, EngineProfile, EngineRequest, FirstToken

REQUESTS = 200
BURST = 24
LOADS = (0.75, 1.5)
"""Of capacity: one that the engine can bear, for the times, and one that it cannot, for its throughput."""

PREFIX_TOKENS = 384
PREFIXES = 4
ANY_TOKEN = (1_000, 40_000)
"""Token ids that stand for words, not for control."""

LENGTHS = (32, 64, 128, 256, 512, 768, 1_024)
BATCHES = (1, 2, 4, 8, 12, 16)
CONTEXTS = (64, 512, 1_024, 2_048)
CONTEXT_BATCH = 8
MEASURED_TOKENS = 64
REPEATS = 3
"""Of each measurement, of which the best counts: what else runs on the machine can only make it slower."""

MIX = 64
MIX_PROMPT_TOKENS = 200
MIX_OUTPUT_TOKENS = (8, 64)


@dataclass(frozen=True)
class Sent:
    """A request of a trace.

    Attributes:
        at_s: When it is sent, from the trace's start.
        prompt: Token ids.
        output_tokens: Length of its answer.
    """

    at_s: float
    prompt: list[int]
    output_tokens: int


@dataclass(frozen=True)
class Timing:
    """When a request was sent, and when its first and its last token came, in seconds."""

    sent_s: float
    first_s: float
    last_s: float
    output_tokens: int


@dataclass(frozen=True)
class Measures:
    """What a replay comes to."""

    tokens_per_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    itl_mean_s: float


def measures_of(timings: Sequence[Timing]) -> Measures:
    """Sum a replay up; the throughput is of output tokens from the first request to the last answer."""
    wall_s = max(each.last_s for each in timings) - min(each.sent_s for each in timings)
    ttfts_s = statistics.quantiles(
        (each.first_s - each.sent_s for each in timings), n=100, method="inclusive"
    )
    gaps = sum(each.output_tokens - 1 for each in timings)
    return Measures(
        tokens_per_s=sum(each.output_tokens for each in timings) / wall_s,
        ttft_p50_s=ttfts_s[49],
        ttft_p95_s=ttfts_s[94],
        itl_mean_s=sum(each.last_s - each.first_s for each in timings) / gaps,
    )


def words(rng: random.Random, count: int) -> list[int]:
    """So many random tokens."""
    return [rng.randrange(*ANY_TOKEN) for _ in range(count)]


def make_trace(profile: EngineProfile, load: float, seed: int) -> list[Sent]:
    """Poisson arrivals at a share of the profile's capacity, with a burst in their midst.

    Prompts have 16 to 640 tokens, and four of ten begin with one of a few prefixes; answers have 8 to 64. The seed
    decides all but the words: these are new each time, so that no earlier run has left them in an engine's cache.
    """
    rng, vocabulary = random.Random(seed), random.Random()  # noqa: S311  traffic, not secrets
    prefixes = [words(vocabulary, PREFIX_TOKENS) for _ in range(PREFIXES)]
    bodies: list[tuple[list[int], int]] = []
    for _ in range(REQUESTS):
        prefix = rng.choice(prefixes) if rng.random() < 0.4 else []
        own_tokens = int(rng.triangular(16, 640 - len(prefix), 48))
        bodies.append((prefix + words(vocabulary, own_tokens), rng.randint(8, 64)))
    at_once = [Sent(0.0, prompt, output_tokens) for prompt, output_tokens in bodies]
    rate = load * REQUESTS / max(timing.last_s for timing in replay_on_model(profile, at_once))
    trace: list[Sent] = []
    at_s = 0.0
    for number, (prompt, output_tokens) in enumerate(bodies):
        at_s += 0.0 if REQUESTS // 2 < number < REQUESTS // 2 + BURST else rng.expovariate(rate)
        trace.append(Sent(at_s, prompt, output_tokens))
    return trace


def block_names(prompt: Sequence[int], block_size: int) -> list[int]:
    """The names of a prompt's full blocks."""
    names: list[int] = []
    for end in range(block_size, len(prompt) + 1, block_size):
        names.append(hash((*names[-1:], *prompt[end - block_size : end])))
    return names


def replay_on_model(profile: EngineProfile, trace: Sequence[Sent]) -> list[Timing]:
    """Play a trace in virtual time."""
    engine = EngineModel(profile)
    for number, sent in enumerate(trace):
        names = block_names(sent.prompt, profile.block_size)
        request = EngineRequest(str(number), len(sent.prompt), sent.output_tokens, names)
        engine.add(request, now_s=sent.at_s)
    firsts: dict[str, float] = {}
    timings: list[Timing] = []
    while (due_s := engine.next_event_s()) is not None:
        for event in engine.advance(now_s=due_s):
            if isinstance(event, FirstToken):
                firsts[event.id] = event.at_s
            else:
                sent = trace[int(event.id)]
                timings.append(Timing(sent.at_s, firsts[event.id], event.at_s, sent.output_tokens))
    return timings


@dataclass
class Upstream:
    """A real engine.

    Attributes:
        session: A client.
        url: Its root URL.
        model: What it serves.
    """

    session: aiohttp.ClientSession
    url: str
    model: str

    async def complete(self, prompt: list[int], output_tokens: int) -> Timing:
        """Have a prompt answered, in a stream."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        sent_s = time.perf_counter()
        async with self.session.post(f"{self.url}/v1/completions", data=json.dumps(body)) as answer:
            answer.raise_for_status()
            seen_s = [time.perf_counter() async for line in answer.content if line.startswith(b"data: {")]
        return Timing(sent_s, seen_s[0], seen_s[-1], output_tokens)

    async def replay(self, trace: Sequence[Sent]) -> list[Timing]:
        """Play a trace in real time."""
        start_s = time.perf_counter() + 0.5

        async def play(sent: Sent) -> Timing:
            await asyncio.sleep(start_s + sent.at_s - time.perf_counter())
            return await self.complete(sent.prompt, sent.output_tokens)

        async with asyncio.TaskGroup() as group:
            playing = [group.create_task(play(sent)) for sent in trace]
        return [each.result() for each in playing]

    async def ttft_s(self, prompt_tokens: int, rng: random.Random) -> float:
        """Time to the first token of a lone new prompt: the best of a few."""
        timings = [await self.complete(words(rng, prompt_tokens), 1) for _ in range(REPEATS)]
        return min(each.first_s - each.sent_s for each in timings)

    async def step_s(self, batch: int, prompt_tokens: int, rng: random.Random) -> float:
        """Mean time of a step with so many answers under way: the best of a few runs.

        They answer the same prompt, which is in the cache, so that they begin and end nearly together.
        """
        steps_s: list[float] = []
        for _ in range(REPEATS):
            prompt = words(rng, prompt_tokens)
            await self.complete(prompt, 1)
            timings = await self.replay([Sent(0.0, prompt, MEASURED_TOKENS)] * batch)
            steps_s.append(measures_of(timings).itl_mean_s)
        return min(steps_s)


async def fit(upstream: Upstream, console: Console) -> EngineProfile:
    """Measure the engine's steps one quantity at a time, each by a straight line."""
    rng = random.Random()  # noqa: S311  traffic, not secrets
    await upstream.step_s(max(BATCHES), 64, rng)
    ttfts_s = [await upstream.ttft_s(length, rng) for length in LENGTHS]
    batches_s = [await upstream.step_s(batch, CONTEXTS[0], rng) for batch in BATCHES]
    contexts_s = [await upstream.step_s(CONTEXT_BATCH, context, rng) for context in CONTEXTS]
    tell(console, "TTFT of a prompt of", LENGTHS, ttfts_s)
    tell(console, f"step with {CONTEXTS[0]} tokens of context and a batch of", BATCHES, batches_s)
    tell(console, f"step with a batch of {CONTEXT_BATCH} and each a context of", CONTEXTS, contexts_s)
    profile = profile_of(ttfts_s, batches_s, contexts_s)
    console.print("before the mixed run", profile)
    return await scaled(profile, upstream, rng, console)


async def scaled(
    profile: EngineProfile, upstream: Upstream, rng: random.Random, console: Console
) -> EngineProfile:
    """Stretch a profile's times so that requests all sent at once take as long as they really do.

    Prompts and answers computed in the same steps cost more than the sum of what each costs alone.
    """
    mix = [Sent(0.0, words(rng, MIX_PROMPT_TOKENS), rng.randint(*MIX_OUTPUT_TOKENS)) for _ in range(MIX)]
    real = measures_of(await upstream.replay(mix))
    model = measures_of(replay_on_model(profile, mix))
    factor = model.tokens_per_s / real.tokens_per_s
    console.print(
        f"{MIX} mixed requests: {real.tokens_per_s:.1f} tokens/s, {factor:.3f} times slower than expected"
    )
    return replace(
        profile,
        step_s=profile.step_s * factor,
        decode_s=profile.decode_s * factor,
        context_s=profile.context_s * factor,
        prefill_s=profile.prefill_s * factor,
        attention_s=profile.attention_s * factor,
        request_s=profile.request_s * factor,
    )


def profile_of(
    ttfts_s: Sequence[float], batches_s: Sequence[float], contexts_s: Sequence[float]
) -> EngineProfile:
    """The profile that follows from the times of `LENGTHS`, `BATCHES` and `CONTEXTS`.

    A prompt of p tokens takes `fixed + p * prefill_s + p * p / 2 * attention_s`, so what it takes more than the
    shortest, by the tokens that it has more, is a straight line in the mean of the two lengths.
    """
    context = statistics.linear_regression([CONTEXT_BATCH * each for each in CONTEXTS], contexts_s)
    decode = statistics.linear_regression(BATCHES, batches_s)
    shortest, *longer = LENGTHS
    slopes_s = [
        (ttft_s - ttfts_s[0]) / (length - shortest)
        for length, ttft_s in zip(longer, ttfts_s[1:], strict=True)
    ]
    prefill = statistics.linear_regression([(length + shortest) / 2 for length in longer], slopes_s)
    fixed_s = ttfts_s[0] - shortest * prefill.intercept - shortest**2 / 2 * prefill.slope
    return replace(
        CPU_135M,
        step_s=decode.intercept,
        decode_s=max(0.0, decode.slope - (CONTEXTS[0] + MEASURED_TOKENS / 2) * context.slope),
        context_s=max(0.0, context.slope),
        prefill_s=max(0.0, prefill.intercept),
        attention_s=max(0.0, prefill.slope),
        request_s=max(0.0, fixed_s - decode.intercept),
    )


def tell(console: Console, what: str, sizes: Sequence[int], times_s: Sequence[float]) -> None:
    """Print what was measured."""
    cells = (f"{size}: {time_s * 1e3:.1f}" for size, time_s in zip(sizes, times_s, strict=True))
    console.print(what, "(ms)", ", ".join(cells))


def show(console: Console, real: Measures, model: Measures) -> None:
    """Print the two and how far the model is off."""
    table = Table("", "real", "model", "error")
    for name in ("tokens_per_s", "ttft_p50_s", "ttft_p95_s", "itl_mean_s"):
        one, other = getattr(real, name), getattr(model, name)
        table.add_row(name, f"{one:.4g}", f"{other:.4g}", f"{other / one - 1:+.1%}")
    console.print(table)


async def calibrate(given: argparse.Namespace, console: Console) -> None:
    """Fit if asked, and judge."""
    # uvicorn closes an idle connection after 5 s; one that is kept for less is never met half closed.
    limits = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=limits, headers=headers) as session:
        async with session.get(f"{given.upstream}/v1/models") as answer:
            model = (await answer.json())["data"][0]["id"]
        upstream = Upstream(session, given.upstream, model)
        profile = await fit(upstream, console) if given.fit else CPU_135M
        console.print(profile)
        for load in given.loads:
            trace = make_trace(profile, load, given.seed)
            real = measures_of(await upstream.replay(trace))
            console.print(f"{len(trace)} requests in {trace[-1].at_s:.0f} s, at {load:.0%} of capacity")
            show(console, real, measures_of(replay_on_model(profile, trace)))


def arguments(line: Iterable[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--upstream", default="http://127.0.0.1:8200", help="root URL of a vLLM that is otherwise idle"
    )
    parser.add_argument(
        "--fit", action="store_true", help="measure the engine first and judge the profile that follows"
    )
    parser.add_argument(
        "--loads", type=float, nargs="*", default=LOADS, help="shares of capacity, a trace each"
    )
    parser.add_argument("--seed", type=int, default=1, help="another makes other traces")
    return parser.parse_args(None if line is None else [*line])


if __name__ == "__main__":
    asyncio.run(calibrate(arguments(), Console()))
