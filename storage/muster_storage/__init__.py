"""Where Muster keeps what must outlive a process: SQLite for one process, PostgreSQL for several.

The same SQL runs on both, written with SQLAlchemy's Core; Alembic brings a database to the version that the code
expects. Why these: docs/decisions/0006-storage.md.
"""

from muster_storage.database import Database, now_s, origin
from muster_storage.errors import DatabaseInUseError, StorageError
from muster_storage.json_column import Json
from muster_storage.migrations import Schema
from muster_storage.opening import KEPT_ALIVE, SESSION, has_news, make_private, open_database
from muster_storage.prepared import Prepared

__all__ = [
    "KEPT_ALIVE",
    "SESSION",
    "Database",
    "DatabaseInUseError",
    "Json",
    "Prepared",
    "Schema",
    "StorageError",
    "has_news",
    "make_private",
    "now_s",
    "open_database",
    "origin",
]
