"""The engines behind the proxy: who they are, which models they serve, whether they answer, how busy they are.

Each upstream has one task that probes it. A probe asks `/health` (where there is one) and `/v1/models`, and
what it learns goes to the scheduler as a report. Traffic helps: a request that cannot connect makes its
upstream unavailable at once, and wakes the probe.

A second task reads its `/metrics`. An upstream whose slots are not configured is given an `EngineQueueLimit` once a
page of metrics has been understood, and an `AimdLimit` until then. Metrics that are lost stop nothing: there is no
sample then, and the limit knows what to do about that.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import msgspec

from muster_batching import (
    AimdLimit,
    AsyncScheduler,
    EngineQueueLimit,
    EngineSample,
    FixedLimit,
    PoolId,
    UpstreamId,
    UpstreamReport,
)
from muster_batching.samples import CALM
from muster_observability import logs
from muster_proxy import engine_metrics
from muster_proxy.client import UpstreamClient
from muster_proxy.failures import RequestError
from muster_proxy.metrics import ProxyMetrics
from muster_proxy.settings import ToolMode, UpstreamSettings

# How often an upstream that answers is asked again: new models (LoRA adapters) show up within it.
PROBE_INTERVAL_S = 5.0
# An upstream that does not answer is asked often: it may be loading, and a person may be waiting for it.
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0
PROBE_TIMEOUT_S = 5.0
# A busy engine can miss a probe. Refused connections count at once; silence counts after this many.
SILENT_PROBES = 3

METRICS_TIMEOUT_S = 1.0
MAX_METRICS_BYTES = 4 * 1024 * 1024
# An engine without metrics is asked for them so many times less often: every 5 s by default. It may be started again
# with them; SGLang and llama.cpp show them only when told to.
WITHOUT_METRICS = 20

_log = logs.get("proxy")


@dataclass(slots=True)
class Upstream:
    """One engine replica and what is known of it.

    Attributes:
        id: Its name in logs, metrics and `x-muster-upstream`.
        settings: As configured.
        models: What its `/v1/models` listed last, as it listed them.
        available: Whether it answered its last probe.
        doubted: Set when traffic could not reach it; wakes the probe.
        metered: Set once a page of its metrics has been understood.
        is_sampled: Whether the last page was.
    """

    id: UpstreamId
    settings: UpstreamSettings
    models: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    available: bool = False
    doubted: asyncio.Event = field(default_factory=asyncio.Event)
    metered: asyncio.Event = field(default_factory=asyncio.Event)
    is_sampled: bool = False
    silent_probes: int = 0

    @property
    def limit(self) -> FixedLimit | EngineQueueLimit | AimdLimit:
        """How its slots are found."""
        if self.settings.limit is not None:
            return FixedLimit(self.settings.limit)
        return EngineQueueLimit() if self.metered.is_set() else AimdLimit()

    def headers(self) -> dict[str, str]:
        """The headers that every request to this upstream carries."""
        key = self.settings.api_key
        return {"authorization": f"Bearer {key.get_secret_value()}"} if key else {}


class Upstreams:
    """All upstreams of a proxy.

    Args:
        settings: The upstreams as configured.
        scheduler: Told of every change.
        metrics: Shows which are available.
        scrape_interval_s: Seconds between two readings of an engine's metrics.
    """

    def __init__(
        self,
        settings: Iterable[UpstreamSettings],
        scheduler: AsyncScheduler,
        metrics: ProxyMetrics,
        *,
        scrape_interval_s: float,
    ) -> None:
        self._scheduler = scheduler
        self._metrics = metrics
        self._scrape_interval_s = scrape_interval_s
        self._all: dict[UpstreamId, Upstream] = {}
        self._models: dict[str, dict[str, Any]] = {}  # merged when they change: every request asks
        for number, each in enumerate(settings, start=1):
            upstream = Upstream(UpstreamId(each.name or f"upstream-{number}"), each)
            self._all[upstream.id] = upstream
            metrics.show_limit(upstream.id)

    def __getitem__(self, upstream_id: UpstreamId) -> Upstream:
        return self._all[upstream_id]

    @property
    def is_ready(self) -> bool:
        """Whether some upstream answers."""
        return any(upstream.available for upstream in self._all.values())

    @property
    def all_known(self) -> bool:
        """Whether every upstream has told its models at least once."""
        return all(upstream.models for upstream in self._all.values())

    def models(self) -> dict[str, dict[str, Any]]:
        """Every model that an upstream serves or served, the first upstream's entry where several do."""
        return self._models

    def tool_mode(self, model: str) -> ToolMode:
        """How tools are called on this model: emulated where any of its upstreams needs it.

        Emulation uses structured outputs alone, which every engine has, so it is right for all of a pool.
        """
        modes = {upstream.settings.tool_mode for upstream in self._all.values() if model in upstream.models}
        if "emulated" in modes:
            return "emulated"
        return "none" if "none" in modes else "native"

    def reads_text_alone(self, model: str) -> bool:
        """Whether the model's entry says so (llama.cpp's does); one that says nothing may read more."""
        architecture: object = self._models.get(model, {}).get("architecture")
        told = cast("dict[str, object]", architecture) if isinstance(architecture, dict) else {}
        return told.get("input_modalities") == ["text"]

    def doubt(self, upstream_id: UpstreamId) -> None:
        """Hear from traffic that an upstream cannot be reached."""
        upstream = self._all[upstream_id]
        self._learn(upstream, available=False)
        upstream.doubted.set()

    @contextlib.asynccontextmanager
    async def watching(self, client: UpstreamClient) -> AsyncGenerator[None]:
        """Probe all upstreams and read their metrics for as long as the block runs.

        Args:
            client: Reads the metrics, which is done too often for a client that costs more.
        """
        timeout = httpx.Timeout(PROBE_TIMEOUT_S)
        async with (
            httpx.AsyncClient(timeout=timeout, trust_env=False) as prober,
            asyncio.TaskGroup() as tasks,
        ):
            watches = [
                tasks.create_task(watch)
                for each in self._all.values()
                for watch in (self._keep_probing(each, prober, client), self._keep_sampling(each, client))
            ]
            try:
                yield
            finally:
                for watch in watches:
                    watch.cancel()

    async def _keep_sampling(self, upstream: Upstream, client: UpstreamClient) -> None:
        while True:
            self._hear(upstream, await _sample_of(upstream, client))
            if upstream.metered.is_set():
                await self._until_next_reading()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WITHOUT_METRICS * self._scrape_interval_s):
                        await upstream.metered.wait()

    async def _until_next_reading(self) -> None:
        for _ in range(CALM):
            await asyncio.sleep(self._scrape_interval_s)
            if self._scheduler.scheduler.waiting:
                return

    def _hear(self, upstream: Upstream, sample: EngineSample | None) -> None:
        if upstream.is_sampled != (sample is not None):
            upstream.is_sampled = sample is not None
            _log.debug("metrics are read" if sample else "metrics cannot be read", upstream=upstream.id)
        if sample is None:
            return
        if not upstream.metered.is_set():
            upstream.metered.set()
            if upstream.available:
                self._report(upstream)
        self._scheduler.sample(upstream.id, sample)

    async def _keep_probing(
        self, upstream: Upstream, prober: httpx.AsyncClient, client: UpstreamClient
    ) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            upstream.doubted.clear()
            await self._probe(upstream, prober, client)
            retry_s = FIRST_RETRY_S if upstream.available else min(LAST_RETRY_S, retry_s * 1.5)
            pause_s = PROBE_INTERVAL_S if upstream.available else retry_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await upstream.doubted.wait()
                    # The engine that just refused a connection refuses the next one too: wait a little.
                    await asyncio.sleep(FIRST_RETRY_S)

    async def _probe(self, upstream: Upstream, prober: httpx.AsyncClient, client: UpstreamClient) -> None:
        root = upstream.settings.root
        try:
            health = await prober.get(f"{root}/health", headers=upstream.headers())
            if health.is_server_error:
                return self._learn(upstream, available=False)
            answer = await prober.get(f"{root}/v1/models", headers=upstream.headers())
            models = _models_of(answer)
        except httpx.TimeoutException:
            upstream.silent_probes += 1
            if upstream.silent_probes >= SILENT_PROBES:
                self._learn(upstream, available=False)
            return None
        except (httpx.HTTPError, ValueError) as error:
            _log.debug("probe failed", upstream=upstream.id, error=type(error).__name__)
            return self._learn(upstream, available=False)
        upstream.models = models
        self._models = {}
        for each in self._all.values():
            self._models |= {name: entry for name, entry in each.models.items() if name not in self._models}
        if upstream.available:
            return self._learn(upstream, available=True)
        # Before its first request, so that its limit is the right one from the start.
        sample = await _sample_of(upstream, client)
        if sample is not None:
            upstream.metered.set()
        self._learn(upstream, available=True)
        return self._hear(upstream, sample)

    def _learn(self, upstream: Upstream, *, available: bool) -> None:
        upstream.silent_probes = 0
        if available != upstream.available:
            upstream.available = available
            _log.info(
                "upstream answers" if available else "upstream does not answer",
                upstream=upstream.id,
                models=sorted(upstream.models),
            )
        self._metrics.set_available(upstream.id, is_available=available)
        self._report(upstream)

    def _report(self, upstream: Upstream) -> None:
        self._scheduler.report(
            upstream.id,
            UpstreamReport(
                limit=upstream.limit,
                pools=frozenset(PoolId(name) for name in upstream.models),
                available=upstream.available,
            ),
        )


async def _sample_of(upstream: Upstream, client: UpstreamClient) -> EngineSample | None:
    """What the upstream's metrics say now; None where that is not to be had."""
    try:
        page = await client.get(
            f"{upstream.settings.root}/metrics",
            upstream.headers(),
            timeout_s=METRICS_TIMEOUT_S,
            limit_bytes=MAX_METRICS_BYTES,
        )
    except RequestError:
        return None
    return None if page is None else engine_metrics.read(page)


class _ModelList(msgspec.Struct):
    data: list[dict[str, Any]]


def _models_of(answer: httpx.Response) -> dict[str, dict[str, Any]]:
    """The models that a `/v1/models` answer lists, by id.

    Raises:
        httpx.HTTPStatusError: The answer is an error.
        ValueError: The answer is not a list of models, or of none.
    """
    answer.raise_for_status()
    listed = msgspec.json.decode(answer.content, type=_ModelList)
    models = {entry["id"]: entry for entry in listed.data if isinstance(entry.get("id"), str)}
    if not models:
        raise ValueError("no model is served")
    return models
