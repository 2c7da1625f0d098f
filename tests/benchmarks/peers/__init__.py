"""Muster's proxy measured beside its peers and beside direct calls; see docs/benchmarks.md.

python -m tests.benchmarks.peers             the table: CPU, added latency, start and memory
python -m tests.benchmarks.peers.capacity    many open streams, many waiting requests
python -m tests.benchmarks.peers.soak        an hour of traffic with faults: does anything grow?
"""
