"""What a client is told of a run that has failed."""

import sqlite3

from sqlalchemy.exc import SQLAlchemyError

from muster_agent.failures import Failure

_LONGEST = 2_000


def complaint_of(error: BaseException) -> dict[str, str]:
    """`{"error": name, "message": text}`; nothing of the service's own database is told."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    match error:
        case Failure():
            return {"error": error.code or error.error_type, "message": error.message, "status": str(error.status)}
        case SQLAlchemyError() | sqlite3.Error() | OSError():
            return _internal()
        case _ if type(error).__module__.startswith("psycopg"):
            return _internal()
        case _:
            return {"error": type(error).__name__, "message": str(error)[:_LONGEST]}


def _internal() -> dict[str, str]:
    return {"error": "InternalError", "message": "The agent service failed. Its log has this run's id."}
