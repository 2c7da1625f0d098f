"""Engines for tests and benchmarks: real HTTP servers that speak as vLLM does, and need neither GPU nor weights."""

from muster_proxy.testing.fake_vllm import FakeVllm, MetricsMode, Received, Reply

__all__ = ["FakeVllm", "MetricsMode", "Received", "Reply"]
