"""What a client is told of a run that has failed."""

import sqlite3
from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy.exc import SQLAlchemyError

from muster_agent import failures
from muster_agent.failures import Failure

_LONGEST = 2_000
_FIELDS = ("error_type", "code", "param", "retry_after")


def complaint_of(error: BaseException) -> dict[str, str]:
    """`{"error": name, "message": text}`; nothing of the service's own database is told."""
    match _only(error):
        case Failure() as failure:
            return _of_failure(failure)
        case SQLAlchemyError() | sqlite3.Error() | OSError():
            return _internal()
        case other if type(other).__module__.startswith("psycopg"):
            return _internal()
        case other:
            return {"error": type(other).__name__, "message": str(other)[:_LONGEST]}


def _only(error: BaseException) -> BaseException:
    """What a group of one is about."""
    while isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        if len(group.exceptions) != 1:
            return group
        error = group.exceptions[0]
    return error


def complaint_of_timeout(limit_s: float) -> dict[str, str]:
    """What a client is told of a run that took too long."""
    return {
        **_of_failure(failures.run_timeout(limit_s)),
        "error": "TimeoutError",
        "message": f"the run took longer than {limit_s:g} s",
    }


def failure_of(complaint: Mapping[str, str]) -> Failure:
    """The failure that a complaint tells of; what a graph says of itself may quote a prompt, and is not repeated."""
    if complaint.get("code") == failures.TIMEOUT:
        return Failure(504, "The run took too long.", code=failures.TIMEOUT)
    if "status" not in complaint:
        return failures.internal()
    told: dict[str, Any] = {name: complaint[name] for name in _FIELDS if name in complaint}
    return Failure(int(complaint["status"]), complaint["message"], **told)


def _of_failure(failure: Failure) -> dict[str, str]:
    """Every field of it as text, so that `failure_of` can give it back."""
    fields = {name: getattr(failure, name) for name in _FIELDS}
    told = {name: str(value) for name, value in fields.items() if value is not None}
    name = failure.code or failure.error_type
    return {"error": name, "message": failure.message, "status": str(failure.status), **told}


def _internal() -> dict[str, str]:
    return {"error": "InternalError", "message": "The agent service failed. Its log has this run's id."}
