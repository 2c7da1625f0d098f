"""Prometheus metrics: a registry a process, and the endpoint that shows it."""

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
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
