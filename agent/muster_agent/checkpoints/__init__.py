"""Checkpoints and the store: LangGraph's own savers and stores, made to write only for whoever holds the thread."""

from muster_agent.checkpoints.opening import Memory, open_memory
from muster_agent.checkpoints.saver import Saver

__all__ = ["Memory", "Saver", "open_memory"]
