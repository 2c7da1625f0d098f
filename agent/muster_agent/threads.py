"""Threads: conversations that the service remembers, in memory, one run at a time on each.

LangGraph lets two runs on one thread fork its history and loses one of them, and a run that is cancelled
half way leaves tool calls without results, which models then choke on. So a run here never works on the
thread itself: it takes the thread's messages, runs on them without a checkpointer, and its outcome is put
back in one write when it has ended well. At no moment, whatever ends a run, does a thread hold half a turn,
and there is nothing to repair. The price is that a run cannot be resumed from its middle.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from langchain_core.messages import AnyMessage
from langgraph.checkpoint.memory import InMemorySaver

from muster_agent.graph import AgentGraph

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

_LAST_NODE = "model"


@dataclass(slots=True)
class _Line:
    """Who waits for a thread. asyncio's lock lets them in by arrival."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Threads:
    """The remembered conversations.

    Args:
        graph: The agent's graph; its state is what is kept.
        most: How many are kept. The least recently used goes first; one in use stays.
    """

    def __init__(self, graph: AgentGraph, most: int) -> None:
        self._saver = InMemorySaver()
        self._graph = graph.copy({"checkpointer": self._saver})
        self._most = most
        self._lines: OrderedDict[str, _Line] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Threads {len(self._lines)} of {self._most}>"

    @asynccontextmanager
    async def hold(self, thread_id: str) -> AsyncGenerator["HeldThread"]:
        """Have a thread to oneself, made if there is none of this name; waits in order of arrival."""
        line = self._lines.setdefault(thread_id, _Line())
        self._lines.move_to_end(thread_id)
        line.users += 1
        try:
            async with line.lock:
                yield HeldThread(self._graph, self._saver, thread_id)
        finally:
            line.users -= 1
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        """Drop idle threads, the least recently used first, down to the bound: O(threads in use)."""
        excess = len(self._lines) - self._most
        idle = (thread_id for thread_id, line in self._lines.items() if line.users == 0)
        for thread_id in [name for name, _ in zip(idle, range(excess), strict=False)]:
            del self._lines[thread_id]
            self._saver.delete_thread(thread_id)


class HeldThread:
    """One thread while nobody else may touch it; got from `Threads.hold`."""

    def __init__(self, graph: AgentGraph, saver: InMemorySaver, thread_id: str) -> None:
        self._graph = graph
        self._saver = saver
        self._config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        self._thread_id = thread_id

    async def messages(self) -> list[AnyMessage]:
        """What the thread holds."""
        state = await self._graph.aget_state(self._config)
        return list(state.values.get("messages", []))

    async def replace(self, messages: list[AnyMessage]) -> None:
        """Make the thread hold `messages` and nothing else, entirely or not at all."""
        # The saver keeps every version of a list for ever; a thread needs the last one only. Shielded,
        # because a cancellation between the two would lose the thread.
        with anyio.CancelScope(shield=True):
            await self._saver.adelete_thread(self._thread_id)
            await self._graph.aupdate_state(self._config, {"messages": messages}, as_node=_LAST_NODE)
