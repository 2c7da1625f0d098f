"""JSON columns."""

import re
from typing import Any

import orjson
from sqlalchemy import Dialect, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

# An escaped NUL, and not the text of one: before that stands a backslash that is itself escaped.
_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def dumps(value: Any) -> str:  # noqa: ANN401 - any JSON
    """JSON without NUL characters."""
    return _NUL.sub(rb"\1\\ufffd", orjson.dumps(value)).decode()


class Json(TypeDecorator[Any]):
    """Any JSON value: text on SQLite, `jsonb` on PostgreSQL.

    A value that SQLAlchemy has read is what `orjson` makes of it. NUL characters, which PostgreSQL cannot store, are
    written as U+FFFD, on both so that both hold the same. `None` is SQL's NULL.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column's type in this dialect."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.JSONB(none_as_null=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ANN401 - any JSON
        """What is sent."""
        return value if value is None or dialect.name == "postgresql" else dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ANN401 - any JSON
        """What is read."""
        return orjson.loads(value) if isinstance(value, str) and dialect.name != "postgresql" else value
