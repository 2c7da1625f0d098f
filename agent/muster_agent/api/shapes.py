"""Threads and runs as LangGraph's server writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from muster_agent.wire import iso_time

# A run's wishes, by the names under which LangGraph's server tells them. What else is stored with a run is the
# service's own.
_WISHES = {
    "input": "input",
    "command": "command",
    "config": "config",
    "context": "context",
    "stream_mode": "stream_mode",
    "stream_subgraphs": "subgraphs",
    "stream_resumable": "resumable",
    "interrupt_before": "interrupt_before",
    "interrupt_after": "interrupt_after",
    "checkpoint": "checkpoint",
    "on_disconnect": "on_disconnect",
    "durability": "durability",
}


def thread_as_json(row: Mapping[Any, Any], select: Sequence[str] | None = None) -> dict[str, Any]:
    """A thread."""
    told: dict[str, Any] = {
        "thread_id": row["thread_id"],
        "created_at": iso_time(row["created_at"]),
        "updated_at": iso_time(row["updated_at"]),
        "state_updated_at": iso_time(row["state_updated_at"]),
        "metadata": row["metadata"],
        "status": row["status"],
        "config": row["config"],
        "values": row["values"],
        "error": row["error"],
        "interrupts": row["interrupts"] or {},
    }
    return selected(told, "thread_id", select)


def selected(told: dict[str, Any], key: str, names: Sequence[str] | None) -> dict[str, Any]:
    """What a client wants of something, always with its identifier; all where it does not say."""
    return told if not names else {name: told[name] for name in (key, *names) if name in told}


def chosen(state: dict[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """What a client wants of a state, all where it does not say; `values.NAME` is one of its values."""
    if not names:
        return state
    told = {name: state[name] for name in names if name in state}
    parts = [part for name in names if (part := name.removeprefix("values.")) != name]
    if parts and "values" not in told:
        values: Any = state["values"]
        told["values"] = {part: values[part] for part in parts if isinstance(values, dict) and part in values}
    return told


def run_as_json(row: Mapping[Any, Any], select: Sequence[str] | None = None) -> dict[str, Any]:
    """A run."""
    told: dict[str, Any] = {
        "run_id": row["run_id"],
        "thread_id": row["thread_id"],
        "assistant_id": row["assistant_id"],
        "metadata": row["metadata"],
        "status": row["status"],
        "kwargs": {name: row["kwargs"][known] for known, name in _WISHES.items() if known in row["kwargs"]},
        "multitask_strategy": row["multitask_strategy"],
        "created_at": iso_time(row["created_at"]),
        "updated_at": iso_time(row["updated_at"]),
    }
    return selected(told, "run_id", select)
