"""The proxy's own metrics. Label values come from configuration and closed sets, never from a client."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from muster_batching import AsyncScheduler

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ProxyMetrics:
    """What the proxy counts.

    Args:
        registry: Where the metrics are shown.
        scheduler: Asked for what waits and what is in flight at the moment of a scrape.
    """

    def __init__(self, registry: CollectorRegistry, scheduler: AsyncScheduler) -> None:
        core = scheduler.scheduler
        self.requests = Counter(
            "muster_requests", "Requests that ended, by how.", ["outcome"], registry=registry
        )
        self.tokens = Counter(
            "muster_tokens", "Tokens that engines accounted for.", ["direction"], registry=registry
        )
        self.queue_s = Histogram(
            "muster_queue_seconds", "Time from arrival to dispatch.", buckets=_SECONDS, registry=registry
        )
        self.ttft_s = Histogram(
            "muster_time_to_first_byte_seconds",
            "Time from arrival to the first byte of the answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.duration_s = Histogram(
            "muster_request_seconds",
            "Time from arrival to the last byte.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.upstream_available = Gauge(
            "muster_upstream_available",
            "1 when the upstream answers its probes, else 0.",
            ["upstream"],
            registry=registry,
        )
        Gauge("muster_in_flight", "Requests in an engine now.", registry=registry).set_function(
            lambda: core.in_flight
        )
        Gauge("muster_waiting", "Requests waiting for a slot now.", registry=registry).set_function(
            lambda: core.waiting
        )
        Gauge("muster_waiting_bytes", "Bytes of the requests waiting now.", registry=registry).set_function(
            lambda: core.waiting_bytes
        )
        Gauge("muster_dispatched", "Requests dispatched since the start.", registry=registry).set_function(
            lambda: core.stats.total_requests
        )
        Gauge(
            "muster_batches", "Batches formed since the start: decisions that dispatched.", registry=registry
        ).set_function(lambda: core.stats.total_batches)
        Gauge(
            "muster_batch_size_mean", "Mean of requests in flight after each of them.", registry=registry
        ).set_function(lambda: core.stats.avg_batch_size)
