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
    told = {
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
    return told if not select else _selected(told, ("thread_id", *select))


def _selected(told: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: told[name] for name in names if name in told}


def run_as_json(row: Mapping[Any, Any], select: Sequence[str] | None = None) -> dict[str, Any]:
    """A run."""
    told = {
        "run_id": row["run_id"],
        "thread_id": row["thread_id"],
        "assistant_id": row["assistant_id"],
        "metadata": row["metadata"],
        "status": row["status"],
        "kwargs": {
            name: row["kwargs"][known] for known, name in _WISHES.items() if known in row["kwargs"]
        },
        "multitask_strategy": row["multitask_strategy"],
        "created_at": iso_time(row["created_at"]),
        "updated_at": iso_time(row["updated_at"]),
    }
    return told if not select else _selected(told, ("run_id", *select))
