"""JSON columns."""

from typing import Any

import orjson
from sqlalchemy import Dialect, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine


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
        if value is None:
            return None
        text = orjson.dumps(value).replace(b"\\u0000", b"\\ufffd").decode()
        return orjson.loads(text) if dialect.name == "postgresql" else text

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ANN401 - any JSON
        """What is read."""
        return orjson.loads(value) if isinstance(value, str) and dialect.name != "postgresql" else value
