"""The benchmarks, one module each: what is sent, what is counted, what it should come to.

Each has a `Plan`, which says how much is sent, `PLANS` for a simulated engine, a real one and a trial of seconds, and
`run`, which gives its `Findings`.
"""
