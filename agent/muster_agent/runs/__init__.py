"""Runs: one at a time on each thread, durable, taken over when their process dies."""
