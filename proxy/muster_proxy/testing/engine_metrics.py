"""An engine's metrics in Prometheus' text, under vLLM's names."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from muster_batching.samples import EngineSample
from muster_batching.testing import EngineProfile

_TTFT_BUCKETS_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
)
"""The lower ones of vLLM's."""


@dataclass
class EngineTotals:
    """What an engine counts beside its scheduler, since its start.

    Attributes:
        prompt_tokens: Of the answers that have begun.
        generation_tokens: Of all answers.
        ends: Answers that have ended, by how they did.
        ttft_s: Sum of the times to the first token, in seconds.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    ends: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0})
    ttft_s: float = 0.0
    _ttft_counts: list[int] = field(default_factory=lambda: [0] * (len(_TTFT_BUCKETS_S) + 1))

    def began(self, prompt_tokens: int, ttft_s: float) -> None:
        """An answer has begun."""
        self.prompt_tokens += prompt_tokens
        self.ttft_s += ttft_s
        self._ttft_counts[bisect_left(_TTFT_BUCKETS_S, ttft_s)] += 1

    def ttft_buckets(self) -> list[tuple[str, float]]:
        """How many began within each limit, as a histogram tells it."""
        limits = [*(str(limit) for limit in _TTFT_BUCKETS_S), "+Inf"]
        return list(zip(limits, accumulate(self._ttft_counts), strict=True))


@dataclass(frozen=True)
class EngineReading:
    """What is told at one moment.

    Attributes:
        model: The model's name.
        sample: What the scheduler says.
        profile: What engine it is, if known.
        totals: What else is counted.
    """

    model: str
    sample: EngineSample
    profile: EngineProfile | None = None
    totals: EngineTotals = field(default_factory=EngineTotals)


def text_of(reading: EngineReading) -> bytes:
    """The body of `/metrics`; what a sample does not tell is left out."""
    registry = CollectorRegistry()
    registry.register(_Families(reading))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, reading: EngineReading) -> None:
        self._reading = reading
        self._labels = [reading.model, "0"]

    def collect(self) -> Iterator[Metric]:
        sample = self._reading.sample
        yield self._gauge("vllm:num_requests_running", "Requests in the batch.", sample.running)
        yield self._gauge("vllm:num_requests_waiting", "Requests in the queue.", sample.waiting)
        yield self._waiting_by_reason()
        if sample.kv_usage is not None:
            yield self._gauge("vllm:kv_cache_usage_perc", "Share of blocks in use, 0 to 1.", sample.kv_usage)
        counters = {
            "vllm:num_preemptions": sample.preemptions,
            "vllm:prefix_cache_queries": sample.prefix_queries,
            "vllm:prefix_cache_hits": sample.prefix_hits,
            "vllm:prompt_tokens": self._reading.totals.prompt_tokens,
            "vllm:generation_tokens": self._reading.totals.generation_tokens,
        }
        yield from (self._counter(name, count) for name, count in counters.items() if count is not None)
        yield self._ends()
        yield self._ttft()
        if self._reading.profile is not None:
            yield self._cache_config(self._reading.profile)

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, documentation, labels=["model_name", "engine"])
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, count: int) -> Metric:
        family = CounterMetricFamily(name, "Since the start.", labels=["model_name", "engine"])
        family.add_metric(self._labels, count)
        return family

    def _waiting_by_reason(self) -> Metric:
        family = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Requests in the queue.",
            labels=["model_name", "engine", "reason"],
        )
        for reason, count in (("capacity", self._reading.sample.waiting), ("deferred", 0)):
            family.add_metric([*self._labels, reason], count)
        return family

    def _ends(self) -> Metric:
        family = CounterMetricFamily(
            "vllm:request_success",
            "Answers that have ended.",
            labels=["model_name", "engine", "finished_reason"],
        )
        for reason, count in self._reading.totals.ends.items():
            family.add_metric([*self._labels, reason], count)
        return family

    def _ttft(self) -> Metric:
        totals = self._reading.totals
        family = HistogramMetricFamily(
            "vllm:time_to_first_token_seconds", "Time to the first token.", labels=["model_name", "engine"]
        )
        family.add_metric(self._labels, totals.ttft_buckets(), totals.ttft_s)
        return family

    def _cache_config(self, profile: EngineProfile) -> Metric:
        family = GaugeMetricFamily(
            "vllm:cache_config_info",
            "The KV cache.",
            labels=[
                "engine",
                "block_size",
                "num_gpu_blocks",
                "kv_cache_size_tokens",
                "enable_prefix_caching",
            ],
        )
        sizes = [profile.block_size, profile.kv_blocks, profile.kv_tokens]
        family.add_metric(["0", *(str(size) for size in sizes), "True"], 1)
        return family
