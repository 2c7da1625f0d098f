"""Asks the engines how they are: probes, metrics, and the addresses behind a name.

Each upstream has two tasks: one asks `/health` (where there is one) and `/v1/models`, the other reads `/metrics`. An
upstream that is configured by a `dns:` name is as many upstreams as the name has addresses, and a third kind of task
follows them. All ask by the connections that requests take: what cannot be probed cannot be used either.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, TypeAlias

import msgspec

from muster_batching import AsyncScheduler, EngineSample, UpstreamId
from muster_batching.samples import CALM
from muster_observability import logs
from muster_proxy import engine_metrics
from muster_proxy.client import Origin, UpstreamClient, resolve
from muster_proxy.failures import Reason, RequestError
from muster_proxy.settings import UpstreamSettings
from muster_proxy.upstreams import Upstream, Upstreams

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
MAX_MODELS_BYTES = 4 * 1024 * 1024
# An engine without metrics is asked for them so many times less often: every 5 s by default. It may be started again
# with them; SGLang and llama.cpp show them only when told to.
WITHOUT_METRICS = 20

# How often a name's addresses are asked for; Kubernetes keeps its own answers for 5 s (CoreDNS) to 30 s.
RESOLVE_INTERVAL_S = 5.0
RESOLVE_TIMEOUT_S = 5.0

JUDGE_INTERVAL_S = 1.0

_OK = 200

_log = logs.get("proxy")

Resolve: TypeAlias = Callable[[str, int, float], Awaitable[Collection[str]]]


class _ModelList(msgspec.Struct):
    data: list[dict[str, Any]]


_models = msgspec.json.Decoder(_ModelList)


class Watch:
    """Watches all upstreams.

    Args:
        upstreams: Told what is found.
        scheduler: Asked whether anything waits: if not, metrics are read less often.
        client: The connections.
        scrape_interval_s: Seconds between two readings of an engine's metrics.
        resolve: Tells a name's addresses: host, port and seconds in; `RequestError` where it cannot.
        resolve_interval_s: Seconds between two questions for a name.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        scheduler: AsyncScheduler,
        client: UpstreamClient,
        *,
        scrape_interval_s: float,
        resolve: Resolve = resolve,
        resolve_interval_s: float = RESOLVE_INTERVAL_S,
    ) -> None:
        self._upstreams = upstreams
        self._core = scheduler.scheduler
        self._client = client
        self._scrape_interval_s = scrape_interval_s
        self._resolve = resolve
        self._resolve_interval_s = resolve_interval_s

    @contextlib.asynccontextmanager
    async def watching(
        self, configured: Iterable[UpstreamSettings], *beside: Coroutine[Any, Any, None]
    ) -> AsyncGenerator[None]:
        """Watch these upstreams for as long as the block runs.

        Args:
            configured: The upstreams.
            beside: What else is to run meanwhile; what fails there ends the block.
        """
        async with asyncio.TaskGroup() as group:
            watches = [group.create_task(each) for each in (self._keep_judging(), *beside)]
            for number, settings in enumerate(configured, start=1):
                name = settings.name or f"upstream-{number}"
                if settings.is_dns:
                    watches.append(group.create_task(self._follow(name, settings)))
                else:
                    upstream = self._upstreams.add(UpstreamId(name), settings, Origin.of(settings.root))
                    watches.append(group.create_task(self._watch(upstream)))
            try:
                yield
            finally:
                for watch in watches:
                    watch.cancel()

    async def _keep_judging(self) -> None:
        while True:
            await asyncio.sleep(JUDGE_INTERVAL_S)
            self._upstreams.judge()

    async def _watch(self, upstream: Upstream) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_probing(upstream))
            group.create_task(self._keep_sampling(upstream))

    # Addresses

    async def _follow(self, name: str, settings: UpstreamSettings) -> None:
        """Have an upstream for each address of a name."""
        followed: dict[str, tuple[Upstream, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                found = await self._addresses(settings)
                for address in followed.keys() - (found or followed.keys()):
                    upstream, watch = followed.pop(address)
                    watch.cancel()
                    self._upstreams.remove(upstream)
                for address in sorted((found or set()) - followed.keys()):
                    upstream = self._upstreams.add(
                        _free_name(name, (each.id for each, _ in followed.values())),
                        settings,
                        Origin.of(settings.root, address),
                    )
                    followed[address] = upstream, group.create_task(self._watch(upstream))
                await asyncio.sleep(self._resolve_interval_s if followed else LAST_RETRY_S)

    async def _addresses(self, settings: UpstreamSettings) -> set[str] | None:
        """What a name has now; None where that cannot be told, and what was known stands."""
        origin = Origin.of(settings.root)
        try:
            return set(await self._resolve(origin.host, origin.port, RESOLVE_TIMEOUT_S))
        except RequestError:
            _log.debug("a name cannot be resolved", name=origin.host)
            return None

    # Metrics

    async def _keep_sampling(self, upstream: Upstream) -> None:
        is_sampled = False
        while True:
            sample = await self._sample_of(upstream)
            if is_sampled != (sample is not None):
                is_sampled = sample is not None
                _log.debug("metrics are read" if sample else "metrics cannot be read", upstream=upstream.id)
            if sample is not None:
                self._upstreams.sample(upstream, sample)
            if upstream.metered.is_set():
                await self._until_next_reading()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WITHOUT_METRICS * self._scrape_interval_s):
                        await upstream.metered.wait()

    async def _until_next_reading(self) -> None:
        for _ in range(CALM):
            await asyncio.sleep(self._scrape_interval_s)
            if self._core.waiting:
                return

    async def _sample_of(self, upstream: Upstream) -> EngineSample | None:
        """What the upstream's metrics say now; None where that is not to be had."""
        try:
            status, page = await self._client.get(
                upstream.origin,
                "/metrics",
                upstream.header_lines,
                timeout_s=METRICS_TIMEOUT_S,
                limit_bytes=MAX_METRICS_BYTES,
            )
        except RequestError:
            return None
        return engine_metrics.read(page) if status == _OK else None

    # Probes

    async def _keep_probing(self, upstream: Upstream) -> None:
        retry_s, silent = FIRST_RETRY_S, 0
        while True:
            upstream.doubted.clear()
            silent = await self._probe(upstream, silent)
            retry_s = FIRST_RETRY_S if upstream.available else min(LAST_RETRY_S, retry_s * 1.5)
            pause_s = PROBE_INTERVAL_S if upstream.available else retry_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await upstream.doubted.wait()
                    # The engine that just refused a connection refuses the next one too: wait a little.
                    await asyncio.sleep(FIRST_RETRY_S)

    async def _probe(self, upstream: Upstream, silent: int) -> int:
        """Ask an upstream how it is; returns how many probes in a row were met by silence."""
        try:
            status, _ = await self._page(upstream, "/health")
            if status >= 500:  # noqa: PLR2004  HTTP's classes of status
                self._upstreams.learn(upstream, available=False)
                return 0
            models = _models_of(*await self._page(upstream, "/v1/models"))
        except (RequestError, ValueError, msgspec.DecodeError) as error:
            is_silence = isinstance(error, RequestError) and error.reason is Reason.UPSTREAM_TIMEOUT
            _log.debug("probe failed", upstream=upstream.id, silence=is_silence)
            if not is_silence or silent + 1 >= SILENT_PROBES:
                self._upstreams.learn(upstream, available=False)
            return silent + 1 if is_silence else 0
        sample = None if upstream.available else await self._sample_of(upstream)
        self._upstreams.learn(upstream, available=True, models=models, sample=sample)
        return 0

    async def _page(self, upstream: Upstream, path: str) -> tuple[int, bytes]:
        return await self._client.get(
            upstream.origin,
            path,
            upstream.header_lines,
            timeout_s=PROBE_TIMEOUT_S,
            limit_bytes=MAX_MODELS_BYTES,
        )


def _free_name(name: str, taken: Iterable[UpstreamId]) -> UpstreamId:
    """The name with the lowest number that is free, so that replicas that come and go have a few names only."""
    names = set(taken)
    return next(
        free for number in itertools.count(1) if (free := UpstreamId(f"{name}-{number}")) not in names
    )


def _models_of(status: int, page: bytes) -> dict[str, dict[str, Any]]:
    """The models that a `/v1/models` answer lists, by id.

    Raises:
        ValueError: It is no list of models, or of none.
    """
    if status != _OK:
        raise ValueError("expected a list of models, got an error")
    listed = _models.decode(page)
    models = {entry["id"]: entry for entry in listed.data if isinstance(entry.get("id"), str)}
    if not models:
        raise ValueError("expected a model, got none")
    return models
