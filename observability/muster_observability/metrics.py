"""Prometheus metrics: a registry a process, the endpoint that shows it, and what is counted on the path of requests.

The library's counters and histograms may be used from several threads, and take a lock for each number. What is told
several numbers of every request, on one event loop, is counted here instead: `Tally`, `Durations`.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


def new_registry() -> CollectorRegistry:
    """A registry that already tells of the process itself: CPU, memory, descriptors, garbage collection."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class Tally(Collector):
    """A counter with one label, whose values are known from the start. Not for several threads.

    Args:
        name: Without `_total`.
        documentation: What it counts.
        label: Of its values.
        values: Each is shown from the start, as 0.
        registry: Where it is shown.
    """

    def __init__(
        self, name: str, documentation: str, label: str, values: Iterable[str], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self.counts = dict.fromkeys(values, 0)
        registry.register(self)

    def add(self, value: str, count: int = 1) -> None:
        """Count so many more of a value."""
        self.counts[value] += count

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counts as they are."""
        family = CounterMetricFamily(self._name, self._documentation, labels=[self._label])
        for value, count in self.counts.items():
            family.add_metric([value], count)
        yield family


class Durations(Collector):
    """A histogram of seconds. Not for several threads.

    Args:
        name: Of the metric.
        documentation: What took so long.
        bounds_s: Upper bounds of its buckets, rising; the last bucket has none.
        registry: Where it is shown.
    """

    def __init__(
        self, name: str, documentation: str, bounds_s: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds_s = [float(bound) for bound in bounds_s]  # to compare equal types is quicker
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        """Count a duration; in the bucket of the smallest bound that is not below it, as Prometheus has it."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The buckets as they are, each with all below it."""
        bounds = [*map(str, self._bounds_s), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum_s)


class MetricsEndpoint:
    """An ASGI application that answers in the text format that the scraper asked for.

    Args:
        registry: What to show.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Show every metric of the registry as it is now."""
        encode, content_type = choose_encoder(Headers(scope=scope).get("accept", ""))
        answer = Response(encode(self._registry), headers={"content-type": content_type})
        await answer(scope, receive, send)
