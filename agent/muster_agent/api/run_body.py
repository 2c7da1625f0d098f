"""What clients send to have something run."""

from collections.abc import Mapping
from typing import Any, Literal, cast

from pydantic import Field, field_validator

from muster_agent.api.requests import ApiError, Body, Metadata, checked_id
from muster_agent.runs.records import Multitask
from muster_agent.streams import v1

# What a graph's configuration may not say, since the service does.
_RESERVED = frozenset({"thread_id", "run_id", "graph_id", "assistant_id", "checkpoint_ns", "checkpoint_map"})
_MOST_STEPS = 10_000
_LONGEST_NAMESPACE = 4096
NO_CHECKPOINT = "Checkpoint not found."
_CHECKPOINT = ("checkpoint_ns", "checkpoint_id", "checkpoint_map")


class Jump(Body):
    """A node that is to run, with an input of its own."""

    node: str = Field(max_length=256)
    input: Any = None


class Command(Body):
    """What goes on with a thread that waits."""

    resume: Any = None
    goto: str | Jump | list[str | Jump] | None = None
    update: dict[str, Any] | list[tuple[str, Any]] | None = None


class RunBody(Body):
    """A run that is asked for; the union of what LangGraph's clients send."""

    assistant_id: str = Field(min_length=1, max_length=256)
    input: Any = None
    command: Command | None = None
    config: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    metadata: Metadata | None = None
    stream_mode: list[str] = Field(default_factory=lambda: ["values"], max_length=32)
    stream_subgraphs: bool = False
    stream_resumable: bool = False
    interrupt_before: list[str] | Literal["*"] | None = None
    interrupt_after: list[str] | Literal["*"] | None = None
    checkpoint: dict[str, Any] | None = None
    checkpoint_id: str | None = None
    multitask_strategy: Multitask = Multitask.ENQUEUE
    if_not_exists: Literal["create", "reject"] = "reject"
    on_disconnect: Literal["cancel", "continue"] = "continue"
    on_completion: Literal["delete", "keep"] = "delete"
    after_seconds: float = Field(default=0, ge=0, le=31_536_000, allow_inf_nan=False)
    durability: Literal["sync", "async", "exit"] | None = None
    webhook: None = Field(default=None, description="Not supported.")

    @field_validator("webhook", mode="before")
    @classmethod
    def _no_webhook(cls, given: object) -> None:
        # Other unknown fields are ignored; whoever names a webhook waits for a call that would never come.
        if given is not None:
            raise ValueError("this service calls no webhooks; join or stream the run to learn how it ends")

    @field_validator("stream_mode", mode="before")
    @classmethod
    def _modes(cls, given: object) -> object:
        modes = cast("list[object]", given) if isinstance(given, list) else [given or "values"]
        unknown = [mode for mode in modes if mode not in v1.MODES]
        if unknown:
            raise ValueError(
                f"{str(unknown[0])[:64]!r} is no stream mode; expected some of {', '.join(v1.MODES)}"
            )
        return modes

    @field_validator("multitask_strategy", "if_not_exists", "on_disconnect", "on_completion", mode="before")
    @classmethod
    def _or_default(cls, given: object, info: Any) -> object:  # noqa: ANN401 - pydantic's own
        return cls.model_fields[info.field_name].default if given is None else given

    @field_validator("stream_subgraphs", "stream_resumable", "after_seconds", mode="before")
    @classmethod
    def _or_nothing(cls, given: object) -> object:
        return 0 if given is None else given

    def kwargs(self) -> dict[str, Any]:
        """What is stored with the run."""
        command = None if self.command is None else self.command.model_dump(exclude_none=True)
        return {
            "input": self.input,
            "command": command or None,
            "config": self._config(),
            "context": self.context,
            "stream_mode": self.stream_mode,
            "stream_subgraphs": self.stream_subgraphs,
            "stream_resumable": self.stream_resumable,
            "interrupt_before": self.interrupt_before,
            "interrupt_after": self.interrupt_after,
            "checkpoint": self.started_at,
            "on_disconnect": self.on_disconnect,
            "durability": self.durability,
        }

    @property
    def started_at(self) -> dict[str, Any] | None:
        """The checkpoint that the run is to continue, if not the newest."""
        configured: Any = (self.config or {}).get("configurable")
        sources = [configured, {"checkpoint_id": self.checkpoint_id}, self.checkpoint]
        found: dict[str, Any] = {}
        for source in sources:
            found |= checkpoint_of(source)
        return found if found.get("checkpoint_id") else None

    def _config(self) -> dict[str, Any]:
        given = self.config or {}
        configurable: Any = given.get("configurable")
        kept: dict[str, Any] = {"tags": [str(tag)[:256] for tag in _list(given.get("tags"))]}
        if isinstance(configurable, dict):
            items = cast("dict[str, Any]", configurable).items()
            kept["configurable"] = {
                key: value
                for key, value in items
                if key not in _RESERVED and key != "checkpoint_id" and not key.startswith("__")
            }
        steps: Any = given.get("recursion_limit")
        if steps is not None:
            if not isinstance(steps, int) or isinstance(steps, bool) or not steps >= 1:
                raise ApiError(422, "config.recursion_limit must be a number from 1")
            kept["recursion_limit"] = min(steps, _MOST_STEPS)
        metadata: Any = given.get("metadata")
        if isinstance(metadata, dict):
            kept["metadata"] = metadata
        return kept


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def checkpoint_of(given: object) -> dict[str, Any]:
    """What names a checkpoint in what a client sent; its thread is named elsewhere.

    Raises:
        ApiError: 422, it is nothing that a checkpoint could be named by.
    """
    if not isinstance(given, Mapping):
        return {}
    known = cast("Mapping[str, Any]", given)
    found = {name: known[name] for name in _CHECKPOINT if known.get(name) is not None}
    if "checkpoint_id" in found:
        found["checkpoint_id"] = checked_id(str(found["checkpoint_id"]), "checkpoint")
    if not _is_namespace(found.get("checkpoint_ns", "")):
        raise ApiError(422, f"checkpoint_ns must be text of at most {_LONGEST_NAMESPACE} characters")
    ids: Any = found.get("checkpoint_map", {})
    if not isinstance(ids, dict) or not all(
        _is_namespace(key) and isinstance(value, str) for key, value in cast("dict[Any, Any]", ids).items()
    ):
        raise ApiError(422, "checkpoint_map must be an object of checkpoint IDs by namespace")
    return found


def _is_namespace(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NAMESPACE and "\0" not in value
