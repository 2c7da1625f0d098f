"""A lab over HTTP: a real engine, and a `muster proxy` that is started in front of it for a run.

The scripts are those of the simulation. A call becomes a streamed chat completion whose prompt has about as many
tokens as the call says, and whose answer has exactly as many where the engine takes `ignore_eos`.
"""

import asyncio
import random
import re
import resource
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import aiohttp
import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from muster_batching.testing.simulation import Call, Record, Script, Start, Think
from muster_batching.tickets import UpstreamId
from muster_proxy.bench import servers
from muster_proxy.bench.labs import BenchmarkError, Meter, Scripts, Seen, Way
from muster_proxy.bench.ways import Target

# Words of three letters that the vocabularies of language models hold whole: with the space before it each is one
# token and four characters, so a prompt's length is right for engines that count either.
_WORDS = re.findall(
    "...",
    "theandforyounotbutallcanherwasoneouroutdaygethashimhishowmannewnowoldseetwowaywho"
    "boydiditsletputsayshetoousebigaskownwhyruntopredsuncutfarendfewlowsetaircareyejob",
)

_BLOCK_TOKENS = 16
_TURNED_AWAY = (429, 503)
_QUEUE = re.compile(r"queue;dur=([0-9.]+)")
_LAST_WORDS = 300


@dataclass(slots=True)
class HttpRecord(Record):
    """What became of one call over HTTP.

    Attributes:
        looked_up_tokens: Tokens of the prompt as the engine counts them, with all that it puts around it; 0 where it
            does not tell what it found of them in its prefix cache.
    """

    looked_up_tokens: int = 0


class HttpLab:
    """Runs clients against a server.

    Args:
        target: The engine.
        meter: Is told how it gets on.
        limit: Requests that Muster has in flight there at most; None lets it learn.
    """

    is_simulated = False
    block_size = _BLOCK_TOKENS

    def __init__(self, target: Target, meter: Meter, limit: int | None = None) -> None:
        self._target = target
        self._meter = meter
        self._options = () if limit is None else ("--limit", str(limit))
        self._runs = 0
        _allow_connections()

    @property
    def kv_tokens(self) -> int:
        """Tokens that the engine's KV cache holds, as its metrics tell.

        Raises:
            BenchmarkError: They do not.
        """
        for sample in self._metrics("vllm:cache_config_info"):
            labels = sample.labels
            told = labels.get("kv_cache_size_tokens", "")
            if told.isdecimal():
                return int(told)
            if labels.get("num_gpu_blocks", "").isdecimal() and labels.get("block_size", "").isdecimal():
                return int(labels["num_gpu_blocks"]) * int(labels["block_size"])
        raise BenchmarkError(
            f"{self._target.url}/metrics does not tell the size of the KV cache: give it with --kv-tokens"
        )

    def run(self, label: str, way: Way, scripts: Scripts) -> Seen:
        """Run clients to their ends; prompts differ from run to run, so that no cache helps the later one."""
        self._meter.run_begins(label)
        self._runs += 1
        prose = Prose(f"{label} {self._runs} {time.time_ns()}")
        queries, hits = self._prefix_counts()
        if way is Way.DIRECT:
            records, ended_s = self._play(self._target.url, prose, scripts)
        else:
            with servers.muster(
                "proxy", "--upstream", self._target.url, *self._options, ready_path="/health/ready"
            ) as url:
                records, ended_s = self._play(url, prose, scripts)
        queries_after, hits_after = self._prefix_counts()
        if queries is None or hits is None or queries_after is None or hits_after is None:
            return Seen(records, ended_s)
        return Seen(records, ended_s, queries_after - queries, hits_after - hits)

    def _play(self, url: str, prose: "Prose", scripts: Scripts) -> tuple[list[Record], float]:
        try:
            return asyncio.run(Clients(self._target, url, prose, self._meter).play(scripts))
        except (
            ExceptionGroup
        ) as group:  # of the requests that ran together, the first that failed tells enough
            raise group.exceptions[0] from None

    def _prefix_counts(self) -> tuple[int | None, int | None]:
        counts = [
            [sample.value for sample in self._metrics(f"vllm:prefix_cache_{name}")]
            for name in ("queries", "hits")
        ]
        queries, hits = (int(sum(values)) if values else None for values in counts)
        return queries, hits

    def _metrics(self, family: str) -> list[Sample]:
        """The samples of one of the engine's metrics; none where it has no metrics."""
        try:
            answer = httpx.get(f"{self._target.url}/metrics", timeout=10.0, trust_env=False)
        except httpx.HTTPError:
            return []
        if not answer.is_success:
            return []
        return [
            sample
            for each in text_string_to_metric_families(answer.text)
            if each.name == family
            for sample in each.samples
            if not sample.name.endswith("_created")
        ]


class Prose:
    """Makes prompts: words without meaning, the same for the same block.

    Args:
        salt: Prompts of different salts have nothing in common.
    """

    def __init__(self, salt: str) -> None:
        self._salt = salt
        self._block = lru_cache(maxsize=100_000)(self._written)

    def prompt(self, call: Call, serial: int) -> str:
        """The text of a call: its blocks as far as its prompt reaches, and words of its own beyond them.

        A session's next prompt begins with this one, but where this one's answer will stand it has words that the
        engine did not write: the prefix cache finds the prompts again, and not the answers.
        """
        whole, rest = divmod(call.input_tokens, _BLOCK_TOKENS)
        named = call.blocks[: whole + 1]
        texts = [self._block(str(name)) for name in named]
        texts += [self._block(f"{serial} {number}") for number in range(len(named), whole + 1)]
        words = texts[whole].split()[:rest]
        return " ".join([*texts[:whole], *words])

    def _written(self, name: str) -> str:
        source = random.Random(f"{self._salt} {name}")  # noqa: S311  words, not a secret
        return " ".join(source.choices(_WORDS, k=_BLOCK_TOKENS))


class Clients:
    """The clients of one run.

    Args:
        target: What is asked for.
        url: Where: the engine's root, or a proxy's.
        prose: Writes the prompts.
        meter: Is told of each call's end.
    """

    def __init__(self, target: Target, url: str, prose: Prose, meter: Meter) -> None:
        self._target = target
        self._url = f"{url}/v1/chat/completions"
        self._prose = prose
        self._meter = meter
        self._records: list[Record] = []

    async def play(self, scripts: Scripts) -> tuple[list[Record], float]:
        """Run clients to their ends; the records of their calls, and how long it took.

        Raises:
            ExceptionGroup: Of `BenchmarkError`, where a request is refused that must not be.
        """
        connector = aiohttp.TCPConnector(limit=0)
        patience = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=patience) as self._http:
            self._began_s = time.monotonic()
            async with asyncio.TaskGroup() as self._clients:
                for start_s, script in scripts:
                    self._clients.create_task(self._client(start_s, script))
            return self._records, self._now_s()

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _client(self, due_s: float, script: Script) -> None:
        # A client that only thinks keeps to its plan: what the loop was late for once is not late for ever.
        await self._until(due_s)
        record: Record | None = None
        while (wish := _next(script, record)) is not None:
            record = None
            match wish:
                case Start(other):
                    self._clients.create_task(self._client(due_s, other))
                case Think(seconds):
                    due_s += seconds
                    await self._until(due_s)
                case Call():
                    record = await self._call(wish)
                    due_s = self._now_s()

    async def _until(self, due_s: float) -> None:
        await asyncio.sleep(max(0.0, due_s - self._now_s()))

    async def _call(self, call: Call) -> Record:
        record = HttpRecord(call, self._now_s())
        body = self._body(call, len(self._records))
        self._records.append(record)
        try:
            async with asyncio.timeout(call.ttft_deadline_s) as patience:
                await self._ask(record, body, patience)
        except TimeoutError:
            record.outcome = "gave_up"
        except aiohttp.ClientError:
            record.outcome = "failed"
        record.ended_s = self._now_s()
        self._meter.call_ended(record)
        return record

    def _body(self, call: Call, serial: int) -> bytes:
        fields: dict[str, Any] = {
            "model": self._target.model,
            "messages": [{"role": "user", "content": self._prose.prompt(call, serial)}],
            "max_tokens": call.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._target.fixed_length:
            fields["ignore_eos"] = True
        return orjson.dumps(fields)

    async def _ask(self, record: HttpRecord, body: bytes, patience: asyncio.Timeout) -> None:
        async with self._http.post(self._url, data=body, headers=_headers(record.call)) as answer:
            if answer.status in _TURNED_AWAY:
                record.outcome = "turned_away"
                record.retry_after_s = _whole(answer.headers.get("retry-after"))
                await answer.read()
                return
            await _check(answer)
            record.dispatched_s = record.sent_s + _queued_s(answer)
            record.upstream = UpstreamId(self._target.url)
            await self._read(record, answer, patience)

    async def _read(
        self, record: HttpRecord, answer: aiohttp.ClientResponse, patience: asyncio.Timeout
    ) -> None:
        last = b""
        async for line in answer.content:
            if not line.startswith(b"data:") or b"[DONE]" in line:
                continue
            last = line[5:]
            if record.first_token_s is None and _has_text(last):
                record.first_token_s = self._now_s()
                patience.reschedule(None)
        usage = _usage(last)
        record.output_tokens = usage.get("completion_tokens", record.call.output_tokens)
        details: dict[str, int | None] = usage.get("prompt_tokens_details") or {}
        if (cached_tokens := details.get("cached_tokens")) is not None:
            record.cached_tokens = cached_tokens
            record.looked_up_tokens = usage.get("prompt_tokens", 0)
        record.outcome = "failed" if record.first_token_s is None else "completed"


def _next(script: Script, record: Record | None) -> Call | Think | Start | None:
    try:
        return script.send(record)
    except StopIteration:
        return None


def _headers(call: Call) -> dict[str, str]:
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {call.tenant or 'nobody'}",
        "x-muster-class": call.request_class.value,
    }
    if call.session is not None:
        headers["x-session-id"] = call.session
    if call.ttft_deadline_s is not None and call.tells_deadline:
        headers["x-slo-ttft-ms"] = str(round(1000 * call.ttft_deadline_s))
    return headers


async def _check(answer: aiohttp.ClientResponse) -> None:
    """Heed a refusal that no client of the benchmark should get: the whole run would be about nothing."""
    if answer.status >= 500:  # noqa: PLR2004  HTTP's own number
        raise aiohttp.ClientError
    if not answer.ok:
        text = (await answer.text())[:_LAST_WORDS]
        raise BenchmarkError(f"{answer.url} answered {answer.status}: {text}")


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _queued_s(answer: aiohttp.ClientResponse) -> float:
    """How long the request waited in Muster, as it tells; an engine tells nothing."""
    told = _QUEUE.search(answer.headers.get("server-timing", ""))
    return float(told[1]) / 1000 if told else 0.0


def _has_text(event: bytes) -> bool:
    choices: list[dict[str, Any]] = orjson.loads(event).get("choices") or []
    return any(_delta_has_text(choice.get("delta") or {}) for choice in choices)


def _delta_has_text(delta: dict[str, Any]) -> bool:
    return bool(delta.get("content") or delta.get("reasoning") or delta.get("tool_calls"))


def _usage(event: bytes) -> dict[str, Any]:
    usage: dict[str, Any] = (orjson.loads(event).get("usage") if event else None) or {}
    return usage


def _allow_connections() -> None:
    """Raise the number of open files as far as is allowed: each request under way has a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16_384 if hard == resource.RLIM_INFINITY else min(16_384, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
