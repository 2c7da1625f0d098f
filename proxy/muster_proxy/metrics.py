"""The proxy's own metrics. Label values come from configuration and closed sets, never from a client."""

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from muster_batching import AsyncScheduler, Outcome, RequestClass, TurnAwayReason, UpstreamId, Usage
from muster_observability.metrics import Durations, Tally

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ProxyMetrics:
    """What the proxy counts.

    Args:
        registry: Where the metrics are shown.
        scheduler: Asked for what waits and what is in flight at the moment of a scrape.
    """

    def __init__(self, registry: CollectorRegistry, scheduler: AsyncScheduler) -> None:
        self._registry = registry
        self._core = scheduler.scheduler
        self._ended = Tally(
            "muster_requests", "Requests that ended, by how.", "outcome", list(Outcome), registry
        )
        self._tokens = Tally(
            "muster_tokens",
            "Tokens that engines accounted for, once for each generation.",
            "direction",
            ("input", "output"),
            registry,
        )
        self._turned_away = Counter(
            "muster_turned_away", "Requests that got no slot, by why.", ["reason"], registry=registry
        )
        self._retries = Counter(
            "muster_retries", "Requests sent to an engine once more, after one failed.", registry=registry
        )
        self._ejections = Counter(
            "muster_ejections", "Times that an upstream was ejected.", ["upstream"], registry=registry
        )
        self._queue_s = self._durations("muster_queue_seconds", "Time from arrival to dispatch.")
        self._ttft_s = self._durations(
            "muster_time_to_first_byte_seconds", "Time from arrival to the first byte of the answer."
        )
        self._duration_s = self._durations("muster_request_seconds", "Time from arrival to the last byte.")
        self._available = Gauge(
            "muster_upstream_available",
            "1 when the upstream answers its probes, else 0.",
            ["upstream"],
            registry=registry,
        )
        self._limit = Gauge(
            "muster_limit",
            "Requests that may be in flight on the upstream now.",
            ["upstream"],
            registry=registry,
        )
        self._show_queue()
        self._show_batches()

    def ended(self, outcome: Outcome, duration_s: float) -> None:
        """Count a request that ended, this long after it came."""
        self._ended.add(outcome)
        self._duration_s.observe(duration_s)

    def answered(self, waited_s: float, ttft_s: float | None) -> None:
        """Note the times of a request that was sent to an engine; `ttft_s` is None where no answer began."""
        self._queue_s.observe(waited_s)
        if ttft_s is not None:
            self._ttft_s.observe(ttft_s)

    def used(self, usage: Usage) -> None:
        """Count the tokens that an engine accounted for."""
        self._tokens.add("input", usage.input_tokens)
        self._tokens.add("output", usage.output_tokens)

    def turned_away(self, reason: TurnAwayReason) -> None:
        """Count a request that got no slot."""
        self._turned_away.labels(reason.value).inc()

    def retried(self) -> None:
        """Count a request that is sent once more."""
        self._retries.inc()

    def ejected(self, upstream: UpstreamId) -> None:
        """Count an ejection."""
        self._ejections.labels(upstream).inc()

    def set_available(self, upstream: UpstreamId, *, is_available: bool) -> None:
        """Show whether an upstream answers its probes."""
        self._available.labels(upstream).set(int(is_available))

    def show_upstream(self, upstream: UpstreamId) -> None:
        """Show an upstream from now on."""
        self._limit.labels(upstream).set_function(lambda: self._core.slots_on(upstream))
        self._ejections.labels(upstream)

    def forget_upstream(self, upstream: UpstreamId) -> None:
        """Show an upstream no longer."""
        for each in (self._available, self._limit, self._ejections):
            each.remove(upstream)

    def _durations(self, name: str, documentation: str) -> Durations:
        return Durations(name, documentation, _SECONDS, self._registry)

    def _gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        Gauge(name, documentation, registry=self._registry).set_function(value)

    def _show_queue(self) -> None:
        core = self._core
        waiting = Gauge(
            "muster_waiting", "Requests waiting for a slot now, by class.", ["class"], registry=self._registry
        )
        for each in RequestClass:
            waiting.labels(each.value).set_function(lambda each=each: core.waiting_of(each))
        self._gauge("muster_in_flight", "Requests in an engine now.", lambda: core.in_flight)
        self._gauge(
            "muster_held", "Of the requests that wait, those that the session gate holds.", lambda: core.held
        )
        self._gauge("muster_tasks", "Tasks of the event loop now.", lambda: len(asyncio.all_tasks()))
        self._gauge("muster_waiting_bytes", "Bytes of the requests waiting now.", lambda: core.waiting_bytes)

    def _show_batches(self) -> None:
        core = self._core
        self._gauge(
            "muster_dispatched", "Requests dispatched since the start.", lambda: core.stats.total_requests
        )
        self._gauge(
            "muster_batches",
            "Batches formed since the start: decisions that dispatched.",
            lambda: core.stats.total_batches,
        )
        self._gauge(
            "muster_batch_size_mean",
            "Mean of requests in flight after each of them.",
            lambda: core.stats.avg_batch_size,
        )
