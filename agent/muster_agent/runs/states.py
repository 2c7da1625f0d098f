"""A graph's states: reading them whatever a run has left behind, and writing them by hand as a whole or not at all.

LangGraph stores what a step's tasks have written beside the checkpoint at which the step began, and looks at it only
when it is put into the state: again at every later reading. So what a graph cannot take (a message without content,
say) would make every look at its thread fail like the run that brought it.
"""

import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.types import StateSnapshot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from langgraph.checkpoint.base import PendingWrite

    from muster_agent.agents.assistants import Graph


async def state_of(graph: "Graph", config: RunnableConfig, *, subgraphs: bool = False) -> StateSnapshot:
    """A state: what its step has written so far is in it, unless the graph cannot take that."""
    try:
        return await graph.aget_state(config, subgraphs=subgraphs)
    except Exception:  # noqa: BLE001 - whatever a graph's reducers raise; what the database raises, it raises again
        return await _settled(graph).aget_state(config, subgraphs=subgraphs)


async def states_of(
    graph: "Graph", config: RunnableConfig, limit: int, before: RunnableConfig | None = None
) -> "AsyncGenerator[StateSnapshot]":
    """So many states, newest first."""
    left, last = limit, before
    try:
        async for state in graph.aget_state_history(config, before=before, limit=limit):
            yield state
            left, last = left - 1, state.config
    except Exception:  # noqa: BLE001 - likewise
        async for state in _settled(graph).aget_state_history(config, before=last, limit=left):
            yield state


@asynccontextmanager
async def drafting(graph: "Graph") -> "AsyncGenerator[Graph]":
    """The graph, for writing its state: stored when the block ends well.

    LangGraph stores part of an update before it knows whether the graph takes it.
    """
    draft = _Draft(_saver_of(graph))
    made: Any = graph.copy({"checkpointer": draft})
    yield made
    await draft.store()


def _settled(graph: "Graph") -> "Graph":
    made: Any = graph.copy({"checkpointer": _Settled(_saver_of(graph))})
    return made


def _saver_of(graph: "Graph") -> BaseCheckpointSaver[Any]:
    return cast("Any", graph).checkpointer


class _View(BaseCheckpointSaver[Any]):
    """Another saver's checkpoints, seen in a way of its own.

    Args:
        saver: The other one.
    """

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        super().__init__(serde=saver.serde)
        self._saver = saver

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> "_View":
        """The same view of the other saver's clone: that one reads what is stored."""
        clone = copy.copy(self)
        clone._saver = self._saver.with_allowlist(extra_allowlist)  # noqa: SLF001 - its own
        clone.serde = clone._saver.serde  # noqa: SLF001 - likewise
        return clone

    def get_next_version(self, current: Any, channel: None) -> Any:  # noqa: ANN401 - the other saver's
        """A channel's next version."""
        return self._saver.get_next_version(current, channel)


class _Settled(_View):
    """Checkpoints without what has been written since: what steps ended with and what they ask is there even so."""

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found = await self._saver.aget_tuple(config)
        return None if found is None else _without_writes(found)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - as the base class has it
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        async for found in self._saver.alist(config, filter=filter, before=before, limit=limit):
            yield _without_writes(found)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._saver.aget_delta_channel_history(config=config, channels=channels)


def _without_writes(found: CheckpointTuple) -> CheckpointTuple:
    kept = [write for write in found.pending_writes or () if write[1] in WRITES_IDX_MAP]
    return found._replace(pending_writes=kept)


class _Draft(_View):
    """Checkpoints with those that are about to be stored."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        super().__init__(saver)
        self._made: dict[str, CheckpointTuple] = {}
        self._written: dict[str, list[PendingWrite]] = {}
        self._to_do: list[Callable[[], Awaitable[object]]] = []

    async def store(self) -> None:
        """Store them."""
        for do in self._to_do:
            await do()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found = self._made.get(_id_in(config)) or await self._saver.aget_tuple(config)
        if found is None:
            return None
        written = self._written.get(found.checkpoint["id"], [])
        return found._replace(pending_writes=[*(found.pending_writes or ()), *written])

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        configurable: dict[str, Any] = config.get("configurable", {})
        place = {name: configurable[name] for name in ("thread_id", "checkpoint_ns")}
        made = RunnableConfig(configurable={**place, "checkpoint_id": checkpoint["id"]})
        # As it will be read: what is made of it from here on does not change it.
        read = self.serde.loads_typed(self.serde.dumps_typed(checkpoint))
        self._made[checkpoint["id"]] = CheckpointTuple(made, read, metadata, config)
        self._to_do.append(partial(self._saver.aput, config, checkpoint, metadata, new_versions))
        return made

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        written = self._written.setdefault(_id_in(config), [])
        written += [(task_id, channel, value) for channel, value in writes]
        self._to_do.append(partial(self._saver.aput_writes, config, writes, task_id, task_path))


def _id_in(config: RunnableConfig) -> str:
    configurable: dict[str, Any] = config.get("configurable", {})
    return str(configurable.get("checkpoint_id"))
