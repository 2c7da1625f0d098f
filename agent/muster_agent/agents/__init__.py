"""Agents: what they are declared to be, how their graphs are made, and the rules around their calls."""
