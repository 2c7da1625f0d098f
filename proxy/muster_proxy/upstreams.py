"""The engines behind the proxy: who they are, which models they serve, whether they may be given work.

What is known of an upstream comes from its probes and metrics (`probing`) and from what becomes of its requests
(`health`), and goes to the scheduler as a report. A request that cannot connect makes its upstream unavailable at once,
until a probe reaches it; one that is lost wakes the probe.

An upstream whose slots are not configured is given an `EngineQueueLimit` once a page of metrics has been understood,
and an `AimdLimit` until then. Metrics that are lost stop nothing: there is no sample then, and the limit knows what to
do about that.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from muster_batching import (
    AimdLimit,
    AsyncScheduler,
    EngineQueueLimit,
    EngineSample,
    FixedLimit,
    PoolId,
    RequestClass,
    UpstreamId,
    UpstreamReport,
)
from muster_batching.tickets import CLASSES
from muster_observability import logs
from muster_proxy.client import Origin, header_lines
from muster_proxy.health import Change, Fleet, Progress, Sign, State
from muster_proxy.metrics import ProxyMetrics
from muster_proxy.quarantine import Quarantine
from muster_proxy.settings import ToolMode, UpstreamSettings

_PRIORITIES = {each: rank for rank, each in enumerate(CLASSES)}
"""vLLM's `priority`: what is lower goes first."""

_AIMD = AimdLimit()

_log = logs.get("proxy")


@dataclass(slots=True, eq=False)
class Upstream:
    """One engine replica and what is known of it.

    Attributes:
        id: Its name in logs, metrics and `x-muster-upstream`.
        settings: As configured.
        origin: Where it listens.
        progress: Whether it hangs.
        peers: Proxies that share it, this one too: workers of one command.
        models: What its `/v1/models` listed last, as it listed them.
        available: Whether it answered its last probe.
        doubted: Set when traffic has met trouble; wakes the probe.
        metered: Set once a page of its metrics has been understood.
        header_lines: The headers that every request to it carries, as lines.
    """

    id: UpstreamId
    settings: UpstreamSettings
    origin: Origin
    progress: Progress
    peers: int = 1
    models: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    available: bool = False
    doubted: asyncio.Event = field(default_factory=asyncio.Event)
    metered: asyncio.Event = field(default_factory=asyncio.Event)
    header_lines: bytes = field(init=False)

    def __post_init__(self) -> None:
        key = self.settings.api_key
        self.header_lines = header_lines({"authorization": f"Bearer {key.get_secret_value()}"} if key else {})

    @property
    def limit(self) -> FixedLimit | EngineQueueLimit | AimdLimit:
        """How its slots are found."""
        if self.settings.limit is not None:
            return FixedLimit(self.settings.limit)
        if self.metered.is_set():
            return EngineQueueLimit(peers=self.peers)
        return AimdLimit(initial=max(_AIMD.least, _AIMD.initial // self.peers))

    def fields(self, request_class: RequestClass, cache_salt: str | None) -> dict[str, Any]:
        """The fields of a request's body that only the proxy sets."""
        fields: dict[str, Any] = {}
        if cache_salt is not None and self.settings.cache_salt:
            fields["cache_salt"] = cache_salt
        if self.settings.priorities:
            fields["priority"] = _PRIORITIES[request_class]
        return fields


@dataclass(frozen=True, slots=True)
class Model:
    """What the upstreams of a model have in common; every request asks, so it is worked out when it changes.

    Attributes:
        entry: In `/v1/models`: the first upstream's, where several have one.
        tool_mode: How tools are called on it: emulated where any of its upstreams needs it. Emulation uses structured
            outputs alone, which every engine has, so it is right for all of them.
        reads_text_alone: Whether its entry says so (llama.cpp's does); one that says nothing may read more.
        may_fetch_media: Whether all of its upstreams may fetch what a client's URLs name.
    """

    entry: dict[str, Any]
    tool_mode: ToolMode
    reads_text_alone: bool
    may_fetch_media: bool

    @classmethod
    def of(cls, name: str, upstreams: Sequence[Upstream]) -> "Model":
        """A model by those that serve it."""
        entry = upstreams[0].models[name]
        architecture: object = entry.get("architecture")
        told = cast("dict[str, object]", architecture) if isinstance(architecture, dict) else {}
        modes = {each.settings.tool_mode for each in upstreams}
        mode: ToolMode = "emulated" if "emulated" in modes else "none" if "none" in modes else "native"
        fetches = all(each.settings.fetch_media for each in upstreams)
        return cls(entry, mode, told.get("input_modalities") == ["text"], fetches)


class Upstreams:
    """All upstreams of a proxy.

    Args:
        scheduler: Told of every change.
        metrics: Shows which are available.
        aliases: Other names of models, each with the model that it stands for.
        stall_s: Seconds without progress after which an engine with work counts as hung.
        peers: Proxies that share the upstreams, this one too.

    Attributes:
        quarantine: Hears which of them die.
    """

    def __init__(
        self,
        scheduler: AsyncScheduler,
        metrics: ProxyMetrics,
        aliases: Mapping[str, str],
        *,
        stall_s: float,
        peers: int,
    ) -> None:
        self._peers = peers
        self._scheduler = scheduler
        self._metrics = metrics
        self._aliases = aliases
        self._stall_s = stall_s
        self._fleet = Fleet(stall_s=stall_s)
        self.quarantine = Quarantine()
        self._all: dict[UpstreamId, Upstream] = {}
        self._models: dict[str, Model] = {}

    def __getitem__(self, upstream_id: UpstreamId) -> Upstream:
        return self._all[upstream_id]

    @property
    def is_ready(self) -> bool:
        """Whether some upstream answers."""
        return any(upstream.available for upstream in self._all.values())

    @property
    def all_known(self) -> bool:
        """Whether every upstream has told its models at least once."""
        return bool(self._all) and all(upstream.models for upstream in self._all.values())

    def entries(self) -> list[dict[str, Any]]:
        """The entry of every model that an upstream serves or served; then those of aliases."""
        aliases = {
            alias: {**self._models[model].entry, "id": alias}
            for alias, model in self._aliases.items()
            if model in self._models and alias not in self._models
        }
        return [*(model.entry for model in self._models.values()), *aliases.values()]

    def model(self, name: str) -> Model:
        """What is known of a model that exists."""
        return self._models[name]

    def model_of(self, name: str) -> str | None:
        """The model that a client means; None where there is no such model."""
        model = self._aliases.get(name, name)
        return model if model in self._models else None

    def has_other(self, pool: PoolId, than: UpstreamId) -> bool:
        """Whether another upstream of the pool may be given work."""
        return any(
            each.id != than
            and each.available
            and pool in each.models
            and self._fleet.state(each.id) is not State.EJECTED
            for each in self._all.values()
        )

    def add(self, upstream_id: UpstreamId, settings: UpstreamSettings, origin: Origin) -> Upstream:
        """Take an upstream in; it is given work when it is available."""
        upstream = Upstream(upstream_id, settings, origin, Progress(stall_s=self._stall_s), self._peers)
        self._all[upstream_id] = upstream
        self._metrics.show_upstream(upstream_id)
        return upstream

    def remove(self, upstream: Upstream) -> None:
        """Take an upstream out; what it has in flight may finish."""
        self.learn(upstream, available=False)
        self.quarantine.forget(upstream.id)
        self._scheduler.remove(upstream.id)
        self._metrics.forget_upstream(upstream.id)

    def learn(
        self,
        upstream: Upstream,
        *,
        available: bool,
        models: dict[str, dict[str, Any]] | None = None,
        sample: EngineSample | None = None,
    ) -> None:
        """Hear what a probe has found.

        Args:
            upstream: Which.
            available: Whether it answers.
            models: What it serves, if that was told.
            sample: A first page of metrics: taken before the upstream's first request, so that its limit is the right
                one from the start.
        """
        if models is not None:
            upstream.models = models
            self._merge()
        if sample is not None:
            upstream.metered.set()
        if available != upstream.available:
            upstream.available = available
            if available:
                self.quarantine.returned(upstream.id)
            else:
                self.quarantine.died(upstream.id, time.monotonic())
            _log.info(
                "upstream answers" if available else "upstream does not answer",
                upstream=upstream.id,
                models=sorted(upstream.models),
            )
        self._metrics.set_available(upstream.id, is_available=available)
        pools = frozenset(PoolId(name) for name in upstream.models)
        self._apply(self._fleet.report(upstream.id, pools, available=available, now_s=time.monotonic()))
        self._report(upstream)
        if sample is not None:
            self._scheduler.sample(upstream.id, sample)

    def sample(self, upstream: Upstream, sample: EngineSample) -> None:
        """Hear what an upstream's metrics say."""
        if not upstream.metered.is_set():
            upstream.metered.set()
            if upstream.available:
                self._report(upstream)
        if sample.tokens is not None:
            upstream.progress.counted(sample.tokens, time.monotonic())
        self._scheduler.sample(upstream.id, sample)

    def note(self, upstream: Upstream, sign: Sign, dispatched_s: float) -> None:
        """Hear what became of a request that was sent to an upstream then."""
        changes = self._fleet.note(upstream.id, sign, time.monotonic(), dispatched_s=dispatched_s)
        if changes:
            self._apply(changes)

    def is_on_trial(self, upstream: Upstream) -> bool:
        """Whether its next answer decides if it is given work again."""
        return self._fleet.state(upstream.id) is State.TRIAL

    def doubt(self, upstream: Upstream, *, is_refused: bool) -> None:
        """Hear that an upstream could not be reached, or was lost: its probe asks at once.

        Args:
            upstream: Which.
            is_refused: It takes no connection, and so no work until a probe has reached it.
        """
        if is_refused and upstream.available:
            self.learn(upstream, available=False)
        upstream.doubted.set()

    def judge(self) -> None:
        """End the ejections that are over, and eject what hangs; to be called every second or so."""
        now_s = time.monotonic()
        self._apply(self._fleet.wake(now_s))
        for upstream in self._all.values():
            if upstream.available and upstream.progress.is_stalled(now_s):
                self._apply(self._fleet.stalled(upstream.id, now_s))

    def _merge(self) -> None:
        serving: dict[str, list[Upstream]] = {}
        for each in self._all.values():
            for name in each.models:
                serving.setdefault(name, []).append(each)
        self._models = {name: Model.of(name, upstreams) for name, upstreams in serving.items()}

    def _apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            upstream = self._all[change.upstream]
            _log.warning(
                f"upstream is {change.state}",
                upstream=upstream.id,
                cause=change.cause,
                for_s=change.for_s,
            )
            if change.state is State.EJECTED:
                self._metrics.ejected(upstream.id)
            self._report(upstream)

    def _report(self, upstream: Upstream) -> None:
        state = self._fleet.state(upstream.id)
        self._scheduler.report(
            upstream.id,
            UpstreamReport(
                limit=FixedLimit(1) if state is State.TRIAL else upstream.limit,
                pools=frozenset(PoolId(name) for name in upstream.models),
                available=upstream.available and state is not State.EJECTED,
            ),
        )

    def all(self) -> Sequence[Upstream]:
        """Every upstream that was taken in, in that order."""
        return tuple(self._all.values())
