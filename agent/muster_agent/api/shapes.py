"""Threads and runs as LangGraph's server writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from muster_agent.wire import iso_time

# What the service notes beside a client's wishes.
_OURS = frozenset({"answers", "is_patient", "transcript", "protocol"})


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
    return told if not select else {name: told[name] for name in ("thread_id", *select) if name in told}


def run_as_json(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A run."""
    return {
        "run_id": row["run_id"],
        "thread_id": row["thread_id"],
        "assistant_id": row["assistant_id"],
        "metadata": row["metadata"],
        "status": row["status"],
        "kwargs": {name: value for name, value in row["kwargs"].items() if name not in _OURS},
        "multitask_strategy": row["multitask_strategy"],
        "created_at": iso_time(row["created_at"]),
        "updated_at": iso_time(row["updated_at"]),
    }
