"""Statements that are built once: SQLAlchemy takes longer to build one, and to know it again, than to run it."""

from collections.abc import Callable
from typing import Generic, TypeVar

from sqlalchemy import Connection, Executable
from sqlalchemy.sql.elements import ColumnElement

from muster_storage.database import now_s

_Statement = TypeVar("_Statement", bound=Executable)


class Prepared(Generic[_Statement]):
    """A statement, built when it is first used, for each kind of database apart.

    Args:
        build: Makes it of the database's own clock; what differs from use to use is a `bindparam`.
    """

    def __init__(self, build: Callable[[ColumnElement[float]], _Statement]) -> None:
        self._build = build
        self._built: dict[str, _Statement] = {}

    def __call__(self, connection: Connection) -> _Statement:
        """The statement for this connection's database."""
        kind = connection.dialect.name
        if (built := self._built.get(kind)) is None:
            built = self._built[kind] = self._build(now_s(connection))
        return built
