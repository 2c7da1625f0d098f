"""HTTP servers and HTTP clients measured in a relay that does nothing else; see docs/benchmarks.md."""
