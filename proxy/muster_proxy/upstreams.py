"""The engines behind the proxy: who they are, which models they serve, whether they answer.

Each upstream has one task that probes it. A probe asks `/health` (where there is one) and `/v1/models`, and
what it learns goes to the scheduler as a report. Traffic helps: a request that cannot connect makes its
upstream unavailable at once, and wakes the probe.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import msgspec

from muster_batching import AsyncScheduler, PoolId, UpstreamId, UpstreamReport
from muster_observability import logs
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
    """

    id: UpstreamId
    settings: UpstreamSettings
    models: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    available: bool = False
    doubted: asyncio.Event = field(default_factory=asyncio.Event)
    silent_probes: int = 0

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
    """

    def __init__(
        self, settings: Iterable[UpstreamSettings], scheduler: AsyncScheduler, metrics: ProxyMetrics
    ) -> None:
        self._scheduler = scheduler
        self._metrics = metrics
        self._all: dict[UpstreamId, Upstream] = {}
        self._models: dict[str, dict[str, Any]] = {}  # merged when they change: every request asks
        for number, each in enumerate(settings, start=1):
            upstream = Upstream(UpstreamId(each.name or f"upstream-{number}"), each)
            self._all[upstream.id] = upstream

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
    async def probing(self) -> AsyncGenerator[None]:
        """Probe all upstreams for as long as the block runs."""
        timeout = httpx.Timeout(PROBE_TIMEOUT_S)
        async with (
            httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
            asyncio.TaskGroup() as tasks,
        ):
            probes = [tasks.create_task(self._keep_probing(each, client)) for each in self._all.values()]
            try:
                yield
            finally:
                for probe in probes:
                    probe.cancel()

    async def _keep_probing(self, upstream: Upstream, client: httpx.AsyncClient) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            upstream.doubted.clear()
            await self._probe(upstream, client)
            retry_s = FIRST_RETRY_S if upstream.available else min(LAST_RETRY_S, retry_s * 1.5)
            pause_s = PROBE_INTERVAL_S if upstream.available else retry_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await upstream.doubted.wait()
                    # The engine that just refused a connection refuses the next one too: wait a little.
                    await asyncio.sleep(FIRST_RETRY_S)

    async def _probe(self, upstream: Upstream, client: httpx.AsyncClient) -> None:
        root = upstream.settings.root
        try:
            health = await client.get(f"{root}/health", headers=upstream.headers())
            if health.is_server_error:
                return self._learn(upstream, available=False)
            answer = await client.get(f"{root}/v1/models", headers=upstream.headers())
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
        return self._learn(upstream, available=True)

    def _learn(self, upstream: Upstream, *, available: bool) -> None:
        upstream.silent_probes = 0
        if available != upstream.available:
            upstream.available = available
            _log.info(
                "upstream answers" if available else "upstream does not answer",
                upstream=upstream.id,
                models=sorted(upstream.models),
            )
        self._metrics.upstream_available.labels(upstream=upstream.id).set(int(available))
        self._scheduler.report(
            upstream.id,
            UpstreamReport(
                limit=upstream.settings.limit,
                pools=frozenset(PoolId(name) for name in upstream.models),
                available=available,
            ),
        )


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
