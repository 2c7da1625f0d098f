"""What the service needs of a saver beyond what LangGraph asks of one."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from muster_agent.checkpoints.pending import Pending
from muster_agent.failures import Failure
from muster_agent.runs import holds


def serializer() -> JsonPlusSerializer:
    """What writes and reads states: it makes nothing of a stored name but LangGraph's own kinds, and our failures.

    LangGraph stores the exception that a step ended with.
    """
    return JsonPlusSerializer(allowed_msgpack_modules=[(Failure.__module__, Failure.__qualname__)])


class Saver(BaseCheckpointSaver[Any]):
    """A saver that writes for holders of a thread only, and can take back, copy and shorten histories."""

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint.

        Raises:
            LeaseLostError: The thread is another process's.
        """
        hold = holds.current()
        stored = await super().aput(config, checkpoint, metadata, new_versions)
        # The first checkpoint of a run holds its input apart from the state; the next one has taken it in.
        if metadata.get("source") == "loop" and not config.get("configurable", {}).get("checkpoint_ns"):
            hold.note_saved()
        return stored

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what tasks have written.

        Raises:
            LeaseLostError: The thread is another process's.
        """
        holds.current()
        await super().aput_writes(config, writes, task_id, task_path)

    @abstractmethod
    async def take_back(self, thread_id: str, run_id: str) -> None:
        """Delete what a run has stored, so that its thread is as it was before."""

    @abstractmethod
    async def pending(self, thread_id: str, checkpoint_id: str | None) -> Pending | None:
        """What stands beside a thread's newest checkpoint, or beside this one and those after it."""

    @abstractmethod
    async def put_back(self, thread_id: str, pending: Pending, *, command_alone: bool) -> None:
        """Have what stood beside these checkpoints stand there again, and no more; or only what a command brings."""

    @abstractmethod
    async def copy(self, thread_id: str, to_thread_id: str) -> None:
        """Copy a thread's whole history to a thread that has none."""

    @abstractmethod
    async def shorten(self, thread_id: str, keep: int) -> None:
        """Delete what a thread's newest `keep` states do not need: its past, and no more than that."""
