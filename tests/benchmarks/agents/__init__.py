"""The agent service measured under load, and under kills; see docs/benchmarks.md.

python -m tests.benchmarks.agents.load     CPU of a step, delay of events, memory of a thread
python -m tests.benchmarks.agents.kills    processes that die: what is lost, doubled or forked?
"""
