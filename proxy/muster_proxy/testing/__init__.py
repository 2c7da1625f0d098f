"""Engines for tests and benchmarks: real HTTP servers that speak as vLLM does, and need neither GPU nor weights.

`FakeVllm` answers as an engine does; `RawEngine` answers with the bytes that a test gives it, good HTTP or not.
"""

from muster_proxy.testing.fake_vllm import FakeVllm, MetricsMode, Received
from muster_proxy.testing.raw_engine import Drip, End, Endless, Play, RawEngine, RawRequest, Step
from muster_proxy.testing.scripted import Reply

__all__ = [
    "Drip",
    "End",
    "Endless",
    "FakeVllm",
    "MetricsMode",
    "Play",
    "RawEngine",
    "RawRequest",
    "Received",
    "Reply",
    "Step",
]
